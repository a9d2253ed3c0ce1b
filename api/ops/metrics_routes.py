"""How the service is doing, for Prometheus."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import PlainTextResponse, Response

from api.auth.callers import may_read_metrics
from api.http.problems import documented
from api.ops.metrics import Scraper

router = APIRouter(tags=["health"])


async def _scraper(request: Request) -> Scraper:
    return cast("Scraper", request.state.scraper)


@router.get(
    "/metrics",
    summary="How is it doing? (Prometheus)",
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
            "description": "The metrics",
        },
        **documented(401, 403, 503),
    },
    dependencies=[Depends(may_read_metrics)],
)
async def metrics(request: Request, scraper: Annotated[Scraper, Depends(_scraper)]) -> Response:
    """Every metric, in the text format of Prometheus or, if it is asked for, OpenMetrics.

    All gateways tell the same of the service; of the requests that were answered, each its own.
    Needs a key with the scope admin, unless METRICS_OPEN is set.
    """
    content, media_type = await scraper.scrape(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
