"""Keys, tenants, usage, webhooks, deletions, tallies, and jobs whose recording is still to come."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON, JSONB

revision = "0003"
down_revision = "0002"

TIME = sa.TIMESTAMP(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    op.drop_constraint(op.f("ck_steps_kind"), "steps", type_="check")
    op.create_check_constraint(
        op.f("ck_steps_kind"),
        "steps",
        "kind IN ('fetch', 'plan', 'transcribe', 'moderate', 'merge')",
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("scopes", JSONB(), nullable=False),
        sa.Column("limits", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_tenant"), "api_keys", ["tenant"])
    op.create_table(
        "deletions",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("recording_id", sa.Uuid()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("requested_at", TIME, server_default=NOW, nullable=False),
        sa.Column("erased_at", TIME),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_deletions")),
    )
    op.create_index(
        "ix_deletions_due",
        "deletions",
        ["requested_at"],
        postgresql_where=sa.text("erased_at IS NULL"),
    )
    op.create_index("ix_deletions_tenant_requested_at", "deletions", ["tenant", "requested_at"])
    op.create_table(
        "tallies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_tallies")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), server_default="standard", nullable=False),
        sa.Column("delete_after_s", sa.Integer()),
        sa.Column("secrets", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )
    op.create_table(
        "usage_days",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("jobs", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("audio_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", "day", name=op.f("pk_usage_days")),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", JSONB(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("secrets", JSONB(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("paused_at", TIME),
        sa.Column("paused_reason", sa.Text()),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(op.f("ix_webhook_endpoints_tenant"), "webhook_endpoints", ["tenant"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid()),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column(
            "lane",
            sa.Text(),
            sa.Computed("tenant || ' ' || substring(url from '^[^/]*//[^/?#]*')", persisted=True),
            nullable=False,
        ),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", TIME, server_default=NOW, nullable=False),
        sa.Column("token", sa.Uuid()),
        sa.Column("lease_until", TIME),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("ended_at", TIME),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed')",
            name=op.f("ck_webhook_deliveries_status"),
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f("fk_webhook_deliveries_endpoint_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["due_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        op.f("ix_webhook_deliveries_endpoint_id"), "webhook_deliveries", ["endpoint_id"]
    )
    op.create_index(op.f("ix_webhook_deliveries_job_id"), "webhook_deliveries", ["job_id"])
    op.create_index(
        "ix_webhook_deliveries_tenant_created_at", "webhook_deliveries", ["tenant", "created_at"]
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f("fk_webhook_attempts_delivery_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
    )
    op.create_index(op.f("ix_webhook_attempts_delivery_id"), "webhook_attempts", ["delivery_id"])
    op.add_column("jobs", sa.Column("key_id", sa.Text()))
    op.add_column("jobs", sa.Column("source_url", sa.Text()))
    op.add_column("jobs", sa.Column("webhook_url", sa.Text()))
    op.add_column("jobs", sa.Column("metadata", JSON()))
    op.add_column("jobs", sa.Column("client_recording_id", sa.Text()))
    op.add_column("jobs", sa.Column("idempotency_key", sa.Text()))
    op.add_column("jobs", sa.Column("request_sha256", sa.Text()))
    op.add_column("jobs", sa.Column("delete_after_s", sa.Integer()))
    op.add_column(
        "jobs", sa.Column("charged_ms", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("jobs", sa.Column("request_id", sa.Text()))
    for name in ("delete_at", "sweep_at", "retried_at"):
        op.add_column("jobs", sa.Column(name, TIME))
    # The older code swept once a minute: chunks of the last ended jobs may remain.
    op.execute("UPDATE jobs SET sweep_at = now() WHERE completed_at > now() - interval '1 day'")
    op.alter_column("jobs", "recording_id", existing_type=sa.UUID(), nullable=True)
    op.create_index(
        "ix_jobs_lately",
        "jobs",
        ["engine", "model", "completed_at"],
        postgresql_where=sa.text("status = 'COMPLETED'"),
    )
    op.create_index(
        "ix_jobs_awaited",
        "jobs",
        ["created_at"],
        postgresql_where=sa.text("status = 'PENDING_UPLOAD'"),
    )
    for name in ("delete_at", "sweep_at"):
        op.create_index(
            f"ix_jobs_{name}", "jobs", [name], postgresql_where=sa.text(f"{name} IS NOT NULL")
        )
    op.create_index(op.f("ix_jobs_key_id"), "jobs", ["key_id"])
    op.create_index(
        "uq_jobs_tenant_idempotency_key",
        "jobs",
        ["tenant", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("uq_jobs_tenant_idempotency_key", table_name="jobs")
    op.drop_index(op.f("ix_jobs_key_id"), table_name="jobs")
    for name in ("delete_at", "sweep_at", "awaited", "lately"):
        op.drop_index(f"ix_jobs_{name}", table_name="jobs")
    # The older code knows no job without a recording, and no step that fetches one.
    op.execute("DELETE FROM jobs WHERE recording_id IS NULL")
    op.execute("DELETE FROM steps WHERE kind = 'fetch'")
    op.alter_column("jobs", "recording_id", existing_type=sa.UUID(), nullable=False)
    for name in ("retried_at", "sweep_at", "delete_at"):
        op.drop_column("jobs", name)
    op.drop_column("jobs", "request_id")
    op.drop_column("jobs", "charged_ms")
    op.drop_column("jobs", "delete_after_s")
    op.drop_column("jobs", "request_sha256")
    op.drop_column("jobs", "idempotency_key")
    op.drop_column("jobs", "client_recording_id")
    op.drop_column("jobs", "metadata")
    op.drop_column("jobs", "webhook_url")
    op.drop_column("jobs", "source_url")
    op.drop_column("jobs", "key_id")
    op.drop_index(op.f("ix_webhook_attempts_delivery_id"), table_name="webhook_attempts")
    op.drop_table("webhook_attempts")
    op.drop_index("ix_webhook_deliveries_tenant_created_at", table_name="webhook_deliveries")
    op.drop_index(op.f("ix_webhook_deliveries_job_id"), table_name="webhook_deliveries")
    op.drop_index(op.f("ix_webhook_deliveries_endpoint_id"), table_name="webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_due", table_name="webhook_deliveries")
    op.drop_table("webhook_deliveries")
    op.drop_index(op.f("ix_webhook_endpoints_tenant"), table_name="webhook_endpoints")
    op.drop_table("webhook_endpoints")
    op.drop_table("usage_days")
    op.drop_table("tenants")
    op.drop_table("tallies")
    op.drop_index("ix_deletions_tenant_requested_at", table_name="deletions")
    op.drop_index("ix_deletions_due", table_name="deletions")
    op.drop_table("deletions")
    op.drop_index(op.f("ix_api_keys_tenant"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_constraint(op.f("ck_steps_kind"), "steps", type_="check")
    op.create_check_constraint(
        op.f("ck_steps_kind"), "steps", "kind IN ('plan', 'transcribe', 'moderate', 'merge')"
    )
