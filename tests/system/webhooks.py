"""Webhook deliveries to misbehaving receivers while the sender is killed: none may be lost.

Run ``scripts/test --system webhooks``. It starts a stack of its own without workers, ends some jobs
for each kind of receiver, kills the dispatcher by SIGKILL again and again while their messages are
under way, and prints how each kind ended and whether it should have. The limits
are those of production but for the pauses between two attempts, which would take hours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import click

from common.db.database import Database
from common.db.endpoints import DeliveryFilter, Webhooks
from common.db.jobs import Jobs
from common.db.vault import Vault
from common.domain.webhooks import DeliveryStatus, webhook_id
from scripts.bench.service import UnderTest, until
from scripts.cli.console import make_console
from tests.support.factories import new_job
from tests.system.receiver import Receiver
from tests.system.report import Row, all_ok, show

TENANT = "bench"


@dataclass(frozen=True, slots=True)
class ReceiverKind:
    """A receiver; ``attempts`` None: all there are. ``reached``: whether it ever sees a message."""

    name: str
    path: str
    ends: DeliveryStatus
    attempts: int | None
    reached: bool = True


def kinds(timeout_s: float) -> tuple[ReceiverKind, ...]:
    """All receivers, those that are late by what ``timeout_s`` lets them be."""
    early, late = int(timeout_s / 3), int(timeout_s) + 5
    return (
        ReceiverKind("answers 200", "ok", DeliveryStatus.DELIVERED, 1),
        ReceiverKind(f"answers after {early} s", f"late/{early}", DeliveryStatus.DELIVERED, 1),
        ReceiverKind("503 twice, then 200", "fail/2", DeliveryStatus.DELIVERED, 3),
        ReceiverKind("503 for ever", "fail/999", DeliveryStatus.FAILED, None),
        ReceiverKind("404", "status/404", DeliveryStatus.FAILED, 1),
        ReceiverKind("410", "status/410", DeliveryStatus.FAILED, 1),
        ReceiverKind("429 for ever", "status/429", DeliveryStatus.FAILED, None),
        ReceiverKind("redirects to loopback", "redirect", DeliveryStatus.FAILED, 1),
        ReceiverKind("hangs", "hang", DeliveryStatus.FAILED, None),
        ReceiverKind(f"answers after {late} s", f"late/{late}", DeliveryStatus.FAILED, None),
        ReceiverKind("a byte a second", "drip", DeliveryStatus.FAILED, None),
        ReceiverKind("is down", "down", DeliveryStatus.FAILED, None, reached=False),
        ReceiverKind("has a private address", "private", DeliveryStatus.FAILED, 1, reached=False),
    )


@click.command()
@click.option("--messages", default=8, show_default=True, help="For each kind of receiver.")
@click.option("--kills", default=4, show_default=True, help="Of the sender.")
@click.option("--every", default=8.0, show_default=True, help="Seconds between two of them.")
@click.option("--timeout", default=15.0, show_default=True, help="WEBHOOK_TIMEOUT, in seconds.")
@click.option("--delays", default="1,2,3,4", show_default=True, help="WEBHOOK_RETRY_DELAYS.")
@click.option("--within", default=900.0, show_default=True, help="Seconds that it may all take.")
def main(
    messages: int, kills: int, every: float, timeout: float, delays: str, within: float
) -> None:
    """Send messages to bad receivers while their sender is killed."""
    started = time.monotonic()
    all_kinds = kinds(timeout)
    env = {
        "EGRESS_ALLOW": "127.0.0.0/16",
        "WEBHOOK_TIMEOUT": str(timeout),
        "WEBHOOK_RETRY_DELAYS": delays,
    }
    with ExitStack() as stack:
        service = stack.enter_context(UnderTest(0, env=env))
        receivers = {
            # an address, and so a lane, of its own for each; the private one is not in EGRESS_ALLOW
            kind: stack.enter_context(Receiver(f"127.{int(kind.path == 'private')}.0.{place}"))
            for place, kind in enumerate(all_kinds, start=1)
            if kind.path != "down"
        }
        jobs = {
            kind: _end_jobs(service.database, kind, receivers.get(kind), messages)
            for kind in all_kinds
        }
        webhooks = Webhooks(service.database, TENANT, Vault())
        for _ in range(kills):
            time.sleep(every)
            for pid in service.stack.processes["dispatcher"]:
                os.kill(pid, signal.SIGKILL)
        until(lambda: not _waiting(webhooks), started + within - time.monotonic())
        most = 1 + len(delays.split(","))
        rows = [_row(webhooks, kind, receivers.get(kind), jobs[kind], most) for kind in all_kinds]
    title = f"sender killed {kills} times, {timeout:g} s for an answer"
    show({title: rows}, make_console())
    click.echo(f"in {time.monotonic() - started:.0f} s")
    sys.exit(not all_ok({title: rows}))


def _end_jobs(
    database: Database, kind: ReceiverKind, receiver: Receiver | None, count: int
) -> list[UUID]:
    """Have jobs end that notify ``receiver``; None: nobody listens there."""
    address = "http://127.0.0.1:9" if receiver is None else receiver.url
    jobs = Jobs(database, TENANT)
    made = []
    for number in range(count):
        suffix = f"/{number}" if number else ""
        job = new_job(webhook_url=f"{address}/{kind.path}{suffix}")
        jobs.create(job)
        jobs.cancel(job.id)
        made.append(job.id)
    return made


def _waiting(webhooks: Webhooks) -> bool:
    which = DeliveryFilter(status=DeliveryStatus.PENDING)
    return bool(webhooks.deliveries(which, limit=1, cursor=None).items)


def _row(
    webhooks: Webhooks, kind: ReceiverKind, receiver: Receiver | None, jobs: list[UUID], most: int
) -> Row:
    """How the messages to one kind of receiver ended, after how many attempts."""
    deliveries = [
        delivery
        for job_id in jobs
        for delivery in webhooks.deliveries(
            DeliveryFilter(job_id=job_id), limit=1, cursor=None
        ).items
    ]
    arrivals = [] if receiver is None else receiver.arrivals(f"/{kind.path}")
    arrived = {arrival.message_id for arrival in arrivals}
    redirected = 0 if receiver is None else len(receiver.arrivals("/inside"))
    lost = sum(
        each.row.status == DeliveryStatus.PENDING
        or (kind.reached and webhook_id(each.row.id) not in arrived)
        for each in deliveries
    )
    wanted = kind.attempts or most
    # A receiver counts the attempts of a sender that is killed over them; no one records them.
    least = 1 if kind.ends == DeliveryStatus.DELIVERED else wanted
    as_documented = all(
        each.row.status == kind.ends and least <= len(each.attempts) <= wanted
        for each in deliveries
    )
    ends = sorted({each.row.status for each in deliveries})
    counts = sorted({len(each.attempts) for each in deliveries})
    reasons = sorted({each.attempts[-1].error or "-" for each in deliveries if each.attempts})
    return Row(
        kind.name,
        f"{len(deliveries)} {', '.join(ends)} after {', '.join(map(str, counts))} attempts "
        f"({'; '.join(reasons)}), {len(arrivals)} arrivals of {len(arrived)} messages, "
        f"{redirected} redirected, {lost} lost",
        f"{kind.ends} after {f'{least} to ' * (least < wanted)}{wanted}, none redirected or lost",
        as_documented and not redirected and not lost,
    )
