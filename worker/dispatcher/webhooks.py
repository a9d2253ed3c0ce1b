"""The webhook sender, a thread of the dispatcher's process.

It finds due messages in Postgres. Several senders, one in each dispatcher, share the work. After a
sender was killed, another one sends its messages again when their leases have expired.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import httpcore
from loguru import logger

from common.db.database import Database
from common.db.vault import Vault
from common.db.webhooks import Deliveries, Outcome, Sending
from common.domain.webhooks import (
    RETRY_AFTER,
    AttemptResult,
    result_of,
    retry_after_s,
    signed_headers,
)
from common.errors import SecretsLocked, Unavailable, UrlRefused
from common.net.egress import Egress, Outbound, headers_of, parse_url
from common.settings import Settings, WebhookSettings
from worker.compose import database_url
from worker.dispatcher.pace import Pace

POLL_S = 0.5
IDLE_POLL_S = 10.0
"""The polling interval, should a notification be lost."""
OUTAGE_PAUSE_S = 1.0
PRUNE_S = 60.0
STOP_GRACE_S = 3.0
"""How long requests may still take when the dispatcher stops."""
RELEASE_S = 2.0
"""How long releasing their messages may take; if it takes longer, their leases expire."""
LEASE_MARGIN_S = 15.0
"""The lease beyond the attempt's time limit: to record the outcome despite a short outage."""
READ_BYTES = 64 << 10
READ_S = 1.0
"""The limits for reading a response, which is ignored: closing early may look like a failure."""
LONGEST_ERROR = 200
USER_AGENT = "Stenopool-Webhooks/1"


def build_webhook_sender(settings: Settings) -> WebhookSender:
    """A sender with its own pool of connections.

    Raises:
        SetupProblem: the settings are incomplete or invalid.
    """
    database = Database(database_url(settings), pool_size=settings.database.pool_size)
    deliveries = deliveries_for(database, settings.webhook, Vault(settings.key.for_secrets))
    return WebhookSender(deliveries, Egress(settings.egress.allow), settings.webhook)


def deliveries_for(database: Database, settings: WebhookSettings, vault: Vault) -> Deliveries:
    """The messages, claimed for the longest attempt that ``settings`` allow."""
    return Deliveries(
        database,
        lease_s=settings.timeout + LEASE_MARGIN_S,
        delays_s=settings.delays_s,
        at_once_each=settings.at_once_each,
        pause_after=settings.pause_after,
        vault=vault,
    )


