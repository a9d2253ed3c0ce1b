"""Who can reach the gateway: as long as there is no API key, only this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from common.db.database import Database
from common.db.keys import AllKeys
from common.errors import Forbidden, SetupProblem, Unavailable
from common.net.reach import wait_for
from common.settings import Settings

LOOPBACK = "127.0.0.1"

FORWARDED = frozenset(
    {
        *("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip"),
        *("true-client-ip", "cf-connecting-ip", "cf-ray", "fastly-client-ip", "fly-client-ip"),
        *("x-envoy-external-address", "x-azure-clientip"),
    }
)
FORWARDED_AS = ("x-forwarded", "x-original-")
"""Headers that proxies add, and prefixes of further ones."""

OTHERS_PAGES = frozenset({"cross-site", "same-site"})
"""Sec-Fetch-Site of requests from other origins; another port of localhost is the same site."""

KEY = "create a key with `steno keys create`, or set GATEWAY_API_KEY"
REMEDY = f"{KEY}, then restart the gateway"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_is_local(
    client: str | None, headers: Mapping[str, str], origins: Collection[str]
) -> None:
    """Reject a request that comes through a proxy, or from a page of another site.

    ``client`` is the address that it comes from; pages of ``origins`` are allowed. Any web page can
    make a browser on this machine send requests here: its host name may resolve to this machine
    (DNS rebinding), and it may embed local addresses or submit forms to them. The headers Host,
    Origin and Sec-Fetch-Site, which no page can forge, show that.

    Raises:
        Forbidden: it was not sent directly from this machine.
    """
    proxied = [name for name in headers if name in FORWARDED or name.startswith(FORWARDED_AS)]
    if proxied or (client is not None and not is_loopback(client)):
        through = f" ({proxied[0]})" if proxied else ""
        raise Forbidden(
            reason="Without an API key only requests from this machine are accepted, and none "
            f"through a proxy{through}; {KEY}"
        )
    host = headers.get("host", "")
    if not is_loopback(_name_in(host)):
        reason = f"Without an API key only the host localhost is accepted, not {host[:200]!r}"
        raise Forbidden(reason=f"{reason}; {KEY}")
    origin = headers.get("origin")
    is_known = origin in (f"http://{host}", *origins)
    if origin is not None and not is_known:
        reason = f"Without an API key no requests are accepted from pages of {origin[:200]!r}"
        raise Forbidden(reason=f"{reason}; allow it in CORS_ORIGINS, or {KEY}")
    if headers.get("sec-fetch-site", "").lower() in OTHERS_PAGES and not is_known:
        reason = "Without an API key pages of other sites may neither embed this nor link to it"
        raise Forbidden(reason=f"{reason}; enter the address by hand, or {KEY}")


def _name_in(host: str) -> str:
    """The name or address in a Host header; empty where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def listening_host(
    settings: Settings, database_url: str | None, warn: Callable[[str], None]
) -> str:
    """The host to listen on: API_HOST, or only loopback as long as there is no key.

    Raises:
        SetupProblem: Postgres, which stores the keys, is unavailable.
    """
    host = settings.api.host
    if is_loopback(host) or settings.key.gateway_api_key is not None or database_url is None:
        return host
    if _has_keys(database_url):
        return host
    warn(f"No API key is configured: listening on {LOOPBACK} only, and not on {host}; {REMEDY}")
    return LOOPBACK


def _has_keys(database_url: str) -> bool:
    with Database(database_url, pool_size=1) as database:
        try:
            return wait_for(AllKeys(database).exist)
        except Unavailable as error:
            raise SetupProblem(
                problem=f"The API keys cannot be read: {error}",
                remedy="Without a key the gateway must not listen on API_HOST; "
                "GATEWAY_API_KEY sets one that needs no database",
            ) from error
