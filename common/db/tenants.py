"""The settings of tenants."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from common.db.database import Database
from common.db.tables import Tenant


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """A tenant's class for metrics, and when its jobs are deleted (s after their end).

    ``delete_after_s`` None: that of the settings.
    """

    name: str
    tier: str
    delete_after_s: int | None


class Tenants:
    """All tenants with settings of their own; for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[TenantOptions]:
        """All of them, by name."""
        with self._database.transaction() as session:
            rows = session.scalars(select(Tenant).order_by(Tenant.id))
            return [TenantOptions(row.id, row.tier, row.delete_after_s) for row in rows]

    def put(self, name: str, **options: str | int | None) -> None:
        """Set these columns of `Tenant`; the others stay as they are."""
        statement = insert(Tenant).values(id=name, **options)
        with self._database.transaction() as session:
            session.execute(
                statement.on_conflict_do_update(index_elements=[Tenant.id], set_=options)
                if options
                else statement.on_conflict_do_nothing()
            )
