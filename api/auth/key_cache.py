"""A cache of API keys: most requests are authenticated without a query."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Any, TypeVar

from loguru import logger

from api.cache import SingleFlight
from common.db.keys import AllKeys, Key
from common.domain.keys import sha256_of
from common.errors import StenoError

T = TypeVar("T")

GATEWAY_KEY = "gateway"
"""The id of GATEWAY_API_KEY; the ids of stored keys are longer."""
CACHED_S = 5.0
"""How long an entry is valid. Within this time a key that was revoked or has expired is still
accepted, and one that was just created may not be."""
MOST_CACHED = 10_000
USE_S = 20.0
"""How often the use of keys is written to Postgres."""

_ANY = ""
"""The entry for whether there are any keys; no key's id is empty."""
_LINKS = "links"
"""The entry for the secret that signs links; no key's id is so short."""


InThread = Callable[..., Awaitable[Any]]
"""Runs what blocks; see `api.services.Services.in_thread`."""


class KeyCache:
    """Looks keys up, each at most once in `CACHED_S`, and records their use.

    ``own`` is GATEWAY_API_KEY; ``loopback``: the gateway listens on loopback only.
    """

    def __init__(
        self, keys: AllKeys, in_thread: InThread, *, own: str | None, loopback: bool
    ) -> None:
        self._keys = keys
        self._own = None if own is None else sha256_of(own)
        self._loopback = loopback
        self._in_thread = in_thread
        self._known: dict[str, SingleFlight[Any]] = {}
        self._used: dict[str, datetime] = {}
        self._writing: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._writing = asyncio.create_task(self._write_uses_forever())

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            with suppress(asyncio.CancelledError):
                await self._writing
            await self._write_uses()

    async def find(self, key_id: str) -> Key | None:
        """The key, whatever its state.

        Raises:
            Unavailable: the key is not cached, and Postgres is unavailable.
        """
        found: Key | None = await self._cached(key_id, lambda: self._keys.find(key_id))
        return found

    async def link_secret(self) -> bytes:
        """The secret that signs links.

        Raises:
            Unavailable: it is not cached, and Postgres is unavailable.
        """
        secret: bytes = await self._cached(_LINKS, self._keys.link_secret)
        return secret

    @property
    def own_sha256(self) -> str | None:
        """The hash of GATEWAY_API_KEY; None: it is not set."""
        return self._own

    def is_own(self, sent: str) -> bool:
        """Whether ``sent`` is GATEWAY_API_KEY."""
        return self._own is not None and compare_digest(sha256_of(sent), self._own)

    async def is_open(self) -> bool:
        """Whether no key is required: there is none, and only this machine can connect.

        Raises:
            Unavailable: the key is not cached, and Postgres is unavailable.
        """
        if self._own is not None or not self._loopback:
            return False
        return not await self._cached(_ANY, self._keys.exist)

    def forget(self, key_id: str) -> None:
        """Drop the key from the cache: it was changed."""
        self._known.pop(key_id, None)
        self._known.pop(_ANY, None)

    def used(self, key_id: str) -> None:
        """Record that the key is being used now; it is written later."""
        self._used[key_id] = datetime.now(UTC).replace(second=0, microsecond=0)

    async def _cached(self, name: str, query: Callable[[], T]) -> T:
        entry = self._known.pop(name, None)
        if entry is None:
            entry = SingleFlight(lambda: self._in_thread(query), cached_s=CACHED_S)
        self._known[name] = entry  # the least recently used one comes first
        if len(self._known) > MOST_CACHED:
            del self._known[next(iter(self._known))]
        value: T = await entry.get()
        return value

    async def _write_uses_forever(self) -> None:
        while True:
            await asyncio.sleep(USE_S)
            await self._write_uses()

    async def _write_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            try:
                await self._in_thread(self._keys.used, used)
            except StenoError as error:  # it is only informative
                logger.debug("the use of {} keys was not recorded: {}", len(used), error)
