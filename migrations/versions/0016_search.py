"""Search: passages of texts, and the list of existing texts that have none yet.

The dispatcher makes the passages of existing texts, some at a time.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, TSVECTOR

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "passages",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source_id", sa.UUID(), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("segments", JSONB(), nullable=False),
        sa.Column("shared", sa.SmallInteger(), nullable=False),
        sa.Column("lexemes", TSVECTOR(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_passages")),
        postgresql_with={"toast_tuple_target": 128},
    )
    op.create_index("ix_passages_lexemes", "passages", ["lexemes"], postgresql_using="gin")
    op.create_index("ix_passages_source", "passages", ["source_id"])
    op.create_table(
        "unindexed",
        sa.Column("source_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("source_id", name=op.f("pk_unindexed")),
    )
    op.create_index(op.f("ix_unindexed_created_at"), "unindexed", ["created_at"])
    op.execute(
        "INSERT INTO unindexed (source_id, kind, created_at)"
        " SELECT id, 'job', created_at FROM jobs"
        " WHERE EXISTS (SELECT FROM transcripts WHERE job_id = jobs.id)"
        " UNION ALL"
        " SELECT id, 'stream', created_at FROM stream_sessions WHERE ended_at IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_table("unindexed")
    op.drop_table("passages")
