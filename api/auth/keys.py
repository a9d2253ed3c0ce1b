"""API keys, for those who hand them out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, status
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.auth.callers import Admin
from api.auth.keyring import KeyRing
from api.http.problems import documented
from api.services import ServicesDep
from common.db.keys import Key, Keys
from common.domain.keys import ID_PATTERN, Scope

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[str, Path(pattern=ID_PATTERN)]

MAX_EXPIRY_S = 10 * 366 * 86_400


class OwnLimits(BaseModel):
    """Where a key's limits differ from the settings (LIMIT_...); 0: no limit."""

    model_config = ConfigDict(extra="forbid")

    requests_per_second: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    requests_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    concurrent_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    concurrent_streams: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    audio_hours_per_day: Annotated[float, Field(ge=0, le=1_000_000)] | None = None

    def given(self) -> dict[str, float]:
        """Those that were said, by name."""
        said: dict[str, float] = self.model_dump(exclude_none=True)
        return said


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
        Field(examples=["the call centre"], pattern=r"^[^\x00-\x1f\x7f]*$"),
    ]
    """For people: what it is for."""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] = [
        Scope.TRANSCRIBE,
        Scope.READ,
    ]
    """transcribe: send and cancel; read: status, text and files; admin: everything, everywhere."""
    expires_in_seconds: Annotated[int, Field(ge=1, le=MAX_EXPIRY_S)] | None = None
    """Null: good until it is revoked."""
    limits: OwnLimits = OwnLimits()


class KeyDocument(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str = Field(examples=["k3v9x0a1b2c3"])
    """The part after `steno_`."""
    name: str
    tenant: str
    scopes: list[Scope]
    limits: dict[str, float]
    """Where they differ from the settings."""
    state: str = Field(examples=["active"])
    """active, expired or revoked."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute, and told half a minute late."""


class MadeKey(KeyDocument):
    """A key that was made just now."""

    key: str = Field(examples=["steno_k3v9x0a1b2c3_..."])
    """The key itself. It is told this once, and kept nowhere."""


class KeyList(BaseModel):
    """All keys of a tenant, also those that are good no more."""

    keys: list[KeyDocument]


@router.get("", summary="List keys")
async def list_keys(services: ServicesDep, caller: Admin) -> KeyList:
    """The tenant's keys, in the order they were made."""
    keys = await services.in_thread(Keys(services.database, caller.tenant).all)
    return KeyList(keys=[KeyDocument.model_validate(_document(key)) for key in keys])


@router.post(
    "",
    summary="Make a key",
    status_code=status.HTTP_201_CREATED,
    responses=documented(422),
)
async def create_key(wanted: NewKey, services: ServicesDep, caller: Admin) -> MadeKey:
    """Make a key for the tenant. With the first one a gateway begins to ask for keys."""
    keys = Keys(services.database, caller.tenant)
    key, text = await services.in_thread(
        keys.create,
        wanted.name,
        wanted.scopes,
        lasts_s=wanted.expires_in_seconds,
        limits=wanted.limits.given(),
    )
    services.get(KeyRing).forget(key.id)
    return MadeKey.model_validate({**_document(key), "key": text.reveal()})


@router.delete(
    "/{key_id}",
    summary="Take a key back",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(404, 422),
)
async def revoke_key(key_id: KeyId, services: ServicesDep, caller: Admin) -> None:
    """Take a key back for good. Other gateway processes notice within five seconds."""
    await services.in_thread(Keys(services.database, caller.tenant).revoke, key_id)
    services.get(KeyRing).forget(key_id)


def _document(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "limits": key.limits,
        "state": key.state,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
