"""Glossaries, and the replacements that people make."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "glossaries",
        sa.Column("id", sa.UUID(), server_default=sa.func.gen_random_uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("entries", JSONB(), nullable=False),
        sa.Column("rewrite", sa.Boolean(), nullable=False),
        sa.Column("language", sa.Text()),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column(
            "updated_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_glossaries")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_glossaries_tenant_name")),
    )
    op.create_index("ix_glossaries_tenant_created_at", "glossaries", ["tenant", "created_at", "id"])
    op.create_index(
        "uq_glossaries_default",
        "glossaries",
        ["tenant"],
        unique=True,
        postgresql_where=sa.text("is_default"),
    )
    op.create_table(
        "replacements",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_replacements_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "before", "after", name=op.f("pk_replacements")),
    )
    op.create_index("ix_replacements_tenant", "replacements", ["tenant", "before", "after", "at"])


def downgrade() -> None:
    op.drop_table("replacements")
    op.drop_table("glossaries")
