"""Connections to addresses that a client chose: recordings, webhooks, language models' servers.

Such a URL may lead to publicly reachable addresses only, or to those of EGRESS_ALLOW. Otherwise a
client could reach, through this service, what the network hides from it (server-side request
forgery, owasp.org/www-community/attacks/Server_Side_Request_Forgery). A name is resolved once when
a request is sent, all its addresses are validated, and the connection is pinned to one of them: a
second DNS answer cannot redirect it.

`Outbound` follows no redirects, uses no proxies of the environment, keeps no cookies, and sends no
credentials but those in the headers that it is given.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from string import ascii_letters, digits
from typing import Self

import httpcore
import httpx

from common.errors import SetupProblem, UrlRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Iterable[str]]
"""Resolves a host name and a port to addresses, as text; OSError where there are none."""

MAX_URL_LENGTH = 2_000
MAX_PORT = 65_535
LOOKUP_S = 3.0
"""Timeout of the DNS when a URL is saved."""
LOOKUPS_AT_ONCE = 64
MOST_ADDRESSES = 4
"""How many addresses of one name are tried."""

_HOST_LETTERS = frozenset(ascii_letters + digits + "-._")
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        # IANA's registries of special addresses, where Python's own `is_global` may be older or
        # more generous: iana.org/assignments/iana-ipv4-special-registry, -ipv6-special-registry.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        # Azure's own services on every machine there; public by its number only.
        "168.63.129.16/32",
        # Teredo and other tunnels, benchmarks, ORCHID; documentation; 6to4; documentation.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that IANA has allocated. Loopback, link- and site-local, unique local (fd00:ec2::254
is the metadata service of AWS), multicast and IPv4-mapped addresses lie outside it."""
_NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 as seen from IPv6-only networks (RFC 6052): the last 32 bits are the IPv4 address."""


def is_public(address: Address) -> bool:
    """Whether ``address`` is publicly reachable on the Internet."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            return is_public(embedded)
        if address not in _UNICAST or address.scope_id is not None:
            return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of the system's resolver, in its order, without duplicates."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class AllowList:
    """Networks and hosts that are allowed although they are not public."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "10.1.0.0/16, minio.internal, .example.lan".

        Raises:
            SetupProblem: an entry is neither a network nor a host's name.
        """
        networks: list[Network] = []
        names: list[str] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(entry, strict=False))
            except ValueError:
                if not set(entry) <= _HOST_LETTERS or entry[-1].isdigit():
                    raise SetupProblem(
                        problem=f"EGRESS_ALLOW has an invalid entry: {entry!r}",
                        remedy="Name networks as 10.1.0.0/16, hosts as minio.internal or .lan",
                    ) from None
                names.append(entry.lower())
        return cls(
            networks=tuple(networks),
            hosts=frozenset(name for name in names if not name.startswith(".")),
            suffixes=tuple(name for name in names if name.startswith(".")),
        )

    def has_host(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return name in self.hosts or name.endswith(self.suffixes)

    def has_address(self, address: Address) -> bool:
        plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any((plain or address) in network for network in self.networks)


class Egress:
    """Validates URLs and addresses; ``resolve`` is the only resolver it uses.

    ``allow`` is EGRESS_ALLOW. ``chosen`` is a host, as it is in URLs, that the operator has named
    in another setting.
    """

    def __init__(
        self, allow: str = "", *, chosen: str | None = None, resolve: Resolve = system_addresses
    ) -> None:
        allowed = AllowList.parse(allow)
        if chosen is not None:
            allowed = replace(allowed, hosts=allowed.hosts | {chosen.lower().rstrip(".")})
        self._allow = allowed
        self._resolve = resolve
        # Threads of its own: a slow DNS delays nothing but lookups.
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="lookup")

    async def check(self, url: str, field: str = "url") -> None:
        """Validate a URL that a client wants to save, within `LOOKUP_S`.

        A name that cannot be resolved now passes: it is validated again when it is used.

        Raises:
            UrlRefused: it leads to an address that is not allowed.
        """
        parsed = parse_url(url, field)
        host = parsed.raw_host.decode("ascii")  # as it is resolved when the URL is used
        lookup = self._lookups.submit(self._resolve, host, parsed.port or 0)
        found: Iterable[str] = ()
        with suppress(OSError, UnicodeError, TimeoutError):
            found = await asyncio.wait_for(asyncio.wrap_future(lookup), LOOKUP_S)
        self._validated(host, found, field)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of ``host``, resolved once; all are allowed.

        Raises:
            UrlRefused: at least one is not allowed.
            OSError: the name cannot be resolved.
        """
        lookup = self._lookups.submit(self._resolve, host, port)
        try:
            found = await asyncio.wrap_future(lookup)
        except UnicodeError as error:  # a label is too long for the DNS
            raise OSError(str(error)) from error
        return self._validated(host, found, "url")

    def _validated(self, host: str, found: Iterable[str], field: str) -> list[str]:
        """``found``, where all of it, and an address that ``host`` itself spells, is allowed."""
        addresses = [ip_address(text) for text in found]
        spelled = literal(host)
        for address in [*addresses, *([] if spelled is None else [spelled])]:
            allowed = self._allow.has_host(host) or self._allow.has_address(address)
            if not allowed and not is_public(address):
                leads = "is" if spelled is not None else "leads to"
                raise UrlRefused(
                    field=field, reason=f"{host} {leads} an address that is not public"
                )
        return [str(address) for address in addresses]


def parse_url(text: str, field: str = "url") -> httpx.URL:
    """Parse ``text`` into the URL that is both validated and used.

    Raises:
        UrlRefused: it is not http or https, names no host, or carries a user name.
    """
    if len(text) > MAX_URL_LENGTH:
        raise UrlRefused(field=field, reason=f"it has more than {MAX_URL_LENGTH} characters")
    if "\\" in text or any(letter.isspace() for letter in text):
        raise UrlRefused(field=field, reason="it contains a space or a backslash")
    try:
        url = httpx.URL(text)
        url.host  # noqa: B018 - IDNA names are decoded only when they are read
        host = url.raw_host.decode("ascii", "replace")  # nor are all of them encoded before
    except (httpx.InvalidURL, ValueError):
        raise UrlRefused(field=field, reason="it is not a URL") from None
    if url.scheme not in {"http", "https"}:
        raise UrlRefused(field=field, reason="it begins with neither https:// nor http://")
    if "@" in re.split("[/?#]", text.partition("//")[2], maxsplit=1)[0]:
        raise UrlRefused(field=field, reason="it contains a user name or a password")
    if not host or not (set(host) <= _HOST_LETTERS or _is_ipv6(host)):
        raise UrlRefused(field=field, reason="it names no host")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise UrlRefused(field=field, reason=f"its port must be from 1 to {MAX_PORT}")
    return url.copy_with(fragment=None)


def headers_of(response: httpcore.Response) -> httpx.Headers:
    """The headers of a response; of a repeated one the last value counts."""
    return httpx.Headers(
        {name.lower(): value for name, value in response.headers}, encoding="latin-1"
    )


def literal(host: str) -> Address | None:
    """The address that ``host`` spells, in any notation of the C library (0x7f.1, ...)."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