class WebhookSender:
    """Runs from `start` to `stop`, and through outages of Postgres."""

    def __init__(self, deliveries: Deliveries, egress: Egress, settings: WebhookSettings) -> None:
        self._deliveries = deliveries
        self._egress = egress
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="sender", daemon=True)
        self._pruned = 0.0
        self._pace = Pace(IDLE_POLL_S)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Check soon for due messages; may be called from any thread."""
        self._pace.wake()

    def stop(self) -> None:
        """Send no new message; finish or release those being sent, within a few seconds."""
        self._stopping.set()
        self._pace.wake()
        self._thread.join(STOP_GRACE_S + RELEASE_S)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._run())
            except Exception:  # no error may stop the sender
                logger.exception("the webhook sender failed: restarting it")
                self._stopping.wait(OUTAGE_PAUSE_S)

    async def _run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        async with Outbound(self._egress, timeout_s=self._settings.timeout) as outbound:
            while not self._stopping.is_set():
                for sending in await self._claim(self._settings.at_once - len(under_way)):
                    under_way.add(asyncio.create_task(self._deliver(outbound, sending)))
                if not under_way and not self._stopping.is_set():
                    await asyncio.to_thread(self._pace.wait)
                under_way = await _settled(under_way, POLL_S, asyncio.FIRST_COMPLETED)
            unfinished = await _settled(under_way, STOP_GRACE_S, asyncio.ALL_COMPLETED)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _claim(self, limit: int) -> list[Sending]:
        try:
            if time.monotonic() - self._pruned >= PRUNE_S:
                self._pruned = time.monotonic()
                await asyncio.to_thread(self._deliveries.prune, self._settings.keep_days)
            if not limit or not self._pace.is_due():
                return []
            if limit == self._settings.at_once:  # nothing is under way
                due_s = await asyncio.to_thread(self._deliveries.next_due_s)
                if due_s is None or due_s > 0:
                    self._pace.rest(due_s)
                    return []
            self._pace.hurry()
            claimed = await asyncio.to_thread(self._deliveries.claim, limit)
        except Unavailable as error:
            logger.warning("due messages cannot be read: {}", error)
            await asyncio.sleep(OUTAGE_PAUSE_S)
            return []
        return claimed

    async def _deliver(self, outbound: Outbound, sending: Sending) -> None:
        try:
            outcome = await attempt(outbound, sending, self._settings.timeout)
        except asyncio.CancelledError:
            with suppress(Unavailable):  # otherwise its lease expires
                await asyncio.to_thread(self._deliveries.release, sending)
            raise
        logger.info(
            "message {} attempt {}: {} in {} ms ({})",
            sending.row.id,
            sending.row.attempt,
            outcome.result,
            outcome.duration_ms,
            outcome.error or outcome.status_code,
        )
        deadline = time.monotonic() + LEASE_MARGIN_S
        while True:
            try:
                await asyncio.to_thread(self._deliveries.record, sending, outcome)
            except Unavailable:
                if time.monotonic() > deadline or self._stopping.is_set():
                    logger.warning("message {}: will be sent again", sending.row.id)
                    return
                await asyncio.sleep(OUTAGE_PAUSE_S)
            else:
                return


async def attempt(outbound: Outbound, sending: Sending, timeout_s: float) -> Outcome:
    """Send a message once; the outcome includes any error."""
    if not sending.secrets:
        locked = str(SecretsLocked())
        logger.error("message {}: {}", sending.row.id, locked)
        return Outcome(AttemptResult.AGAIN, None, locked, 0)
    started = time.monotonic()
    body = sending.row.payload.encode()
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        **signed_headers(sending.row.id, body, sending.secrets, datetime.now(UTC)),
    }
    result, status, error, asked_s = AttemptResult.AGAIN, None, None, None
    try:
        async with (
            asyncio.timeout(timeout_s),
            outbound.send("POST", parse_url(sending.row.url), headers, body) as response,
        ):
            status = response.status
            result, error = result_of(status), _error_of(status)
            if status in RETRY_AFTER:
                asked = headers_of(response).get("retry-after")
                asked_s = retry_after_s(asked, datetime.now(UTC))
            await _drain(response)
    except UrlRefused as refusal:
        result, error = AttemptResult.REFUSED, str(refusal)
    except (TimeoutError, httpcore.TimeoutException):
        error = error if status else f"no answer within {timeout_s:g} s"
    except (httpcore.NetworkError, httpcore.ProtocolError) as failure:
        error = error if status else (str(failure) or type(failure).__name__)[:LONGEST_ERROR]
    except Exception as failure:  # no error may leave the message claimed
        logger.exception("message {}: the attempt failed unexpectedly", sending.row.id)
        error = error if status else type(failure).__name__
    duration_ms = round((time.monotonic() - started) * 1000)
    return Outcome(result, status, error, duration_ms, asked_s)


async def _drain(response: httpcore.Response) -> None:
    """Read a short response to its end; its content is ignored."""
    read = 0
    with suppress(TimeoutError, httpcore.TimeoutException):
        async with asyncio.timeout(READ_S):
            async for part in response.aiter_stream():
                read += len(part)
                if read > READ_BYTES:
                    return


def _error_of(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"it answered {status}, and redirects are not followed"
    return f"it answered {status}"


async def _settled(
    tasks: set[asyncio.Task[None]], timeout_s: float, until: str
) -> set[asyncio.Task[None]]:
    """Wait for tasks at most ``timeout_s``; returns those still running and logs failures."""
    if not tasks:
        if until == asyncio.FIRST_COMPLETED:
            await asyncio.sleep(timeout_s)
        return tasks
    done, running = await asyncio.wait(tasks, timeout=timeout_s, return_when=until)
    for task in done:
        if error := task.exception():
            logger.opt(exception=error).error("the attempt at a message failed")
    return running
