"""`steno jobs`, `steno retry`, `steno approve` and `steno delete`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

import click

from common.domain.job import JobStatus
from scripts.cli.client import (
    Gateway,
    job_id_argument,
    json_option,
    local_time,
    print_json,
    recording_name,
    with_gateway,
)
from scripts.cli.progress import shortened

LARGEST_PAGE = 200
FOR_DATES = 100
"""Terminal width from which on the date is shown."""


@click.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in JobStatus], case_sensitive=False),
    help="Only jobs with this status; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@json_option
@with_gateway
def jobs(gateway: Gateway, statuses: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show jobs, newest first."""
    query = {"limit": min(limit + 1, LARGEST_PAGE), "status": list(statuses)}
    found = list(islice(gateway.jobs(**query), limit + 1))
    shown = found[:limit]
    if as_json:
        print_json(shown)
        return
    rows = [("id", "status", "%", "made", "recording"), *map(_row, shown)]
    # On a terminal each job takes one line, however long its recording's name.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    dated = width >= FOR_DATES
    status_width = max(len(row[1]) for row in rows)
    for job_id, status, percent, made, recording in rows:
        known = f"{job_id:<36}  {status:<{status_width}}  {percent:>3}  "
        if dated:
            known += f"{made:<11}  "
        click.echo(known + shortened(recording, max(8, width - len(known))))
    if not shown:
        click.echo("steno: there are no jobs" + " in that state" * bool(statuses), err=True)
    if len(found) > limit:
        click.echo(f"steno: there are more; raise --limit (now {limit})", err=True)


def _row(job: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    recording = recording_name(job) if job["filename"] else "-"
    made = local_time(job["created_at"])[5:-3]  # month to minute
    return job["job_id"], job["status"], str(job["progress"]), made, recording


@click.command()
@job_id_argument
@with_gateway
def retry(gateway: Gateway, job_id: str) -> None:
    """Retry the failed job ID; finished steps are not repeated."""
    click.echo(f"{job_id} {gateway.retry(job_id)['status']}")


@click.command()
@job_id_argument
@with_gateway
def approve(gateway: Gateway, job_id: str) -> None:
    """Approve the text of the job ID, which is in REVIEW: it is COMPLETED then."""
    click.echo(f"{job_id} {gateway.approve(job_id)['status']}")


@click.command()
@job_id_argument
@with_gateway
def delete(gateway: Gateway, job_id: str) -> None:
    """Cancel the job ID if it runs, and delete its recording and text for good."""
    gateway.delete(job_id)
    click.echo(f"{job_id} deleted")
