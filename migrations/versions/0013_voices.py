"""Voices: people whom recordings may be searched for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "voices",
        sa.Column("id", sa.UUID(), server_default=sa.func.gen_random_uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("embedding", JSONB(), nullable=False),
        sa.Column("sampled_ms", sa.Integer(), nullable=False),
        sa.Column("network", sa.Text(), nullable=False),
        sa.Column("narrow", sa.Boolean(), nullable=False),
        sa.Column("consent_by", sa.Text(), nullable=False),
        sa.Column("consent_note", sa.Text()),
        sa.Column("key_id", sa.Text()),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("speaker", sa.Text(), nullable=False),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_voices")),
    )
    op.create_index("ix_voices_tenant_created_at", "voices", ["tenant", "created_at", "id"])
    _set_kinds("'job', 'stream', 'voice'")


def downgrade() -> None:
    # The older code knows no voices: it would report them as deleted streams.
    op.execute("DELETE FROM deletions WHERE kind = 'voice'")
    _set_kinds("'job', 'stream'")
    op.drop_table("voices")


def _set_kinds(kinds: str) -> None:
    op.drop_constraint(op.f("ck_deletions_kind"), "deletions", type_="check")
    op.create_check_constraint(op.f("ck_deletions_kind"), "deletions", f"kind IN ({kinds})")
