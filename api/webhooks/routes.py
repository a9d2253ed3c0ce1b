"""Routes for webhook endpoints, their secrets, and the messages sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Response
from pydantic.json_schema import SkipJsonSchema
from starlette.status import HTTP_201_CREATED, HTTP_202_ACCEPTED, HTTP_204_NO_CONTENT

from api.auth.callers import Transcriber
from api.http.pagination import Limit, PageCursor, next_cursor, parse_cursor
from api.http.problems import documented
from api.services import ServicesDep
from api.webhooks.schemas import (
    Attempt,
    DeliveryDocument,
    DeliveryList,
    Endpoint,
    EndpointChange,
    EndpointList,
    Event,
    NewEndpoint,
    NewlyMade,
    OldSecret,
    Rotation,
    Secrets,
)
from common.db.endpoints import DeliveryFilter, MessageDelivery
from common.domain.webhooks import DeliveryStatus, Secret, WebhookEvent, webhook_id

router = APIRouter(prefix="/webhooks", tags=["webhooks"], responses=documented(422, 503))


# --- messages, before the routes that would take "deliveries" and "secret" for endpoint ids -------


@router.get("/deliveries", summary="List messages")
async def list_deliveries(
    services: ServicesDep,
    caller: Transcriber,
    endpoint_id: UUID | SkipJsonSchema[None] = None,
    job_id: UUID | SkipJsonSchema[None] = None,
    status: DeliveryStatus | SkipJsonSchema[None] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> DeliveryList:
    """Messages with all delivery attempts, newest first."""
    page = await services.in_thread(
        services.webhooks(caller.tenant).deliveries,
        DeliveryFilter(endpoint_id, job_id, status),
        limit=limit,
        cursor=parse_cursor(cursor),
    )
    return DeliveryList(
        deliveries=[_delivery(each) for each in page.items], next_cursor=next_cursor(page.next)
    )


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    summary="Redeliver a message",
    status_code=HTTP_202_ACCEPTED,
    responses=documented(404, 409),
)
async def redeliver(
    delivery_id: UUID, services: ServicesDep, caller: Transcriber
) -> DeliveryDocument:
    """Send a message again at once, with the same `webhook-id`; it is retried like a new one."""
    webhooks = services.webhooks(caller.tenant)
    delivery = await services.in_thread(webhooks.redeliver, delivery_id)
    services.events.work_to_do()
    return _delivery(delivery)


# --- the tenant's secret --------------------------------------------------------------------------


@router.get("/secret", summary="Get the secret for jobs' own URLs")
async def read_tenant_secret(services: ServicesDep, caller: Transcriber) -> Secrets:
    """The secret that signs messages to a job's own `webhook_url`; created on first use."""
    return _secrets(await services.in_thread(services.webhooks(caller.tenant).secrets, None))


@router.post("/secret/rotate", summary="Rotate the secret for jobs' own URLs")
async def rotate_tenant_secret(
    services: ServicesDep,
    caller: Transcriber,
    rotation: Annotated[Rotation, Body(default_factory=Rotation)],
) -> Secrets:
    """Create a new secret; for a while messages are signed with both."""
    webhooks = services.webhooks(caller.tenant)
    return _secrets(await services.in_thread(webhooks.rotate, None, rotation.overlap_seconds))


# --- endpoints ------------------------------------------------------------------------------------


@router.post(
    "", summary="Create an endpoint", status_code=HTTP_201_CREATED, responses=documented(409)
)
async def create(wanted: NewEndpoint, services: ServicesDep, caller: Transcriber) -> NewlyMade:
    """Notify a URL when this tenant's jobs end; 409 when there are too many endpoints."""
    await services.egress.check(wanted.url)
    endpoint, secret = await services.in_thread(
        services.webhooks(caller.tenant).create,
        wanted.url,
        _events(wanted.events),
        wanted.description,
        limit=services.settings.webhook.max_endpoints,
    )
    return NewlyMade(**Endpoint.model_validate(endpoint).model_dump(), secret=secret.text)


