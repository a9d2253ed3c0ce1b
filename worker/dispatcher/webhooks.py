"""The sender: sends webhook messages, from a thread of the dispatcher's process.

It only asks Postgres what is due. Several couriers, one in each dispatcher, share the work; what
one had in hand when it was killed is sent again by another once its lease has ended.
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
from common.net.egress import Egress, Outbound, parse_url
from common.settings import Settings, WebhookSettings
from worker.compose import database_url
from worker.dispatcher.pace import Pace

POLL_S = 0.5
IDLE_POLL_S = 10.0
"""How soon a due message is found whose notification got lost."""
OUTAGE_PAUSE_S = 1.0
PRUNE_S = 60.0
STOP_GRACE_S = 3.0
"""How long messages under way may still take when the dispatcher is to stop."""
RELEASE_S = 2.0
"""How long it may take to give them back; if it takes longer, their leases end by themselves."""
LEASE_MARGIN_S = 15.0
"""Beyond the attempt's own limit: to record how it went, also over a short outage of Postgres."""
READ_BYTES = 64 << 10
READ_S = 1.0
"""Of an answer's body, which nobody looks at: hanging up in the middle may look like a failure."""
LONGEST_ERROR = 200
USER_AGENT = "Stenopool-Webhooks/1"


def build_webhook_sender(settings: Settings) -> WebhookSender:
    """A sender, over a pool of connections of its own.

    Raises:
        SetupProblem: the settings are not complete, or mean nothing.
    """
    database = Database(database_url(settings), pool_size=settings.database.pool_size)
    deliveries = deliveries_for(database, settings.webhook, Vault(settings.key.for_secrets))
    return WebhookSender(deliveries, Egress(settings.egress.allow), settings.webhook)


def deliveries_for(database: Database, settings: WebhookSettings, vault: Vault) -> Deliveries:
    """The messages, claimed for as long as ``settings`` let an attempt take."""
    return Deliveries(
        database,
        lease_s=settings.timeout + LEASE_MARGIN_S,
        delays_s=settings.delays_s,
        at_once_each=settings.at_once_each,
        pause_after=settings.pause_after,
        vault=vault,
    )


class WebhookSender:
    """Runs from `start` to `stop`; outages of Postgres are waited out."""

    def __init__(
        self,
        deliveries: Deliveries,
        egress: Egress,
        settings: WebhookSettings,
        *,
        idle_poll_s: float = IDLE_POLL_S,
    ) -> None:
        self._deliveries = deliveries
        self._egress = egress
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="sender", daemon=True)
        self._pruned = 0.0
        self._pace = Pace(idle_poll_s)

    def start(self) -> None:
        """Begin to send what is due."""
        self._thread.start()

    def wake(self) -> None:
        """Look soon whether there is something to send; called from any thread."""
        self._pace.wake()

    def stop(self) -> None:
        """Send nothing more; returns when nothing is under way, or was given back, or soon."""
        self._stopping.set()
        self._pace.wake()
        self._thread.join(STOP_GRACE_S + RELEASE_S)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._run())
            except Exception:  # whatever it is, messages must not wait for the next start
                logger.exception("sending messages broke off")
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
            left = await _settled(under_way, STOP_GRACE_S, asyncio.ALL_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

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
            logger.warning("no message can be sent: {}", error)
            await asyncio.sleep(OUTAGE_PAUSE_S)
            return []
        return claimed

    async def _deliver(self, outbound: Outbound, sending: Sending) -> None:
        try:
            outcome = await attempt(outbound, sending, self._settings.timeout)
        except asyncio.CancelledError:
            with suppress(Unavailable):  # else the lease ends by itself
                await asyncio.to_thread(self._deliveries.release, sending)
            raise
        logger.info(
            "message {} attempt {}: {} in {} ms ({})",
            sending.delivery_id,
            sending.attempt,
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
                    logger.warning("message {}: will be sent again", sending.delivery_id)
                    return
                await asyncio.sleep(OUTAGE_PAUSE_S)
            else:
                return


async def attempt(outbound: Outbound, sending: Sending, timeout_s: float) -> Outcome:
    """Send a message once; whatever goes wrong is part of the outcome."""
    if not sending.secrets:
        locked = str(SecretsLocked())
        logger.error("message {}: {}", sending.delivery_id, locked)
        return Outcome(AttemptResult.AGAIN, None, locked, 0)
    started = time.monotonic()
    body = sending.payload.encode()
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        **signed_headers(sending.delivery_id, body, sending.secrets, datetime.now(UTC)),
    }
    result, status, error, asked_s = AttemptResult.AGAIN, None, None, None
    try:
        async with (
            asyncio.timeout(timeout_s),
            outbound.send("POST", parse_url(sending.url), headers, body) as response,
        ):
            status = response.status
            result, error = result_of(status), _complaint(status)
            if status in RETRY_AFTER:
                asked_s = retry_after_s(_header(response, b"retry-after"), datetime.now(UTC))
            await _hear_out(response)
    except UrlRefused as refusal:
        result, error = AttemptResult.REFUSED, str(refusal)
    except (TimeoutError, httpcore.TimeoutException):
        error = error if status else f"no answer within {timeout_s:g} s"
    except (httpcore.NetworkError, httpcore.ProtocolError) as failure:
        error = error if status else (str(failure) or type(failure).__name__)[:LONGEST_ERROR]
    except Exception as failure:  # whatever it is, it must not be tried for ever
        logger.exception("message {}: its attempt broke off", sending.delivery_id)
        error = error if status else type(failure).__name__
    duration_ms = round((time.monotonic() - started) * 1000)
    return Outcome(result, status, error, duration_ms, asked_s)


async def _hear_out(response: httpcore.Response) -> None:
    """Take in the rest of an answer, if it is short: the status has said it all."""
    heard = 0
    with suppress(TimeoutError, httpcore.TimeoutException):
        async with asyncio.timeout(READ_S):
            async for part in response.aiter_stream():
                heard += len(part)
                if heard > READ_BYTES:
                    return


def _complaint(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"it answered {status}, and redirects are not followed"
    return f"it answered {status}"


def _header(response: httpcore.Response, name: bytes) -> str | None:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


async def _settled(
    tasks: set[asyncio.Task[None]], timeout_s: float, until: str
) -> set[asyncio.Task[None]]:
    """Wait for tasks, for so long; returns those that go on. One that broke is logged."""
    if not tasks:
        if until == asyncio.FIRST_COMPLETED:
            await asyncio.sleep(timeout_s)
        return tasks
    done, going_on = await asyncio.wait(tasks, timeout=timeout_s, return_when=until)
    for task in done:
        if error := task.exception():
            logger.opt(exception=error).error("a message's attempt broke off")
    return going_on
