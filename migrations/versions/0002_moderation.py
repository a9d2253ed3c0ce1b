"""A step that moderates a chunk, what it finds, and how long it takes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_steps_kind"), "steps", type_="check")
    op.create_check_constraint(
        op.f("ck_steps_kind"), "steps", "kind IN ('plan', 'transcribe', 'moderate', 'merge')"
    )
    op.add_column("chunks", sa.Column("moderation", JSONB()))
    op.add_column("chunks", sa.Column("moderation_ms", sa.Integer()))
    op.add_column(
        "job_metrics",
        sa.Column("moderation_ms", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("job_metrics", "moderation_ms")
    op.drop_column("chunks", "moderation_ms")
    op.drop_column("chunks", "moderation")
    # The older code knows no such step: a chunk that waits for one is done.
    op.execute(
        "UPDATE jobs SET remaining = remaining - waiting.chunks FROM ("
        " SELECT job_id, count(*) AS chunks FROM steps"
        " WHERE kind = 'moderate' AND status IN ('pending', 'running') GROUP BY job_id"
        ") AS waiting WHERE jobs.id = waiting.job_id"
    )
    op.execute("DELETE FROM steps WHERE kind = 'moderate'")
    op.execute(
        "WITH merges AS ("
        " INSERT INTO steps (job_id, kind, status, attempt, failures, losses)"
        " SELECT id, 'merge', 'pending', 0, 0, 0 FROM jobs"
        " WHERE status = 'PROCESSING' AND planned AND remaining = 0"
        " ON CONFLICT DO NOTHING RETURNING id"
        ") INSERT INTO outbox (step_id) SELECT id FROM merges"
    )
    op.drop_constraint(op.f("ck_steps_kind"), "steps", type_="check")
    op.create_check_constraint(
        op.f("ck_steps_kind"), "steps", "kind IN ('plan', 'transcribe', 'merge')"
    )
