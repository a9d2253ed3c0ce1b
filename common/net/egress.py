"""What this service connects to because a client said so: recordings to fetch, and webhooks.

A URL of a client's may lead to public addresses only, or those of EGRESS_ALLOW; anything else would
let the client reach, through this service, what the network hides from it (server-side request
forgery, owasp.org/www-community/attacks/Server_Side_Request_Forgery). Names are judged by where
they lead. At the time of sending a name is looked up once, every address it has is judged, and the
connection is made to one of those very addresses: a second answer of the DNS comes too late.

Redirects are nobody's business here: `Outbound` follows none. Nor does it ask the environment for
proxies, keep cookies, or send any credentials.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
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
"""From a host's name and a port to the addresses it has, as text; OSError: it has none now."""

MAX_URL_LETTERS = 2_000
MAX_PORT = 65_535
LOOKUP_S = 3.0
"""How long saving a URL waits for the DNS."""
LOOKUPS_AT_ONCE = 64
MOST_ADDRESSES = 4
"""Of one name, how many are tried."""

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
"""All that IANA has given out of IPv6: neither loopback, nor link- or site-local, nor unique local
(fd00:ec2::254 is the metadata of AWS), nor multicast, nor IPv4 in disguise lies in it."""
_NAT64 = IPv6Network("64:ff9b::/96")
"""Where networks without IPv4 find it (RFC 6052): its last 32 bits are the address meant."""


def is_public(address: Address) -> bool:
    """Whether anybody on the Internet may be expected to reach ``address`` as we do."""
    if isinstance(address, IPv6Address):
        hidden = address.ipv4_mapped
        if hidden is None and address in _NAT64:
            hidden = IPv4Address(int(address) & 0xFFFF_FFFF)
        if hidden is not None:
            return is_public(hidden)
        if address not in _UNICAST or address.scope_id is not None:
            return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver says, each address once, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class AllowList:
    """Networks and hosts that may be reached although they are not public."""

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
                        problem=f"EGRESS_ALLOW has an entry that means nothing: {entry!r}",
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
    """Judges URLs and addresses; ``resolve`` is the only thing that is asked where names lead."""

    def __init__(self, allow: str = "", *, resolve: Resolve = system_addresses) -> None:
        self._allow = AllowList.parse(allow)
        self._resolve = resolve
        # Of their own, so that a slow DNS holds up nothing but lookups.
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="lookup")

    async def check(self, url: str, field: str = "url") -> None:
        """Judge a URL that a client wants to be kept, within `LOOKUP_S`.

        One whose name cannot be looked up just now may pass: it is judged again when it is used.

        Raises:
            UrlRefused: this service will not go there.
        """
        parsed = parse_url(url, field)
        host = parsed.raw_host.decode("ascii")  # as it is looked up when the URL is used
        lookup = self._lookups.submit(self._resolve, host, parsed.port or 0)
        found: Iterable[str] = ()
        with suppress(OSError, UnicodeError, TimeoutError):
            found = await asyncio.wait_for(asyncio.wrap_future(lookup), LOOKUP_S)
        self._judge(host, found, field)

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where ``host`` leads, looked up once; every address of it may be connected to.

        Raises:
            UrlRefused: at least one may not.
            OSError: it leads nowhere now.
        """
        lookup = self._lookups.submit(self._resolve, host, port)
        try:
            found = await asyncio.wrap_future(lookup)
        except UnicodeError as error:  # a label is too long to be looked up
            raise OSError(str(error)) from error
        return self._judge(host, found, "url")

    def _judge(self, host: str, found: Iterable[str], field: str) -> list[str]:
        """All of ``found``, and what ``host`` itself spells."""
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
    """``text`` as the URL that will be used: judged and connected to are one and the same.

    Raises:
        UrlRefused: it is none of http or https, names no host, or carries a user's name.
    """
    if len(text) > MAX_URL_LETTERS:
        raise UrlRefused(field=field, reason=f"it has more than {MAX_URL_LETTERS} characters")
    if "\\" in text or any(letter.isspace() for letter in text):
        raise UrlRefused(field=field, reason="it has a space or a backslash in it")
    try:
        url = httpx.URL(text)
        url.host  # noqa: B018 - a name that begins like one of IDNA's is decoded only now
    except (httpx.InvalidURL, ValueError):
        raise UrlRefused(field=field, reason="it is not a URL") from None
    if url.scheme not in {"http", "https"}:
        raise UrlRefused(field=field, reason="it begins with neither https:// nor http://")
    if "@" in re.split("[/?#]", text.partition("//")[2], maxsplit=1)[0]:
        raise UrlRefused(field=field, reason="it has a user name or a password in it")
    host = url.raw_host.decode("ascii", "replace")
    if not host or not (set(host) <= _HOST_LETTERS or _is_ipv6(host)):
        raise UrlRefused(field=field, reason="it names no host")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise UrlRefused(field=field, reason="there is no such port")
    return url.copy_with(fragment=None)


def literal(host: str) -> Address | None:
    """The address that ``host`` spells, in any of the ways the C library reads (0x7f.1, ...)."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return None


def _is_ipv6(host: str) -> bool:
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to nothing but addresses that were judged a moment before."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._network = httpcore.AnyIOBackend()

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
            raise httpcore.ConnectTimeout("the DNS gave no answer") from error
        except OSError as error:
            raise httpcore.ConnectError("its name cannot be resolved") from error
        failure: httpcore.ConnectError | httpcore.ConnectTimeout
        failure = httpcore.ConnectError("its name has no address")
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("no URL leads to a Unix socket")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Outbound:
    """Sends requests where ``egress`` lets it; a new connection for each.

    ``patience_s`` is how long any one step of it may take: to connect, or to send or hear something
    more. Who wants an end to all of it uses `asyncio.timeout`.
    """

    def __init__(
        self, egress: Egress, *, patience_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._timeout = dict.fromkeys(("connect", "read", "write", "pool"), patience_s)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Guarded(egress),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """Send one request and give its response, whose body is still to come.

        Raises:
            UrlRefused: the URL leads where this service does not go.
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: as they say.
        """
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        named = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        async with self._pool.stream(
            method, target, headers=named, content=content, extensions={"timeout": self._timeout}
        ) as response:
            yield response
