"""Who calls, for which tenant, and with which scopes."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Security, WebSocket
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPBase
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from api.auth.exposure import check_is_local
from api.auth.key_cache import GATEWAY_KEY, KeyCache
from api.auth.links import Links
from api.auth.rate_limits import RateLimiter
from api.http.bodies import has_unread_body
from api.http.headers import answer_with
from api.http.problems import ClosingAnswer, Problem, problem
from api.services import Services, ServicesDep
from common.db.jobs import NewJob
from common.db.keys import Key
from common.db.usage import Quota
from common.domain.keys import (
    DEFAULT_TENANT,
    NO_LIMITS,
    TENANT_PATTERN,
    KeyText,
    Limits,
    Scope,
    is_tenant,
    sha256_of,
)
from common.errors import Forbidden, LinkInvalid, OutOfRange, RateLimited, Unauthorised, Unavailable

_NOBODY = sha256_of("")
"""Compared with where there is no such key, so that both cases take the same time."""
_EVERYTHING = frozenset(Scope)

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="Bearer",
    description="An API key, as `steno keys create` prints it.",
)
_basic = HTTPBase(
    scheme="basic",
    auto_error=False,
    scheme_name="Basic",
    description="An API key as the password, for clients that take it from their URL; the user "
    "name is ignored.",
)
_header = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    scheme_name="ApiKey",
    description="An API key in a header of its own.",
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request; ``key_id`` is None where no key is required."""

    tenant: str
    key_id: str | None
    scopes: frozenset[Scope]
    limits: Limits = NO_LIMITS

    @property
    def quota(self) -> Quota:
        return Quota.of(self.limits)

    def attributed(self, request: Request, job: NewJob) -> NewJob:
        """The job, recorded as this caller's and as made by ``request``."""
        return replace(
            job, key_id=self.key_id, quota=self.quota, request_id=request.state.request_id
        )


_ANYBODY = Caller(DEFAULT_TENANT, None, _EVERYTHING)
_OPERATOR = Caller(DEFAULT_TENANT, GATEWAY_KEY, _EVERYTHING)


async def _shown(
    request: HTTPConnection,
    _bearer: Annotated[object, Security(_bearer)],
    _basic: Annotated[object, Security(_basic)],
    _header: Annotated[object, Security(_header)],
) -> str | None:
    return key_in(request.headers)


def key_in(headers: Headers) -> str | None:
    """The key in a request's headers, not yet checked."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    shown = ""
    if scheme.lower() == "bearer":
        shown = credentials.strip()
    # A browser adds a password by itself, also to requests from pages of other sites.
    elif scheme.lower() == "basic" and headers.get("sec-fetch-site") in {
        None,
        "none",
        "same-origin",
    }:
        shown = _password(credentials)
    return headers.get("x-api-key") or shown or None


def _password(credentials: str) -> str:
    """The password of HTTP Basic (RFC 7617), or a user name without one; "" if malformed."""
    try:
        user, _, password = b64decode(credentials.strip(), validate=True).decode().partition(":")
    except ValueError:
        return ""
    return password or user


Shown = Annotated[str | None, Depends(_shown)]
"""The key that a request was sent with, not yet checked."""
WantedTenant = Annotated[
    str | None,
    Header(
        alias="X-Tenant-Id",
        description="The tenant, for a key with the scope admin or where no key is required; "
        "any other key belongs to one tenant.",
        json_schema_extra={"pattern": TENANT_PATTERN},
    ),
]


async def _caller(
    request: HTTPConnection, services: ServicesDep, sent: Shown, x_tenant_id: WantedTenant = None
) -> Caller:
    caller = await _identify(services, sent)
    return await _admitted(request, services, caller, x_tenant_id)


async def _admitted(
    request: HTTPConnection, services: Services, caller: Caller, tenant: str | None
) -> Caller:
    """The caller, for ``tenant`` if one is named, once the request is counted."""
    if caller.key_id is not None:
        await _count(request, services, caller.key_id, caller.limits)
    return caller if tenant is None else _as_tenant(caller, tenant)


async def caller_of(
    websocket: WebSocket, services: Services, scope: Scope, sent: str | None
) -> Caller:
    """Who opens a WebSocket, with its key in a header or, sent by other means, in ``sent``.

    Raises:
        Unauthorised, Forbidden, RateLimited, OutOfRange: as for a request.
    """
    headers = websocket.headers
    shown = key_in(headers) or sent
    caller = await _caller(websocket, services, shown, headers.get("x-tenant-id"))
    _check_scope(caller, scope)
    return caller


async def _identify(services: Services, sent: str | None) -> Caller:
    """The holder of the key ``sent``."""
    if await services.get(KeyCache).is_open():  # to this machine only: see `LocalOnly`
        return _ANYBODY
    if not sent:
        reason = "An API key is required, as `Authorization: Bearer ...` or `X-API-Key: ...`"
        raise Unauthorised(reason=reason)
    if services.get(KeyCache).is_own(sent):
        return _OPERATOR
    return await _holder(services, KeyText.parse(sent))


async def _holder(services: Services, shown: KeyText | None) -> Caller:
    if shown is None:
        raise Unauthorised(reason="Unknown API key")
    stored = await services.get(KeyCache).find(shown.id)
    right = compare_digest(shown.sha256, _NOBODY if stored is None else stored.secret_sha256)
    if stored is None or not right:
        raise Unauthorised(reason="Unknown API key")
    if stored.state != "active":
        raise Unauthorised(reason=f"The API key {stored.id} is {stored.state}")
    return _with_key(services, stored)


def _with_key(services: Services, stored: Key) -> Caller:
    services.get(KeyCache).used(stored.id)
    scopes = _EVERYTHING if Scope.ADMIN in stored.scopes else stored.scopes
    limits = services.settings.limit.limits.but(stored.limits)
    return Caller(stored.tenant, stored.id, scopes, limits)


async def _count(request: HTTPConnection, services: Services, key_id: str, limits: Limits) -> None:
    """Count the request, and report the remaining ones in the response's headers."""
    window = await services.get(RateLimiter).count(key_id, limits)
    if window is None:
        return
    answer_with(request.scope, window.headers())
    if window.is_over:
        raise RateLimited(
            field=window.field,
            period=window.field.rpartition("_")[2],
            limit=window.limit,
            value=window.count,
            retry_after_s=window.reset_s,
        )


