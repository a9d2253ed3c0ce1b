"""Channels: those of a recording that a job transcribes separately."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("transcriptions", sa.Column("channels", JSONB()))


def downgrade() -> None:
    op.drop_column("transcriptions", "channels")
