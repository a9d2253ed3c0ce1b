"""Live streams, their finals, and the records of deleted ones."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "stream_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("moderation", sa.Boolean(), nullable=False),
        sa.Column("client_recording_id", sa.Text(), nullable=True),
        sa.Column(
            "metadata", postgresql.JSON(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("audio_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        *(
            sa.Column(
                name,
                postgresql.TIMESTAMP(timezone=True),
                server_default=sa.text("now()"),
                nullable=False,
            )
            for name in ("created_at", "seen_at")
        ),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("delete_after_s", sa.Integer(), nullable=True),
        sa.Column("delete_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stream_sessions")),
    )
    op.create_index(
        "ix_stream_sessions_tenant_created_at",
        "stream_sessions",
        ["tenant", "created_at"],
        unique=False,
    )
    op.create_index(
        "ix_stream_sessions_live",
        "stream_sessions",
        ["seen_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_stream_sessions_delete_at",
        "stream_sessions",
        ["delete_at"],
        unique=False,
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
        sa.Column(
            "segments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("latency_ms", sa.Integer(), nullable=False),
        sa.Column(
            "moderation", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
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
