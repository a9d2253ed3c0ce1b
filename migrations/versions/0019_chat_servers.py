"""Tenants' own servers of language models; what failed attempts cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("failures", sa.Column("cost", JSONB()))
    op.create_table(
        "chat_servers",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("api_key", JSONB()),
        sa.Column("context_tokens", sa.Integer()),
        sa.Column("max_output_tokens", sa.Integer()),
        sa.Column(
            "updated_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_chat_servers")),
    )


def downgrade() -> None:
    # The older code does not know whose server a request is for, and would send it elsewhere.
    op.execute("DELETE FROM jobs WHERE jsonb_path_exists(options, '$.enhancement.server')")
    op.execute(
        "UPDATE jobs SET options = options - 'enhance'"
        " WHERE jsonb_path_exists(options, '$.enhance[*].server')"
    )
    op.drop_table("chat_servers")
    op.drop_column("failures", "cost")
