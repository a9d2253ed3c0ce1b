"""The route for a tenant's usage, and for what remains of a key's limits."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.auth.callers import Reader
from api.http.fields import Document
from api.services import ServicesDep
from common.db.usage import HOUR_MS, Day, Quota, Spent, Usage, seconds_to_midnight
from common.domain.keys import Limits

router = APIRouter(tags=["keys"])


class Amount(Document):
    """Jobs, and the hours of audio in them."""

    jobs: int
    audio_hours: float


class UsageDay(Amount):
    """A tenant's usage on one day (UTC)."""

    date: date
    own: Amount
    """The share of the calling key."""


class KeyLimits(BaseModel):
    """The key's limits; null: no limit."""

    requests_per_second: int | None
    requests_per_minute: int | None
    concurrent_jobs: int | None
    concurrent_streams: int | None
    audio_hours_per_day: float | None


class Left(Document):
    """What remains of the key's limits; null: no limit."""

    concurrent_jobs: int | None
    concurrent_streams: int | None
    audio_hours: float | None
    """Today."""
    resets_in_seconds: int
    """Until midnight (UTC)."""


class UsageDocument(Document):
    """A tenant's usage, and what remains of the limits of the calling key."""

    tenant: str
    key_id: str | None = Field(examples=["k3v9x0a1b2c3"])
    """Null where no key is required."""
    days: list[UsageDay]
    """Days with any usage, newest first. Deleting jobs does not reduce them."""
    limits: KeyLimits
    left: Left


@router.get("/usage", summary="Get usage and remaining limits")
async def usage(
    services: ServicesDep,
    caller: Reader,
    days: Annotated[
        int, Query(ge=1, le=366, description="How many days back, including today.")
    ] = 30,
) -> UsageDocument:
    """Jobs and hours of audio by day. Audio counts by its declared length, then by its decoded one.

    Live streams are not counted as jobs; their audio counts while it is received.
    """
    asked = Usage(services.database, caller.tenant, caller.key_id)
    spent = await services.in_thread(asked.spent, Quota.of(caller.limits))
    return UsageDocument(
        tenant=caller.tenant,
        key_id=caller.key_id,
        days=[_day(each) for each in await services.in_thread(asked.days, days)],
        limits=KeyLimits.model_validate(
            {name: value or None for name, value in caller.limits.to_json().items()}
        ),
        left=_left(caller.limits, spent),
    )


def _day(day: Day) -> UsageDay:
    return UsageDay(
        date=day.day,
        jobs=day.jobs,
        audio_hours=_hours(day.audio_ms),
        own=Amount(jobs=day.own_jobs, audio_hours=_hours(day.own_audio_ms)),
    )


def _left(limits: Limits, spent: Spent) -> Left:
    hours = limits.audio_hours_per_day
    return Left(
        concurrent_jobs=_places(limits.concurrent_jobs, spent.concurrent_jobs),
        concurrent_streams=_places(limits.concurrent_streams, spent.concurrent_streams),
        audio_hours=max(0.0, round(hours - _hours(spent.audio_ms), 4)) if hours else None,
        resets_in_seconds=seconds_to_midnight(),
    )


def _places(limit: int, taken: int) -> int | None:
    return max(0, limit - taken) if limit else None


def _hours(milliseconds: int) -> float:
    return round(milliseconds / HOUR_MS, 4)
