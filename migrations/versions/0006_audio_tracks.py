"""The audio tracks of recordings, and the one that a job transcribes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "recordings",
        sa.Column("audio_tracks", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
    )
    op.add_column("jobs", sa.Column("audio_track", sa.SmallInteger()))


def downgrade() -> None:
    op.drop_column("jobs", "audio_track")
    op.drop_column("recordings", "audio_tracks")
