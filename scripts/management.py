"""`steno jobs`, `steno retry` and `steno delete`: jobs as a whole."""

from __future__ import annotations

import json
from itertools import islice

import click

from common.domain.job import JobStatus
from scripts.client import (
    find_gateway,
    gateway_options,
    job_id_argument,
    json_option,
    local_time,
    recording_name,
)

LARGEST_PAGE = 200


@click.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in JobStatus], case_sensitive=False),
    help="Only those that stand there; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@json_option
@gateway_options
def jobs(
    statuses: tuple[str, ...], limit: int, as_json: bool, server: str | None, key: str | None
) -> None:
    """Show jobs, newest first."""
    with find_gateway(server, key) as gateway:
        query: dict[str, object] = {"limit": min(limit + 1, LARGEST_PAGE)}
        if statuses:
            query["status"] = list(statuses)
        found = list(islice(gateway.jobs(**query), limit + 1))
    shown = found[:limit]
    if as_json:
        click.echo(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    click.echo(_line("id", "status", "%", "made", "recording"))
    for job in shown:
        recording = recording_name(job) if job["filename"] else "-"
        made = local_time(job["created_at"])
        click.echo(_line(job["job_id"], job["status"], job["progress"], made, recording))
    if len(found) > limit:
        click.echo(f"steno: there are more; see --limit (now {limit})", err=True)


def _line(job_id: str, status: str, progress: object, made: str, recording: str) -> str:
    """A line of the table: only its last column is as wide as it likes."""
    return f"{job_id:<36}  {status:<14}  {progress:>3}  {made:<19}  {recording}"


@click.command()
@job_id_argument
@gateway_options
def retry(job_id: str, server: str | None, key: str | None) -> None:
    """Have what is missing of the failed job ID done, and nothing else again."""
    with find_gateway(server, key) as gateway:
        state = gateway.retry(job_id)
    click.echo(f"{job_id} {state['status']}")


@click.command()
@job_id_argument
@gateway_options
def delete(job_id: str, server: str | None, key: str | None) -> None:
    """Cancel the job ID if it runs, and erase its recording and its text for good."""
    with find_gateway(server, key) as gateway:
        gateway.delete(job_id)
    click.echo(f"{job_id} deleted")
