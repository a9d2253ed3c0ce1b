"""The keys as a gateway process knows them: finding out who asks costs no query a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from loguru import logger

from common.db.keys import AllKeys, Key
from common.domain.keys import same, sha256_of
from common.errors import StenoError

T = TypeVar("T")

REMEMBER_S = 5.0
"""How long an answer of Postgres is good: within this time a key that was taken back or expired is
still taken, and one that was made just now may not be yet."""
MOST_REMEMBERED = 10_000
NOTE_S = 20.0
"""How often it is noted which keys were used."""

_ANY = ""
"""Remembers whether there are keys at all; no key's id is empty."""


class InThread(Protocol):
    """Runs what blocks; see `api.services.Gateway.in_thread`."""

    def __call__(self, call: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


class KeyRing:
    """Looks keys up, each at most once in `REMEMBER_S`, and notes which are used.

    ``own`` is GATEWAY_API_KEY; ``loopback``: only this machine reaches the gateway.
    """

    def __init__(
        self, keys: AllKeys, in_thread: InThread, *, own: str | None, loopback: bool
    ) -> None:
        self._keys = keys
        self._own = None if own is None else sha256_of(own)
        self._loopback = loopback
        self._in_thread = in_thread
        self._known: dict[str, tuple[float, asyncio.Future[Any]]] = {}
        self._used: dict[str, datetime] = {}
        self._noting: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._noting = asyncio.create_task(self._note_for_ever())

    async def close(self) -> None:
        if self._noting is not None:
            self._noting.cancel()
            with suppress(asyncio.CancelledError):
                await self._noting
            await self._note()

    async def find(self, key_id: str) -> Key | None:
        """The key, whatever its state.

        Raises:
            Unavailable: Postgres has to be asked and does not answer.
        """
        found: Key | None = await self._recall(key_id, lambda: self._keys.find(key_id))
        return found

    def is_own(self, sent: str) -> bool:
        """Whether ``sent`` is GATEWAY_API_KEY."""
        return self._own is not None and same(sha256_of(sent), self._own)

    async def is_open(self) -> bool:
        """Whether no key is needed: there is none, and only this machine could ask.

        Raises:
            Unavailable: Postgres has to be asked and does not answer.
        """
        if self._own is not None or not self._loopback:
            return False
        return not await self._recall(_ANY, self._keys.exist)

    def forget(self, key_id: str) -> None:
        """Ask Postgres the next time: the key was changed."""
        self._known.pop(key_id, None)
        self._known.pop(_ANY, None)

    def used(self, key_id: str) -> None:
        """Note, later on, that the key was used just now."""
        self._used[key_id] = datetime.now(UTC).replace(second=0, microsecond=0)

    async def _recall(self, name: str, ask: Callable[[], T]) -> T:
        """What Postgres says, or said lately; many who ask at once ask it once."""
        now = time.monotonic()
        until, answer = self._known.get(name, (0.0, None))
        if answer is None or until < now or (answer.done() and answer.exception() is not None):
            self._known.pop(name, None)
            self._make_room(now)
            answer = asyncio.ensure_future(self._in_thread(ask))
            # Who asked may leave meanwhile, and then nobody hears of its failure.
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._known[name] = (now + REMEMBER_S, answer)
        said: T = answer.result() if answer.done() else await asyncio.shield(answer)
        return said

    def _make_room(self, now: float) -> None:
        """They all live equally long, so the first one is the oldest."""
        while self._known:
            name, (until, _) = next(iter(self._known.items()))
            if until >= now and len(self._known) < MOST_REMEMBERED:
                return
            del self._known[name]

    async def _note_for_ever(self) -> None:
        while True:
            await asyncio.sleep(NOTE_S)
            await self._note()

    async def _note(self) -> None:
        used, self._used = self._used, {}
        if used:
            try:
                await self._in_thread(self._keys.used, used)
            except StenoError as error:  # it is for people's information
                logger.debug("the use of {} keys was not noted: {}", len(used), error)
