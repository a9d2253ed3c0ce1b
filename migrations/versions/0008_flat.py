"""Indexes for queries over many rows, so that their cost depends only on what they find."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

UNFINISHED = "status IN ('PENDING', 'PROCESSING')"

# name, table, columns, condition
NEW: tuple[tuple[str, str, tuple[str, ...], str | None], ...] = (
    ("ix_jobs_tenant_status", "jobs", ("tenant", "status", "created_at", "id"), None),
    ("ix_jobs_tenant_model", "jobs", ("tenant", "model", "status", "created_at", "id"), None),
    (
        "ix_jobs_tenant_recording",
        "jobs",
        ("tenant", "client_recording_id", "created_at"),
        "client_recording_id IS NOT NULL",
    ),
    (
        "ix_jobs_key_unfinished",
        "jobs",
        ("key_id",),
        "status IN ('PENDING_UPLOAD', 'PENDING', 'PROCESSING')",
    ),
    ("ix_jobs_processing", "jobs", ("started_at",), "status = 'PROCESSING'"),
    ("ix_usage_days_key", "usage_days", ("key_id", "day"), None),
    ("ix_usage_days_tenant", "usage_days", ("tenant", "day"), None),
    (
        "ix_webhook_deliveries_tenant_status",
        "webhook_deliveries",
        ("tenant", "status", "created_at", "id"),
        None,
    ),
    (
        "ix_webhook_deliveries_endpoint",
        "webhook_deliveries",
        ("endpoint_id", "status", "created_at", "id"),
        None,
    ),
    (
        "ix_webhook_deliveries_leased",
        "webhook_deliveries",
        ("lease_until",),
        "status = 'pending' AND lease_until IS NOT NULL",
    ),
    ("ix_webhook_deliveries_ended", "webhook_deliveries", ("ended_at",), "status <> 'pending'"),
    (
        "ix_webhook_deliveries_orphaned",
        "webhook_deliveries",
        ("id",),
        "job_id IS NULL AND event <> 'test' AND status <> 'pending'",
    ),
)


def upgrade() -> None:
    for name, table, columns, condition in NEW:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, list(columns), postgresql_where=where)
    op.drop_index("ix_jobs_unfinished", table_name="jobs")
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["status", sa.text("coalesce(retried_at, created_at)")],
        postgresql_where=sa.text(UNFINISHED),
    )
    # Others begin with the same columns now.
    op.drop_index("ix_jobs_key_id", table_name="jobs")
    op.drop_index("ix_webhook_deliveries_endpoint_id", table_name="webhook_deliveries")


def downgrade() -> None:
    op.create_index("ix_webhook_deliveries_endpoint_id", "webhook_deliveries", ["endpoint_id"])
    op.create_index("ix_jobs_key_id", "jobs", ["key_id"])
    op.drop_index("ix_jobs_unfinished", table_name="jobs")
    op.create_index("ix_jobs_unfinished", "jobs", ["status"], postgresql_where=sa.text(UNFINISHED))
    for name, table, *_ in reversed(NEW):
        op.drop_index(name, table_name=table)
