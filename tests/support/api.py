"""A gateway, and its jobs, whose steps the test does in a worker's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import func, select

from common.db.database import Database
from common.db.steps import Claim
from common.domain.moderation import Finding
from common.domain.pipeline import StepKind
from common.errors import DecodeFailed, StenoError
from common.redis.events import Events
from tests.support.factories import (
    CLEAN,
    claim_next,
    finish_chunk,
    finish_diarization,
    finish_merge,
    finish_moderation,
    make_steps,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess


class Api:
    """Asks under ``/api/v1``; each step that it ends is reported as a worker reports it."""

    def __init__(self, gateway: GatewayProcess, database: Database, events: Events) -> None:
        self.gateway = gateway
        self.http = gateway.http
        self.database = database
        self.steps = make_steps(database)
        self._events = events

    # --- a client's side --------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, status: int = httpx.codes.OK, **request: Any
    ) -> httpx.Response:
        """The answer, which must have ``status``; ``request`` as of `httpx.Client.request`."""
        answer = self.http.request(method, f"/api/v1/{path}", **request)
        assert answer.status_code == status, answer.text[:1_000]
        return answer

    def get(self, path: str, status: int = httpx.codes.OK, /, **query: Any) -> Any:
        """The JSON of the answer, which must have ``status``."""
        return self.ask("GET", path, status, params=query or None).json()

    def download(self, job_id: object, status: int = 200, /, **query: Any) -> httpx.Response:
        """A file of a job, or why there is none."""
        return self.ask("GET", f"download/{job_id}", status, params=query)

    # --- a worker's side --------------------------------------------------------------------------

    def submit(self, **fields: Any) -> UUID:
        """Submit a recording of one minute; ``fields`` as of `submit_job`. Returns the job's id."""
        return submit_job(self.database, **fields)

    def claim(self) -> Claim:
        """Claim the step that is next."""
        claim = claim_next(self.steps)
        self._events.job_changed(claim.job_id)
        return claim

    def plan(self, chunks: int, *, finish: bool = True) -> Claim:
        """Claim a plan and have it find ``chunks`` of 10 s."""
        claim = plan_chunks(self.steps, chunks, finish=finish)
        self._events.job_changed(claim.job_id)
        return claim

    def transcribe(self, *claims: Claim) -> None:
        """Finish these chunks, by default the next one."""
        for claim in claims or (claim_next(self.steps),):
            finish_chunk(self.steps, claim)
            self._events.job_changed(claim.job_id)

    def moderate(self, finding: Finding = CLEAN) -> None:
        """Finish the moderation that is next."""
        claim = claim_next(self.steps)
        assert claim.kind == StepKind.MODERATE
        finish_moderation(self.steps, claim, finding)
        self._events.job_changed(claim.job_id)

    def merge(self, chunks: int, **merged: Any) -> None:
        """Finish the merge that is next; ``merged`` as of `finish_merge`."""
        self._merge(claim_next(self.steps), chunks, merged)

    def complete(self, chunks: int = 1, **merged: Any) -> None:
        """Do all steps of the next job; ``merged`` as of `finish_merge`."""
        self.plan(chunks)
        while (claim := claim_next(self.steps)).kind != StepKind.MERGE:
            if claim.kind == StepKind.MODERATE:
                finish_moderation(self.steps, claim)
            elif claim.kind == StepKind.DIARIZE:
                finish_diarization(self.steps, claim)
            else:
                finish_chunk(self.steps, claim)
        self._merge(claim, chunks, merged)

    def fail(self, error: StenoError | None = None) -> None:
        """Have the next step fail, by default for good."""
        claim = claim_next(self.steps)
        assert self.steps.fail(
            claim.step_id, claim.attempt, error or DecodeFailed(reason="made up")
        )
        self._events.job_changed(claim.job_id)

    def count(self, table: type) -> int:
        """The rows of a table."""
        with self.database.transaction() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0

    def _merge(self, claim: Claim, chunks: int, merged: Mapping[str, Any]) -> None:
        segments = [
            stored_segment(index * 10_000, (index + 1) * 10_000, f" chunk {index}")
            for index in range(chunks)
        ]
        finish_merge(self.steps, claim, **{"segments": segments} | dict(merged))
        self._events.job_changed(claim.job_id)
