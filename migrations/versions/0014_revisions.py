"""Revisions: what made a transcript, who, and why."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column(
        "transcripts",
        sa.Column("origin", sa.Text(), nullable=False, server_default=sa.text("'merge'")),
    )
    op.add_column("transcripts", sa.Column("key_id", sa.Text()))
    op.add_column("transcripts", sa.Column("note", sa.Text()))
    op.add_column(
        "transcripts",
        sa.Column("changes", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")),
    )
    op.add_column(
        "transcripts",
        sa.Column("refinements", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )


def downgrade() -> None:
    for column in ("refinements", "changes", "note", "key_id", "origin"):
        op.drop_column("transcripts", column)
