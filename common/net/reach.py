"""Why Postgres or Redis is out of reach, in words for the log, and how long to wait for them.

The words are the server's own, with the setting to look at: never a URL, which may hold a password.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from loguru import logger
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from common.errors import SetupProblem, Unavailable

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a process waits at its start for servers that start as well."""
RETRY_S = 1.0
REMIND_S = 10.0

PASSWORD = ("password", "authentication")
LASTING = (*PASSWORD, "does not exist", "pg_hba.conf", "not permitted")
"""Parts of what Postgres says to those whom it will go on to refuse. Anything else may pass: it
starts, or stops, or has too many clients, or a pooler before it has not found it yet."""
LONGEST = 300


def postgres_trouble(error: BaseException | None) -> str:
    """What went wrong with a connection to Postgres, and where to look."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]
    said = said.removeprefix("connection failed: ")
    wrong_password = any(word in said for word in PASSWORD)
    where = "DATABASE_PASSWORD, or the one in DATABASE_URL" if wrong_password else "DATABASE_URL"
    return f"{said} (see {where})"


def postgres_refuses(error: BaseException | None) -> bool:
    """Whether Postgres is there and will go on to refuse, as it does with a wrong password."""
    said = str(error)
    _, _, refusal = said.partition("FATAL")
    return "no password supplied" in said or any(words in refusal for words in LASTING)


def redis_trouble(error: Exception) -> Unavailable:
    """What a failed command means."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]
    where = "REDIS_URL or REDIS_HOST"
    if isinstance(error, AuthenticationError):
        where = "REDIS_PASSWORD, or the one in REDIS_URL"
        if "already authenticated" in said:  # an answer to those who send none
            said = "it wants a password"
    return Unavailable(
        what="Redis",
        reason=f"{said} (see {where})",
        final=isinstance(error, AuthenticationError | ResponseError),
    )


def malformed(setting: str, form: str) -> SetupProblem:
    """A URL that cannot be read, of which nothing is told: it may hold a password."""
    return SetupProblem(
        problem=f"{setting} cannot be read",
        remedy=f"It is {form}, with %-encoded special characters in the password",
    )


def wait_for(look: Callable[[], T]) -> T:
    """What ``look`` returns, once what it needs is there; it is told now and then what is missing.

    Raises:
        Unavailable: `PATIENCE_S` were not enough, or no time would be.
    """
    started = time.monotonic()
    reminded = -REMIND_S
    while True:
        try:
            return look()
        except (Unavailable, RedisError) as failure:
            error = failure if isinstance(failure, Unavailable) else redis_trouble(failure)
            waited_s = time.monotonic() - started
            if error.final or waited_s >= PATIENCE_S:
                raise error from failure
            if waited_s - reminded >= REMIND_S:
                reminded = waited_s
                logger.warning("waiting: {}", error)
        time.sleep(RETRY_S)
