"""Routes for administrators to create, list and revoke API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, status
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

from api.auth.callers import Admin
from api.auth.key_cache import KeyCache
from api.http.fields import Document, RequestDocument
from api.http.problems import documented
from api.services import ServicesDep
from common.db.keys import Keys
from common.domain.keys import ID_PATTERN, Scope

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[str, Path(pattern=ID_PATTERN)]

MAX_EXPIRY_S = 10 * 366 * 86_400


class OwnLimits(RequestDocument):
    """Where a key's limits differ from the settings (LIMIT_...); 0: no limit."""

    requests_per_second: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    requests_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    concurrent_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    concurrent_streams: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    audio_hours_per_day: Annotated[float, Field(ge=0, le=1_000_000)] | None = None

    def given(self) -> dict[str, float]:
        given: dict[str, float] = self.model_dump(exclude_none=True)
        return given


class NewKey(RequestDocument):
    """A key to create."""

    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
        Field(examples=["the call centre"], pattern=r"^[^\x00-\x1f\x7f]*$"),
    ]
    """What the key is for."""
    scopes: list[Scope] = Field([Scope.TRANSCRIBE, Scope.READ], min_length=1, max_length=3)
    """transcribe: submit and cancel; read: status, text and files; admin: all, for any tenant."""
    expires_in_seconds: Annotated[int, Field(ge=1, le=MAX_EXPIRY_S)] | None = None
    """Null: valid until it is revoked."""
    limits: OwnLimits = OwnLimits()


class KeyDocument(Document):
    """A key without its secret."""

    id: str = Field(examples=["k3v9x0a1b2c3"])
    """The part after `steno_`."""
    name: str
    tenant: str
    scopes: Annotated[list[Scope], BeforeValidator(sorted)]
    limits: dict[str, float]
    """Those that differ from the settings."""
    state: str = Field(examples=["active"])
    """active, expired or revoked."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Rounded down to the minute; updated with a delay of up to half a minute."""


class MadeKey(KeyDocument):
    """A new key, with its secret."""

    key: str = Field(examples=["steno_k3v9x0a1b2c3_..."])
    """The key itself. It is shown only once, and not stored."""


class KeyList(BaseModel):
    """All keys of a tenant, including expired and revoked ones."""

    keys: list[KeyDocument]


@router.get("", summary="List keys")
async def list_keys(services: ServicesDep, caller: Admin) -> KeyList:
    """The tenant's keys, oldest first."""
    keys = await services.in_thread(Keys(services.database, caller.tenant).all)
    return KeyList(keys=[KeyDocument.model_validate(key) for key in keys])


@router.post(
    "", summary="Create a key", status_code=status.HTTP_201_CREATED, responses=documented(422)
)
async def create_key(wanted: NewKey, services: ServicesDep, caller: Admin) -> MadeKey:
    """Create a key for the tenant. Once there is a key, every request requires one."""
    keys = Keys(services.database, caller.tenant)
    key, text = await services.in_thread(
        keys.create,
        wanted.name,
        wanted.scopes,
        lasts_s=wanted.expires_in_seconds,
        limits=wanted.limits.given(),
    )
    services.get(KeyCache).forget(key.id)
    return MadeKey(**KeyDocument.model_validate(key).model_dump(), key=text.reveal())


@router.delete(
    "/{key_id}",
    summary="Revoke a key",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(404, 422),
)
async def revoke_key(key_id: KeyId, services: ServicesDep, caller: Admin) -> None:
    """Revoke a key permanently. Other gateway processes follow within five seconds."""
    await services.in_thread(Keys(services.database, caller.tenant).revoke, key_id)
    services.get(KeyCache).forget(key_id)
