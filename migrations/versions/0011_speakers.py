"""Speakers: who speaks when in a transcript."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("transcripts", sa.Column("diarization", JSONB()))
    op.add_column(
        "job_metrics",
        sa.Column("diarization_ms", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )


def downgrade() -> None:
    op.drop_column("job_metrics", "diarization_ms")
    op.drop_column("transcripts", "diarization")
