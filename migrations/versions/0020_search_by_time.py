"""Search: passages are found by when their texts were created.

The dispatcher makes them anew, some at a time. Until then a text is not found.
"""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    _index_again()


def downgrade() -> None:
    _index_again()


def _index_again() -> None:
    op.execute(
        "INSERT INTO unindexed (source_id, kind, created_at)"
        " SELECT DISTINCT source_id, kind, created_at FROM passages"
        " ON CONFLICT (source_id) DO NOTHING"
    )
    op.execute("TRUNCATE passages")
