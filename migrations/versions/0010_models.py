"""Jobs with several languages: the model of each."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("transcriptions", sa.Column("models", JSONB()))


def downgrade() -> None:
    op.drop_column("transcriptions", "models")