def _as_tenant(caller: Caller, tenant: str) -> Caller:
    if not is_tenant(tenant):
        limit = "1 to 64 letters, digits, dots, underscores or hyphens"
        raise OutOfRange(field="X-Tenant-Id", limit=limit, value=tenant[:200])
    if tenant == caller.tenant:
        return caller
    if Scope.ADMIN not in caller.scopes:
        reason = "X-Tenant-Id names another tenant than the key's, which requires the scope admin"
        raise Forbidden(reason=reason)
    return Caller(tenant, caller.key_id, caller.scopes, caller.limits)


def _with(scope: Scope) -> Callable[..., Coroutine[Any, Any, Caller]]:
    async def allowed(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        _check_scope(caller, scope)
        return caller

    return allowed


def _check_scope(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise Forbidden(reason=f"The API key does not have the scope {scope}")


async def _reader_or_link(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    sent: Shown,
    x_tenant_id: WantedTenant = None,
    link: Annotated[
        str | SkipJsonSchema[None],
        Query(description="The signature of a link, which needs no key; see `/jobs/{id}/links`."),
    ] = None,
) -> Caller:
    if link is None:
        caller = await _caller(request, services, sent, x_tenant_id)
    else:
        query = request.query_params.multi_items()
        signed = await services.get(Links).read(link, job_id, query)
        maker = await _maker(services, signed.key_id)
        caller = await _admitted(request, services, maker, signed.tenant)
    _check_scope(caller, Scope.READ)
    return caller


async def _maker(services: Services, key_id: str | None) -> Caller:
    """The holder of the key that a link was made with, if it is still valid."""
    keys = services.get(KeyCache)
    if key_id is None:
        if await keys.is_open():
            return _ANYBODY
        raise LinkInvalid(reason="it was made when no API key was required")
    if key_id == GATEWAY_KEY:  # which the signature names by its hash
        return _OPERATOR
    stored = await keys.find(key_id)
    if stored is None or stored.state != "active":
        state = "unknown" if stored is None else stored.state
        raise LinkInvalid(reason=f"the API key that made it is {state}")
    return _with_key(services, stored)


async def may_read_metrics(services: ServicesDep, sent: Shown) -> None:
    """Require the scope admin, unless METRICS_OPEN is set.

    Raises:
        Unauthorised, Forbidden: the caller does not have it.
    """
    if services.settings.metrics.open:
        return
    _check_scope(await _identify(services, sent), Scope.ADMIN)


Reader = Annotated[Caller, Depends(_with(Scope.READ))]
LinkedReader = Annotated[Caller, Depends(_reader_or_link)]
"""A reader, or who has a link that one has made."""
Transcriber = Annotated[Caller, Depends(_with(Scope.TRANSCRIBE))]
Admin = Annotated[Caller, Depends(_with(Scope.ADMIN))]


class LocalOnly:
    """As long as no key is required, rejects requests that are not sent from this machine."""

    def __init__(self, app: ASGIApp, *, origins: Collection[str], probes: Collection[str]) -> None:
        self._app = app
        self._origins = origins
        self._probes = probes

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and (answer := await self._rejection(scope)):
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _rejection(self, scope: AsgiScope) -> Problem | ClosingAnswer | None:
        request = HTTPConnection(scope)
        try:
            client = None if request.client is None else request.client.host
            check_is_local(client, request.headers, self._origins)
        except Forbidden as rejected:
            try:
                if not await request.state.services.get(KeyCache).is_open():
                    return None
                answer = problem(rejected)
            except Unavailable as error:
                if scope["path"] in self._probes:
                    return None
                answer = problem(error)
            return ClosingAnswer(answer) if has_unread_body(scope) else answer
        return None
