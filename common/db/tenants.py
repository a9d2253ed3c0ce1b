"""The settings of tenants."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from common.db.database import Database
from common.db.tables import Tenant


class Tenants:
    """All tenants with settings of their own; for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Tenant]:
        """All of them, by name."""
        with self._database.transaction() as session:
            return list(session.scalars(select(Tenant).order_by(Tenant.id)))

    def put(self, name: str, **options: str | int | None) -> None:
        """Set these columns of `Tenant`; the others stay as they are."""
        statement = insert(Tenant).values(id=name, **options)
        with self._database.transaction() as session:
            session.execute(
                statement.on_conflict_do_update(index_elements=[Tenant.id], set_=options)
                if options
                else statement.on_conflict_do_nothing()
            )
