"""API keys: creation, lookup and revocation; and the settings of tenants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Select, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from common.db.database import Database
from common.db.tables import ApiKey, LinkSecret, Tenant
from common.db.version import migrated_transaction
from common.domain.keys import KeyText, Scope
from common.errors import NotFound


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key; ``limits`` are those that differ from the settings, by name."""

    id: str
    tenant: str
    name: str
    secret_sha256: str = field(repr=False)
    scopes: frozenset[Scope]
    limits: Mapping[str, float]
    created_at: datetime
    expires_at: datetime | None
    expired: bool
    """Whether it had expired, by Postgres' clock, when it was read."""
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def state(self) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expired else "active"


class Keys:
    """The keys of one tenant; another tenant's are not found."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        lasts_s: float | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> tuple[Key, KeyText]:
        """Create a key, valid for ``lasts_s`` seconds. Its text is returned only here."""
        text = KeyText.make()
        with migrated_transaction(self._database) as session:
            row = ApiKey(
                id=text.id,
                tenant=self._tenant,
                name=name,
                secret_sha256=text.sha256,
                scopes=sorted(set(scopes)),
                limits=dict(limits or {}),
                expires_at=None if lasts_s is None else func.now() + timedelta(seconds=lasts_s),
            )
            session.add(row)
            session.flush()
            return _key(*session.execute(_found().where(ApiKey.id == row.id)).one()), text

    def all(self) -> list[Key]:
        """All keys, expired and revoked ones too, oldest first."""
        with migrated_transaction(self._database) as session:
            rows = session.execute(
                _found().where(ApiKey.tenant == self._tenant).order_by(ApiKey.created_at, ApiKey.id)
            )
            return [_key(*row) for row in rows]

    def revoke(self, key_id: str) -> None:
        """Revoke the key; a revoked key keeps its time of revocation.

        Raises:
            NotFound: the tenant has no such key.
        """
        with migrated_transaction(self._database) as session:
            found = session.scalar(
                update(ApiKey)
                .where(ApiKey.id == key_id, ApiKey.tenant == self._tenant)
                .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
                .returning(ApiKey.id)
            )
            if found is None:
                raise NotFound(what="key", value=key_id)


class AllKeys:
    """The keys of all tenants, for authentication and for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key_id: str) -> Key | None:
        """The key, in any state; None: there is none."""
        with migrated_transaction(self._database) as session:
            row = session.execute(_found().where(ApiKey.id == key_id)).one_or_none()
            return None if row is None else _key(*row)

    def exist(self) -> bool:
        """Whether there is any key, in any state."""
        with migrated_transaction(self._database) as session:
            return session.scalar(select(ApiKey.id).limit(1)) is not None

    def link_secret(self) -> bytes:
        """The secret that signs links, of 32 bytes; the same for all gateways."""
        with migrated_transaction(self._database) as session:
            return session.scalars(select(LinkSecret.secret)).one()

    def all(self) -> list[Key]:
        with migrated_transaction(self._database) as session:
            rows = session.execute(_found().order_by(ApiKey.tenant, ApiKey.created_at))
            return [_key(*row) for row in rows]

    def used(self, when: Mapping[str, datetime]) -> None:
        """Record when keys were last used, by their ids."""
        later = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at < bindparam("at"))
        with migrated_transaction(self._database) as session:
            session.connection().execute(
                update(ApiKey)
                .where(ApiKey.id == bindparam("key_id"), later)
                .values(last_used_at=bindparam("at")),
                [{"key_id": key_id, "at": at} for key_id, at in when.items()],
            )

    def forget(self, key_id: str) -> None:
        """Delete the key without a trace."""
        with migrated_transaction(self._database) as session:
            session.execute(delete(ApiKey).where(ApiKey.id == key_id))


def _found() -> Select[ApiKey, bool]:
    """Selects keys, and whether they have expired."""
    return select(ApiKey, ApiKey.expires_at <= func.now())


def _key(row: ApiKey, expired: bool | None) -> Key:
    return Key(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        secret_sha256=row.secret_sha256,
        scopes=frozenset(map(Scope, row.scopes)),
        limits=row.limits,
        created_at=row.created_at,
        expires_at=row.expires_at,
        expired=bool(expired),
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


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
