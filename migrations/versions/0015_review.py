"""Review: jobs that wait until a person approves their text."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("paused_at", TIMESTAMP(timezone=True)))
    op.add_column("jobs", sa.Column("reviewed_by", sa.Text()))
    op.create_index(
        "ix_jobs_review",
        "jobs",
        ["paused_at"],
        postgresql_where=sa.text("status = 'REVIEW'"),
    )
    op.add_column(
        "tenants",
        sa.Column("review", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )


def downgrade() -> None:
    # The older code would leave them in REVIEW for ever.
    op.execute(
        "UPDATE jobs SET status = 'COMPLETED', completed_at = now(), sweep_at = now(),"
        " delete_at = now() + make_interval(secs => delete_after_s)"
        " WHERE status = 'REVIEW'"
    )
    op.drop_column("tenants", "review")
    op.drop_index("ix_jobs_review", table_name="jobs")
    op.drop_column("jobs", "reviewed_by")
    op.drop_column("jobs", "paused_at")
