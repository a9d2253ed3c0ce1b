"""Limits on the connections of a gateway process, in all and for each address.

A connection waits for a request's head, or works on a request. When the limit is reached, the one
that has waited longest is closed. So a client that sends its head at once is answered, however many
others only hold connections. One that works is never closed for another.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from loguru import logger
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

BACKLOG = 2048
"""Connections that the kernel accepts before this process does; asyncio takes so many at once."""
OTHER_FILES = 256
"""Descriptors kept for everything else: files, Postgres, Redis, child processes."""
QUIET_S = 60.0
"""Least time between two warnings of a kind."""
EACH_V6 = 64
"""Bits of an IPv6 address that one client is given (RFC 6177)."""


class Proxies(Protocol):
    """Addresses whose connections carry the requests of many clients."""

    def __contains__(self, host: str | None) -> bool: ...


class Closable(Protocol):
    """A connection that `Connections` may close."""

    def make_room(self) -> None:
        """Close at once."""


@dataclass(slots=True)
class _Client:
    held: int = 0
    waiting: dict[Closable, None] = field(default_factory=dict)
    """In the order in which they began to wait."""


class Connections:
    """Those of one process. Each of ``proxies`` may have any number."""

    def __init__(self, *, most: int, most_each: int, proxies: Proxies) -> None:
        self._most = most
        self._most_each = most_each
        self._proxies = proxies
        self._client_of: dict[Closable, str] = {}
        self._clients: dict[str, _Client] = {}
        self._waiting: dict[Closable, None] = {}
        self._no_room = ThrottledWarning(
            "{} connections were closed or rejected: the limit was reached"
        )

    @classmethod
    def within(cls, most: int, *, most_each: int, proxies: str) -> Connections:
        """At most ``most``, or fewer where the system's limit of open files asks for it.

        ``proxies`` are addresses and networks as in API_FORWARDED_ALLOW_IPS.
        """
        return cls(
            most=max(1, min(most, descriptors() - backlog() - OTHER_FILES)),
            most_each=most_each,
            proxies=_trusted(proxies),
        )

    def __len__(self) -> int:
        return len(self._client_of)

    @property
    def waiting(self) -> int:
        """How many wait for a request."""
        return len(self._waiting)

    def admit(self, connection: Closable, address: str) -> bool:
        """Take a new connection, which waits; False: the limit is reached, none can be closed."""
        is_proxy = address in self._proxies
        name = address if is_proxy else client_of(address)
        client = self._clients.get(name)
        full_by_itself = client is not None and client.held >= self._most_each and not is_proxy
        if full_by_itself or len(self) >= self._most:
            self._no_room.happened()
            waiting = client.waiting if client is not None and full_by_itself else self._waiting
            oldest = next(iter(waiting), None)
            if oldest is None:
                return False
            self.closed(oldest)
            oldest.make_room()
        self._clients.setdefault(name, _Client()).held += 1
        self._client_of[connection] = name
        self.waits(connection)
        return True

    def waits(self, connection: Closable) -> None:
        """From now on it waits for its next request."""
        if (name := self._client_of.get(connection)) is not None:
            for waiting in (self._waiting, self._clients[name].waiting):
                waiting.pop(connection, None)
                waiting[connection] = None

    def works(self, connection: Closable) -> None:
        """It has received a request's head."""
        if (name := self._client_of.get(connection)) is not None:
            self._waiting.pop(connection, None)
            self._clients[name].waiting.pop(connection, None)

    def becomes(self, connection: Closable, other: Closable) -> None:
        """Hand the connection over to another protocol, as one that works."""
        self.works(connection)
        if (name := self._client_of.pop(connection, None)) is not None:
            self._client_of[other] = name

    def closed(self, connection: Closable) -> None:
        """It is closed; calling this twice is harmless."""
        self.works(connection)
        if (name := self._client_of.pop(connection, None)) is not None:
            client = self._clients[name]
            client.held -= 1
            if not client.held:
                del self._clients[name]


def _trusted(proxies: str) -> Proxies:
    """The addresses and networks that API_FORWARDED_ALLOW_IPS names, as uvicorn reads it."""

    async def nothing(*_: object) -> None:
        """Stands for the application, which is never called."""

    return ProxyHeadersMiddleware(nothing, proxies).trusted_hosts


class ThrottledWarning:
    """A warning of frequent events, logged at most once in `QUIET_S` with their number."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._count = 0
        self._quiet_until = float("-inf")

    def happened(self) -> None:
        """Count an event, and log the number unless a warning was logged within `QUIET_S`."""
        self._count += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            logger.warning(self._message, self._count)
            self._count, self._quiet_until = 0, now + QUIET_S


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """What is counted as one client: an address of IPv4, a /64 network of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), EACH_V6), strict=False))
    return address


def raise_descriptor_limit() -> None:
    """Raise this process' limit of open files as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports no limit and accepts fewer
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def backlog() -> int:
    """`BACKLOG`, or less where there are few descriptors."""
    return min(BACKLOG, descriptors() // 4)


def descriptors() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def throttle_accept_warnings(loop: asyncio.AbstractEventLoop) -> None:
    """Log that connections cannot be accepted once in `QUIET_S`; asyncio logs each failure."""
    warning = ThrottledWarning(
        "{} connections could not be accepted: no file descriptors or memory are left"
    )
    before: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith("socket.accept()"):
            warning.happened()
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def throttle_request_warnings() -> None:
    """Log requests that are not HTTP once in `QUIET_S`; uvicorn logs each."""
    warning = ThrottledWarning("{} requests were not HTTP, or asked for another protocol")

    def is_another(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(("Invalid HTTP request", "Unsupported upgrade")):
            warning.happened()
            return False
        return True

    logging.getLogger("uvicorn.error").addFilter(is_another)
