"""Which languages were detected in a recording, and how probable each is."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("language_probabilities", JSONB()))


def downgrade() -> None:
    op.drop_column("jobs", "language_probabilities")
