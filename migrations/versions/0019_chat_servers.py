"""What failed attempts cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("failures", sa.Column("cost", JSONB()))


def downgrade() -> None:
    op.drop_column("failures", "cost")