def _is_ipv6(host: str) -> bool:
    address = literal(host)
    return isinstance(address, IPv6Address) and address.scope_id is None


class _Guarded(httpcore.AnyIOBackend):
    """Connects only to addresses that were validated just before."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._egress.addresses(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the DNS did not answer in time") from error
        except OSError as error:
            raise httpcore.ConnectError("its name cannot be resolved") from error
        failure: httpcore.ConnectError | httpcore.ConnectTimeout
        failure = httpcore.ConnectError("its name has no address")
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await super().connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("Unix sockets are not allowed")


class Outbound:
    """Sends requests to addresses that ``egress`` allows; a new connection for each.

    ``timeout_s`` bounds each operation: to send or to receive, and to connect, if ``connect_s``
    does not. Bound a whole request by `asyncio.timeout`.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        timeout_s: float,
        connect_s: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout = dict.fromkeys(("read", "write", "pool"), timeout_s)
        self._timeout["connect"] = timeout_s if connect_s is None else connect_s
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Guarded(egress),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """Send one request and yield its response, whose body is not read yet.

        Raises:
            UrlRefused: the URL leads to an address that is not allowed.
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: it failed.
        """
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        named = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        async with self._pool.stream(
            method, target, headers=named, content=content, extensions={"timeout": self._timeout}
        ) as response:
            yield response
