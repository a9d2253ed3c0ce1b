"""Enhancements: what a language model makes of transcripts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_table(
        "enhancements",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("result", JSONB()),
        sa.Column("missing", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")),
        sa.Column("model", sa.Text()),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("elapsed_ms", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_enhancements_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_enhancements")),
    )
    # There are only reruns yet.
    op.create_index(
        "ix_jobs_tenant_kind",
        "jobs",
        ["tenant", "kind", "created_at", "id"],
        postgresql_where=sa.text("source_id IS NOT NULL"),
    )


def downgrade() -> None:
    # The older code does not know these jobs.
    op.execute("DELETE FROM jobs WHERE kind = 'enhancement'")
    op.drop_index("ix_jobs_tenant_kind", "jobs")
    op.drop_table("enhancements")
