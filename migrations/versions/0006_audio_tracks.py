"""The audio tracks of recordings, and the one that a job transcribes."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | Sequence[str] | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "recordings",
        sa.Column(
            "audio_tracks",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
    )
    op.add_column("jobs", sa.Column("audio_track", sa.SmallInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "audio_track")
    op.drop_column("recordings", "audio_tracks")
