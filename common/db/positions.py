"""How many turns come before a job's first: its position in the queue, as clients see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from common.db.due_steps import joining
from common.db.tables import Job
from common.domain.fair_order import SHORTER_FIRST, passes_allowed, turns_before
from common.domain.job import JobStatus
from common.domain.pipeline import PIPELINES

FARTHEST = 1_000
"""The largest reported position: at most so many rows are read."""
FARTHEST_LISTED = 200
"""The same in lists, where the position of every job is read."""
NEVER = 2**63 - 1
"""The turn of jobs that are not queued yet: all others have waited longer."""


def positions(session: Session, jobs: Iterable[Job], farthest: int) -> dict[UUID, int]:
    """How many turns come before the first of each PENDING job, if no others are submitted.

    Jobs of kinds that this version does not know have no position.

    0: it is next, or a worker is about to begin; ``farthest``: that many or more. Each job of a
    higher priority counts as one turn.
    """
    pending = [it for it in jobs if it.status == JobStatus.PENDING and it.kind in PIPELINES]
    if not pending:
        return {}
    found = session.execute(_PLACES, joining(pending) | {"most": farthest, "never": NEVER})
    return {row.job_id: min(farthest, _position(row)) for row in found}


def _position(row: Row[Any]) -> int:
    if row.handed_out:
        return 0
    jobs = turns_before(
        ahead=row.jobs_ahead,
        shorter=row.jobs_before - row.jobs_ahead,
        longer=max(0, row.jobs_waited - row.jobs_ahead),
        passed=row.jobs_passed or 0,
        may_pass=passes_allowed(row.size),
        others_may=passes_allowed(row.jobs_smallest or 0),
    )
    tenants = turns_before(
        ahead=row.tenants_ahead,
        shorter=row.tenants_before - row.tenants_ahead,
        longer=max(0, row.tenants_waited - row.tenants_ahead),
        passed=row.tenants_passed or 0,
        may_pass=SHORTER_FIRST,
        others_may=SHORTER_FIRST,
    )
    # Between two turns of the tenant, each other tenant has one.
    before: int = row.higher + row.not_in_line + tenants + jobs * (1 + row.other_tenants)
    return before


_HIGHER = "job_turns AS it WHERE it.remote = own.remote AND it.priority < own.priority"
_JOBS = """job_turns AS it WHERE it.remote = own.remote AND it.priority = own.priority
    AND it.tenant = own.tenant"""
_TENANTS = "tenant_turns AS it WHERE it.remote = own.remote AND it.priority = own.priority"
_OTHERS = f"{_TENANTS} AND it.tenant <> own.tenant"
"""The queue of a job's tenant, and the tenants that take turns with it."""


def _first(column: str, queue: str, order: str) -> str:
    return f"(SELECT {column} FROM {queue} ORDER BY {order} LIMIT 1)"  # noqa: S608


def _count(queue: str, order: str) -> str:
    return f"(SELECT count(*) FROM (SELECT FROM {queue} ORDER BY {order} LIMIT :most) AS found)"  # noqa: S608


def _shorter(queue: str, size: str, since: str) -> str:
    """How many go before this one as they are shorter, and how many of these have waited longer."""
    return f"""LATERAL (
        SELECT count(*) AS number, count(*) FILTER (WHERE found.since < {since}) AS ahead
        FROM (
            SELECT since FROM {queue} AND (it.size, it.since) < ({size}, {since})
            ORDER BY it.size, it.since LIMIT :most
        ) AS found
    )"""  # noqa: S608


# Each count reads the beginning of an index: hence its ORDER BY. OFFSET 0 makes Postgres look up a
# row by its key. With statistics from before a burst of jobs it would read the whole table.
_PLACES = text(f"""
    WITH own AS (
        SELECT
            job_id, joining.priority, joining.tenant, joining.remote,
            coalesce(job.size, joining.size) AS size,
            coalesce(job.since, :never) AS since,
            LEAST(line.size, joining.size) AS tenant_size,
            coalesce(line.since, :never) AS tenant_since,
            job.job_id IS NOT NULL AS in_line,
            CASE WHEN job.job_id IS NULL THEN (
                SELECT min(outbox.id) FROM steps JOIN outbox ON outbox.step_id = steps.id
                WHERE steps.job_id = joining.job_id
            ) END AS outbox_id
        FROM unnest(
            CAST(:job_id AS uuid[]), CAST(:priority AS smallint[]), CAST(:tenant AS text[]),
            CAST(:remote AS boolean[]), CAST(:size AS smallint[])
        ) AS joining (job_id, priority, tenant, remote, size)
        LEFT JOIN LATERAL (
            SELECT * FROM job_turns AS it WHERE it.job_id = joining.job_id OFFSET 0
        ) AS job USING (job_id)
        LEFT JOIN LATERAL (
            SELECT size, since FROM tenant_turns AS it
            WHERE it.remote = joining.remote AND it.priority = joining.priority
            AND it.tenant = joining.tenant OFFSET 0
        ) AS line ON true
    )
    SELECT own.job_id, own.size, NOT in_line AND outbox_id IS NULL AS handed_out,
        {_count(_HIGHER, "it.priority")} AS higher,
        (
            SELECT count(*) FROM (
                SELECT id, step_id FROM outbox
                WHERE NOT in_line AND job_id IS NULL AND due_at <= statement_timestamp()
                ORDER BY due_at LIMIT :most
            ) AS it, LATERAL (
                SELECT jobs.id, jobs.priority FROM steps JOIN jobs ON jobs.id = steps.job_id
                WHERE steps.id = it.step_id OFFSET 0
            ) AS job
            WHERE job.id <> own.job_id
            AND (job.priority, it.id) < (own.priority, own.outbox_id)
        ) AS not_in_line,
        shorter_jobs.number AS jobs_before, shorter_jobs.ahead AS jobs_ahead,
        {_count(f"{_JOBS} AND it.since < own.since", "it.since")} AS jobs_waited,
        {_first("size", _JOBS, "size")} AS jobs_smallest,
        {_first("passed", _JOBS, "since")} AS jobs_passed,
        shorter_tenants.number AS tenants_before, shorter_tenants.ahead AS tenants_ahead,
        {_count(f"{_OTHERS} AND it.since < own.tenant_since", "it.since")} AS tenants_waited,
        {_first("passed", _TENANTS, "since")} AS tenants_passed,
        {_count(_OTHERS, "it.since")} AS other_tenants
    FROM own,
    {_shorter(_JOBS, "own.size", "own.since")} AS shorter_jobs,
    {_shorter(_OTHERS, "own.tenant_size", "own.tenant_since")} AS shorter_tenants
""")  # noqa: S608
