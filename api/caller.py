"""Who asks, for which tenant, and what they may do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Header

DEFAULT_TENANT = "default"


class Scope(StrEnum):
    """What a key is good for."""

    TRANSCRIBE = "transcribe"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request; ``key_id`` is None where no key is needed."""

    tenant: str
    key_id: str | None
    scopes: frozenset[Scope]


async def _caller(
    x_tenant_id: Annotated[
        str, Header(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Whose jobs these are.")
    ] = DEFAULT_TENANT,
) -> Caller:
    return Caller(x_tenant_id, None, frozenset(Scope))


def _with(scope: Scope) -> Callable[..., Coroutine[Any, Any, Caller]]:
    async def allowed(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        assert scope in caller.scopes  # noqa: S101
        return caller

    return allowed


Reader = Annotated[Caller, Depends(_with(Scope.READ))]
Transcriber = Annotated[Caller, Depends(_with(Scope.TRANSCRIBE))]
Admin = Annotated[Caller, Depends(_with(Scope.ADMIN))]
