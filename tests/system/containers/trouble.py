"""What containers say when they are set up wrongly or lose their data, and what heals that."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import SetupProblem, StenoError
from scripts.bench.service import until
from scripts.cli.client import ENDED, Gateway
from tests.system.containers.project import NAME, Project
from tests.system.report import Row

SAID_S = 60.0
"""Within how long what is wrong has to be said."""

WRONG_DATABASE_PASSWORD = re.compile(r"password authentication failed.*see DATABASE_PASSWORD")
WRONG_REDIS_PASSWORD = re.compile(r"Redis.*see REDIS_PASSWORD")
UNREADABLE = re.compile(r"\.env cannot be read by user \d+.*secrets\.sh")
LOG_HEAD = re.compile(r"^\S+ \S+ [A-Z]+ +\S+ (\w+=\S+ )*")
"""Time, level, process and ids of a line of ours."""
LONGEST = 240
REMEDY = re.compile(r"run sh docker/secrets\.sh")
NO_GROUP = re.compile(r"SECRETS_GID.*run sh docker/secrets\.sh")
LOST_RECORDING = re.compile(r"recording is missing from the storage")


def trouble(project: Project, gateway: Callable[[], Gateway], clip: Path) -> Iterator[Row]:
    """Each trouble in turn, on a service that is well before and after."""
    project.up()
    yield from _wrong_database_password(project)
    yield from _wrong_redis_password(project)
    yield from _unreadable(project)
    yield from _no_group(project)
    yield from _lost_volume(project, gateway, clip)


def said(log: str, pattern: re.Pattern[str]) -> str | None:
    """The first line of a log that says it."""
    for line in log.splitlines():
        if pattern.search(line):
            return line.strip()
    return None


def _reported(
    project: Project, what: str, since: float, pattern: re.Pattern[str], *services: str
) -> Iterator[Row]:
    """A row for each service, that says what is wrong."""
    for service in services:
        log = _wait_for_line(project, since, pattern, service)
        line = said(log, pattern)
        last = log.strip().splitlines()[-1:]
        yield Row(
            f"{what}: {service} says",
            _short(line)
            if line
            else f"nothing of it; last: {_short(*last) if last else 'nothing'}",
            f"it, within {SAID_S:g} s",
            line is not None,
        )


def _wait_for_line(project: Project, since: float, pattern: re.Pattern[str], service: str) -> str:
    """The log of a service, once it says that, or after `SAID_S`."""
    until(
        lambda: said(project.logs(since, service), pattern),
        max(0.0, since + SAID_S - time.time()),
    )
    return project.logs(since, service)


def _short(line: str) -> str:
    text = line.partition("|")[2].strip() or line
    text = LOG_HEAD.sub("", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _healed(project: Project, what: str) -> Row:
    """Whether the service is well once it is set right and `up` was said."""
    try:
        # Afresh: Compose gives up at once where a container that others need is unhealthy still.
        seconds = project.up(options=("--force-recreate",))
    except SetupProblem as error:
        return Row(f"{what}, put right", error.message, "ready", ok=False)
    ready = project.ready()
    return Row(
        f"{what}, put right",
        f"{'ready' if ready else 'not ready'} after {seconds:.0f} s",
        "ready",
        ready,
    )


def _fails_to_start(project: Project) -> str | None:
    """What Compose says when it cannot start all; None where it can."""
    try:
        project.compose("up", "-d", "--wait", "--wait-timeout", str(int(SAID_S)))
    except SetupProblem as error:
        return str(error.details["problem"])
    return None


def _wrong_database_password(project: Project) -> Iterator[Row]:
    what = "DATABASE_PASSWORD of another volume"
    project.down(volumes=False)
    since = time.time()
    with project.having({"DATABASE_PASSWORD": secrets.token_hex(32)}):
        failure = _fails_to_start(project)
        yield Row(f"{what}: up", failure or "starts", "fails", failure is not None)
        yield from _reported(project, what, since, WRONG_DATABASE_PASSWORD, "migrate")
    yield _healed(project, what)


def _wrong_redis_password(project: Project) -> Iterator[Row]:
    what = "REDIS_PASSWORD that Redis does not know"
    ours = ("api", "dispatcher", "worker")
    with project.having({"REDIS_PASSWORD": secrets.token_hex(32)}):
        since = time.time()
        project.compose("restart", "--no-deps", *ours)
        yield from _reported(project, what, since, WRONG_REDIS_PASSWORD, *ours)
        yield Row(
            f"{what}: /readyz",
            "ready" if project.ready() else "not ready",
            "not ready",
            not project.ready(),
        )
    project.compose("restart", "--no-deps", *ours)
    yield _healed(project, what)


def _unreadable(project: Project) -> Iterator[Row]:
    spoils: dict[str, Callable[[], None]] = {
        ".env with mode 600": lambda: project.env_file.chmod(0o600),
        "SECRETS_GID of another group": lambda: project.set({"SECRETS_GID": "54321"}),
    }
    for what, spoil in spoils.items():
        project.down(volumes=False)
        spoil()
        since = time.time()
        failure = _fails_to_start(project)
        yield Row(f"{what}: up", failure or "starts", "fails", failure is not None)
        yield from _reported(project, what, since, UNREADABLE, "migrate")
        yield from _reported(project, what, since, REMEDY, "redis")
        project.make_secrets()
        yield _healed(project, f"{what}, secrets.sh")


def _no_group(project: Project) -> Iterator[Row]:
    what = "no SECRETS_GID"
    with project.having({"SECRETS_GID": None}):
        failure = _fails_to_start(project) or ""
        yield Row(
            f"{what}: up", failure or "starts", "names the remedy", bool(NO_GROUP.search(failure))
        )
    yield _healed(project, what)


def _lost_volume(project: Project, gateway: Callable[[], Gateway], clip: Path) -> Iterator[Row]:
    what = "volume data lost while a job waits"
    project.compose("stop", "worker")
    with gateway() as client:
        job_id = str(client.upload(clip, {})["job_id"])
        project.compose("rm", "--stop", "--force", "api", "dispatcher", "worker", "migrate")
        project.docker("volume", "rm", f"{NAME}_data")
        since = time.time()
        yield _healed(project, what)

        def ended() -> bool:
            return client.status(job_id)["status"] in ENDED

        until(ended, SAID_S)
        state = client.status(job_id)
        message = state["error_message"] or "no message"
        yield Row(
            f"{what}: the job",
            f"{state['status']}: {message}",
            "FAILED, the recording is lost",
            state["status"] == "FAILED" and bool(LOST_RECORDING.search(message)),
        )
        yield from _reported(project, what, since, LOST_RECORDING, "worker")
        new_id = str(client.upload(clip, {})["job_id"])
        try:
            until(lambda: client.status(new_id)["status"] in ENDED, SAID_S)
            status = client.status(new_id)["status"]
        except StenoError as error:
            status = error.message
        yield Row(f"{what}: another job", status, "COMPLETED", status == "COMPLETED")
