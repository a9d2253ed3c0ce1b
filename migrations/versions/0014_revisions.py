"""Revisions: what made a transcript, who, and why; and jobs that work on that of another job."""

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
    op.add_column("jobs", sa.Column("source_id", sa.UUID()))
    op.create_foreign_key(op.f("fk_jobs_source_id"), "jobs", "jobs", ["source_id"], ["id"])
    op.create_index(
        "ix_jobs_source", "jobs", ["source_id"], postgresql_where="source_id IS NOT NULL"
    )


def downgrade() -> None:
    # The older code knows neither these jobs nor how to delete what they belong to.
    op.execute("DELETE FROM jobs WHERE source_id IS NOT NULL")
    op.drop_index("ix_jobs_source", "jobs")
    op.drop_column("jobs", "source_id")
    for column in ("refinements", "changes", "note", "key_id", "origin"):
        op.drop_column("transcripts", column)
