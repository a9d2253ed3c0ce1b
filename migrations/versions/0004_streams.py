"""Live streams, their finals, and the records of deleted ones."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON, JSONB

revision = "0004"
down_revision = "0003"

TIME = sa.TIMESTAMP(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "stream_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("moderation", sa.Boolean(), nullable=False),
        sa.Column("client_recording_id", sa.Text()),
        sa.Column("metadata", JSON()),
        sa.Column("audio_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("latency_ms", sa.Integer()),
        *(
            sa.Column(name, TIME, server_default=NOW, nullable=False)
            for name in ("created_at", "seen_at")
        ),
        sa.Column("ended_at", TIME),
        sa.Column("outcome", sa.Text()),
        sa.Column("delete_after_s", sa.Integer()),
        sa.Column("delete_at", TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stream_sessions")),
    )
    op.create_index(
        "ix_stream_sessions_tenant_created_at", "stream_sessions", ["tenant", "created_at"]
    )
    op.create_index(
        "ix_stream_sessions_live",
        "stream_sessions",
        ["seen_at"],
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_stream_sessions_delete_at",
        "stream_sessions",
        ["delete_at"],
        postgresql_where=sa.text("delete_at IS NOT NULL"),
    )
    op.create_table(
        "stream_finals",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("start_ms", sa.Integer(), nullable=False),
        sa.Column("end_ms", sa.Integer(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("segments", JSONB(), nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=False),
        sa.Column("moderation", JSONB()),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["stream_sessions.id"],
            name=op.f("fk_stream_finals_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("session_id", "seq", name=op.f("pk_stream_finals")),
    )
    op.add_column("deletions", sa.Column("kind", sa.Text(), server_default="job", nullable=False))
    op.create_check_constraint(op.f("ck_deletions_kind"), "deletions", "kind IN ('job', 'stream')")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_deletions_kind"), "deletions", type_="check")
    # The older code knows no streams: it would report them as deleted jobs.
    op.execute("DELETE FROM deletions WHERE kind = 'stream'")
    op.drop_column("deletions", "kind")
    op.drop_table("stream_finals")
    for name in ("delete_at", "live", "tenant_created_at"):
        op.drop_index(f"ix_stream_sessions_{name}", table_name="stream_sessions")
    op.drop_table("stream_sessions")
