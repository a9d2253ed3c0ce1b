"""Runs the step that a queue message names, inside the engine process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast
from uuid import UUID

from loguru import logger

from common.db.deletions import record_erased
from common.db.steps import Claim, StaleClaim, fetched_id
from common.domain.pipeline import StepKind
from common.errors import StenoError, StorageFull, Transient, Unavailable
from common.storage.storage import is_full
from worker.context import Context, with_retries

STEPS: dict[str, dict[str, str]] = {
    "transcription": {
        StepKind.FETCH: "worker.steps.fetch",
        StepKind.FETCH_MODEL: "worker.steps.fetch_model",
        StepKind.PLAN: "worker.steps.plan",
        StepKind.TRANSCRIBE: "worker.steps.transcribe",
        StepKind.MODERATE: "worker.steps.moderate",
        StepKind.DIARIZE: "worker.steps.diarize",
        StepKind.MERGE: "worker.steps.merge",
        StepKind.REFINE: "worker.steps.refine",
    },
    "rerun": {
        StepKind.FETCH_MODEL: "worker.steps.fetch_model",
        StepKind.PLAN: "worker.steps.plan",
        StepKind.TRANSCRIBE: "worker.steps.transcribe",
        StepKind.MODERATE: "worker.steps.moderate",
        StepKind.SPLICE: "worker.steps.splice",
    },
    "enhancement": {
        StepKind.DIVIDE: "worker.steps.divide",
        StepKind.ASK: "worker.steps.ask",
        StepKind.COMBINE: "worker.steps.combine",
    },
}
"""The module of each kind of step, by kind of job (see `StepModule`). It is imported when a step of
that kind first runs."""


class StepModule(Protocol):
    """The interface of a module in `worker.steps`."""

    def run(self, context: Context, claim: Claim) -> Claim | None:
        """Do the step and finish it by `Context.finish`; returns what that returns."""

    def limit_s(self, context: Context, claim: Claim) -> float:
        """Seconds after which the step counts as hung."""


OUTAGE_PAUSE_S = 1.0
"""How soon to retry renewing a lease while Postgres is unavailable."""


@dataclass(eq=False)
class Runner:
    """Claims a step, runs it while its lease is renewed, and records how it ended.

    ``on_start(claim, limit_s)`` is called for each step with its time limit in seconds. Its
    receiver must end this process when the limit is over, since native code cannot be interrupted
    from within. ``on_lost()`` must end it at once: the claim on the current step is lost.
    """

    context: Context
    worker: str
    on_start: Callable[[Claim, float], None]
    on_lost: Callable[[], None]
    _was_full: bool = False

    def run(self, step_id: UUID, rq_job_id: str) -> None:
        """Run the step if it can be claimed, then the steps that follow it directly.

        Stopping ``rq_job_id`` stops all of them. Thus the steps of a short job wait for a free
        worker once, and not four times.
        """
        try:
            claim = self.context.steps.claim(step_id, self.worker, rq_job_id)
        except Unavailable as error:
            # It is published again; a claim that was committed expires with its lease.
            logger.warning("step {} cannot be claimed: {}", step_id, error)
            return
        if claim is None:
            logger.debug("step {} is no longer pending", step_id)
            return
        following: Claim | None = claim
        while following is not None:
            claim, following = following, self._run_logged(following)
            self.context.events.job_changed(claim.job_id)
        self.context.events.work_to_do()

    def _run_logged(self, claim: Claim) -> Claim | None:
        with logger.contextualize(
            request_id=claim.job.request_id,
            job_id=claim.job_id,
            step=claim.kind,
            part=claim.part_index,
            attempt=claim.attempt,
        ):
            return self._attempt(claim)

    def _attempt(self, claim: Claim) -> Claim | None:
        try:
            with self._renewed(claim):
                module = cast("StepModule", import_module(STEPS[claim.job.kind][claim.kind]))
                self.on_start(claim, module.limit_s(self.context, claim))
                self.context.events.job_changed(claim.job_id)
                following = module.run(self.context, claim)
        except StaleClaim:
            logger.warning("the claim is stale: the result is dropped")
            self._clear(claim)
            self._hand_back()
            return None
        except StenoError as error:
            logger.warning("the step failed: {}", error)
            self._fail(claim, error)
            return None
        except Exception as error:  # no error may leave the job waiting
            logger.exception("the step failed")
            reason = type(error).__name__
            self._fail(claim, StorageFull() if is_full(error) else Transient(reason=reason))
            return None
        logger.debug("the step is done")
        if self._was_full:
            self._was_full = False
            self.context.note_space(full=False)
        return following

    def _fail(self, claim: Claim, error: StenoError) -> None:
        if isinstance(error, StorageFull):
            self._was_full = True
            self.context.note_space(full=True)
        with_retries(self.context.steps.fail, claim.step_id, claim.attempt, error)

    def _hand_back(self) -> None:
        """Give back what was claimed as the step ended, where its end was not known to be one.

        A connection that breaks during the commit leaves open whether it took effect. Repeating the
        end then finds the step done, but not the claim of the next one.
        """
        with suppress(Unavailable):
            self.context.steps.hand_back(self.worker)

    def _clear(self, claim: Claim) -> None:
        """Erase what was written for a job that has ended, whose files may be erased already.

        The dispatcher erases later what cannot be erased now (`worker.dispatcher.cleanup`).
        """
        context = self.context
        try:
            if claim.kind == StepKind.FETCH:
                recording_id = fetched_id(claim.step_id, claim.attempt)
                if not context.transcriptions.is_stored(recording_id):
                    context.storage.discard(recording_id)
            if context.retention.missing([claim.job_id]):
                erased = context.storage.erase(claim.job_id, None)
                if erased.files:
                    database = context.retention.database
                    record_erased(database, claim.job_id, files=erased.files, size=erased.bytes)
            else:
                context.retention.sweep_again([claim.job_id])
        except Transient as error:
            logger.warning("files written after the end of the job cannot be erased now: {}", error)

    @contextmanager
    def _renewed(self, claim: Claim) -> Iterator[None]:
        """Renew the lease in a separate thread while the block runs.

        A worker that misses the stop command of a cancelled step finds out within a third of the
        lease, and has ended within two thirds. So no worker writes for the step after one lease.
        """
        over = threading.Event()
        interval_s = self.context.settings.worker.lease / 3

        def renew() -> None:
            pause_s = interval_s
            while not over.wait(pause_s):
                try:
                    if self.context.steps.renew(claim):
                        pause_s = interval_s
                        continue
                except Unavailable:
                    pause_s = min(interval_s, OUTAGE_PAUSE_S)
                    continue
                if not over.wait(interval_s):  # unless the step has just finished
                    try:
                        self._clear(claim)
                    finally:
                        self.on_lost()
                return

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def run_step(step_id: str) -> None:
    """The function that queue messages name; `worker.engine_process` runs the step itself."""
    raise NotImplementedError(f"step {step_id} needs a Stenopool worker: run `python -m worker`")
