"""Tenants' own servers of language models."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from common.db.database import Database
from common.db.tables import StoredChatServer
from common.db.vault import Cipher
from common.errors import ChatKeyLocked, NotFound


@dataclass(frozen=True, slots=True)
class NewChatServer:
    """A server to store; tokens of None: those of the settings."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    context_tokens: int | None = None
    max_output_tokens: int | None = None


class ChatServers:
    """The server of one tenant."""

    def __init__(self, database: Database, tenant: str, cipher: Cipher) -> None:
        """``cipher`` is that of `common.db.vault.CHAT_KEYS`."""
        self._database = database
        self._tenant = tenant
        self._cipher = cipher

    def find(self) -> StoredChatServer | None:
        """The tenant's server; None: it has none of its own."""
        with self._database.transaction() as session:
            return session.get(StoredChatServer, self._tenant)

    def put(self, server: NewChatServer) -> StoredChatServer:
        """Store a server in place of the one before, its key included."""
        values = {
            "base_url": server.base_url,
            "model": server.model,
            "api_key": None if server.api_key is None else self._cipher.seal(server.api_key),
            "context_tokens": server.context_tokens,
            "max_output_tokens": server.max_output_tokens,
            "updated_at": func.now(),
        }
        statement = insert(StoredChatServer).values(tenant=self._tenant, **values)
        with self._database.transaction() as session:
            return session.scalars(
                statement.on_conflict_do_update(
                    index_elements=[StoredChatServer.tenant], set_=values
                ).returning(StoredChatServer)
            ).one()

    def remove(self) -> None:
        """Delete it with its key: the tenant uses that of the settings again.

        Raises:
            NotFound: there is none.
        """
        removed = delete(StoredChatServer).where(StoredChatServer.tenant == self._tenant)
        with self._database.transaction() as session:
            if session.scalar(removed.returning(StoredChatServer.tenant)) is None:
                raise NotFound(what="language model server of tenant", value=self._tenant)


def all_chat_servers(database: Database) -> list[StoredChatServer]:
    """Those of all tenants, by tenant; for operators."""
    with database.transaction() as session:
        return list(session.scalars(select(StoredChatServer).order_by(StoredChatServer.tenant)))


def key_of(server: StoredChatServer, cipher: Cipher) -> str | None:
    """The key of a server; None: it wants none.

    Raises:
        ChatKeyLocked: it cannot be decrypted.
    """
    if server.api_key is None:
        return None
    key = cipher.open(server.api_key)
    if key is None:
        raise ChatKeyLocked(cause=cipher.lack)
    return key


def seal_chat_keys(database: Database, cipher: Cipher) -> tuple[int, int]:
    """Encrypt every key again; returns how many succeeded, and how many failed."""
    done = locked = 0
    with database.transaction() as session:
        has_key = StoredChatServer.api_key.is_not(None)
        for row in session.scalars(select(StoredChatServer).where(has_key).with_for_update()):
            try:
                key = key_of(row, cipher)
            except ChatKeyLocked:
                locked += 1
            else:
                row.api_key = None if key is None else cipher.seal(key)
                done += 1
    return done, locked