@router.get("", summary="List endpoints")
async def list_endpoints(services: ServicesDep, caller: Transcriber) -> EndpointList:
    """The tenant's endpoints, oldest first."""
    found = await services.in_thread(services.webhooks(caller.tenant).endpoints)
    return EndpointList(endpoints=[Endpoint.model_validate(each) for each in found])


@router.get("/{endpoint_id}", summary="Get an endpoint", responses=documented(404))
async def read(endpoint_id: UUID, services: ServicesDep, caller: Transcriber) -> Endpoint:
    """One endpoint."""
    webhooks = services.webhooks(caller.tenant)
    return Endpoint.model_validate(await services.in_thread(webhooks.endpoint, endpoint_id))


@router.patch("/{endpoint_id}", summary="Change an endpoint", responses=documented(404))
async def change(
    endpoint_id: UUID, wanted: EndpointChange, services: ServicesDep, caller: Transcriber
) -> Endpoint:
    """Change, pause or resume an endpoint. Resuming resets its count of failures."""
    values: dict[str, Any] = wanted.model_dump(exclude_none=True)
    if wanted.url is not None:
        await services.egress.check(wanted.url)
    if wanted.events is not None:
        values["events"] = _events(wanted.events)
    webhooks = services.webhooks(caller.tenant)
    endpoint = await services.in_thread(webhooks.change, endpoint_id, **values)
    if wanted.paused is False:
        services.events.work_to_do()
    return Endpoint.model_validate(endpoint)


@router.delete(
    "/{endpoint_id}",
    summary="Delete an endpoint",
    status_code=HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=documented(404),
)
async def delete(endpoint_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Delete an endpoint and its messages, including pending ones."""
    await services.in_thread(services.webhooks(caller.tenant).delete, endpoint_id)


@router.get("/{endpoint_id}/secret", summary="Get an endpoint's secret", responses=documented(404))
async def read_secret(endpoint_id: UUID, services: ServicesDep, caller: Transcriber) -> Secrets:
    """The secret that signs the endpoint's messages."""
    return _secrets(await services.in_thread(services.webhooks(caller.tenant).secrets, endpoint_id))


@router.post(
    "/{endpoint_id}/rotate", summary="Rotate an endpoint's secret", responses=documented(404)
)
async def rotate_secret(
    endpoint_id: UUID,
    services: ServicesDep,
    caller: Transcriber,
    rotation: Annotated[Rotation, Body(default_factory=Rotation)],
) -> Secrets:
    """Create a new secret; for a while messages are signed with both."""
    webhooks = services.webhooks(caller.tenant)
    return _secrets(
        await services.in_thread(webhooks.rotate, endpoint_id, rotation.overlap_seconds)
    )


@router.post(
    "/{endpoint_id}/test",
    summary="Send a test message",
    status_code=HTTP_202_ACCEPTED,
    responses=documented(404),
)
async def test(endpoint_id: UUID, services: ServicesDep, caller: Transcriber) -> DeliveryDocument:
    """Send a `webhook.test`, also to a paused endpoint. It is not retried."""
    webhooks = services.webhooks(caller.tenant)
    delivery = await services.in_thread(webhooks.test, endpoint_id)
    services.events.work_to_do()
    return _delivery(delivery)


def _events(named: Sequence[Event]) -> list[WebhookEvent]:
    return [WebhookEvent(name) for name in dict.fromkeys(named)]


def _secrets(secrets: Sequence[Secret]) -> Secrets:
    newest, *before = secrets
    return Secrets(
        secret=newest.text,
        replaced=[
            OldSecret(secret=secret.text, until=secret.until)
            for secret in before
            if secret.until is not None
        ],
    )


def _delivery(delivery: MessageDelivery) -> DeliveryDocument:
    row = delivery.row
    return DeliveryDocument(
        id=row.id,
        webhook_id=webhook_id(row.id),
        endpoint_id=row.endpoint_id,
        job_id=row.job_id,
        event=row.event,
        url=row.url,
        status=DeliveryStatus(row.status),
        created_at=row.created_at,
        next_attempt_at=row.due_at if row.status == DeliveryStatus.PENDING else None,
        ended_at=row.ended_at,
        attempts=[Attempt.model_validate(each) for each in delivery.attempts],
    )
