"""How Alembic reaches the database: by the URL it is called with, else by DATABASE_URL."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from common.db.database import parsed
from common.db.tables import Base
from common.settings import DatabaseSettings

MIGRATION_LOCK = 7_319_482
"""An advisory lock's key, arbitrary but fixed: migrations run one after the other."""


def run() -> None:
    """Migrate, alone and in one transaction."""
    url = context.config.attributes.get("database_url")
    if url is None:
        configured = DatabaseSettings().address
        if configured is None:
            raise SystemExit("DATABASE_URL is not set")
        url = parsed(configured)
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            compare_server_default=True,
        )
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            context.run_migrations()


run()
