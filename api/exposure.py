"""Who can reach the gateway: without any key nobody but this machine."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from loguru import logger

from common.db.database import Database
from common.db.keys import AllKeys
from common.errors import SetupProblem, Unavailable
from common.settings import Settings

LOOPBACK = "127.0.0.1"
PATIENCE_S = 60.0
"""How long Postgres may take to say whether there are keys."""
RETRY_S = 1.0

REMEDY = "make a key with `steno keys create`, or set GATEWAY_API_KEY, and start the gateway again"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listening_host(
    settings: Settings,
    database_url: str | None,
    warn: Callable[[str], None],
    *,
    patience_s: float = PATIENCE_S,
) -> str:
    """Where to listen: as the settings say, or on loopback alone as long as there is no key.

    Raises:
        SetupProblem: Postgres, which has to be asked, does not answer.
    """
    host = settings.api.host
    if is_loopback(host) or settings.key.gateway_api_key is not None or database_url is None:
        return host
    if _has_keys(database_url, patience_s):
        return host
    warn(f"No API key is configured: listening on {LOOPBACK} only, and not on {host}; {REMEDY}")
    return LOOPBACK


def _has_keys(database_url: str, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    with Database(database_url, pool_size=1) as database:
        while True:
            try:
                return AllKeys(database).exist()
            except Unavailable as error:
                if error.final or time.monotonic() > deadline:
                    raise SetupProblem(
                        problem=f"Whether there are API keys is not known: {error}",
                        remedy="Without one the gateway must not listen on API_HOST; "
                        "GATEWAY_API_KEY sets one that needs no database",
                    ) from error
                logger.warning("cannot look for API keys yet: {}", error)
            time.sleep(RETRY_S)
