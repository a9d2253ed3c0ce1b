"""Why Postgres or Redis is unavailable, as text for the log, and waiting for them at start-up.

The text is the server's own, with the setting to check. It never has a URL: that may contain a
password.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from loguru import logger
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from common.errors import SetupProblem, Unavailable

T = TypeVar("T")

STARTUP_TIMEOUT_S = 60.0
"""How long a starting process waits for servers that are starting, too."""
RETRY_S = 1.0
REMIND_S = 10.0

PASSWORD = ("password", "authentication")
PERMANENT = (*PASSWORD, "does not exist", "pg_hba.conf", "not permitted")
"""Parts of Postgres' messages when it will keep rejecting us. All others may be temporary: it is
starting or stopping, has too many clients, or a pooler in front of it has not found it yet."""
MAX_LENGTH = 300


def postgres_trouble(error: BaseException | None) -> str:
    """Why a connection to Postgres failed, and which setting to check."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_LENGTH]
    text = text.removeprefix("connection failed: ")
    wrong_password = any(word in text for word in PASSWORD)
    where = "DATABASE_PASSWORD, or the one in DATABASE_URL" if wrong_password else "DATABASE_URL"
    return f"{text} (see {where})"


def postgres_rejects(error: BaseException | None) -> bool:
    """Whether Postgres answers and will keep rejecting us, as with a wrong password."""
    text = str(error)
    _, _, rejection = text.partition("FATAL")
    return "no password supplied" in text or any(part in rejection for part in PERMANENT)


def redis_trouble(error: Exception) -> Unavailable:
    """The error for a failed command."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_LENGTH]
    where = "REDIS_URL or REDIS_HOST"
    if isinstance(error, AuthenticationError):
        where = "REDIS_PASSWORD, or the one in REDIS_URL"
        if "already authenticated" in text:  # Redis' answer to a client without a password
            text = "it needs a password"
    return Unavailable(
        what="Redis",
        reason=f"{text} (see {where})",
        final=isinstance(error, AuthenticationError | ResponseError),
    )


def malformed(setting: str, form: str) -> SetupProblem:
    """The error for a malformed URL, without the URL: it may contain a password."""
    return SetupProblem(
        problem=f"{setting} cannot be read",
        remedy=f"It is {form}, with %-encoded special characters in the password",
    )


def wait_for(connect: Callable[[], T]) -> T:
    """What ``connect`` returns, once its server is available; logs now and then what is not.

    Raises:
        Unavailable: it is not within `STARTUP_TIMEOUT_S`, or waiting will not help.
    """
    started = time.monotonic()
    logged_s = -REMIND_S
    while True:
        try:
            return connect()
        except (Unavailable, RedisError) as failure:
            error = failure if isinstance(failure, Unavailable) else redis_trouble(failure)
            waited_s = time.monotonic() - started
            if error.final or waited_s >= STARTUP_TIMEOUT_S:
                raise error from failure
            if waited_s - logged_s >= REMIND_S:
                logged_s = waited_s
                logger.warning("waiting: {}", error)
        time.sleep(RETRY_S)
