"""Runs the step that a doorbell names, inside the engine's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Protocol, cast
from uuid import UUID

from loguru import logger

from common.db.steps import Claim, StaleClaim, fetched_id
from common.domain.pipeline import StepKind
from common.errors import StenoError, StorageFull, Transient, Unavailable
from common.storage.storage import is_full
from worker.context import Context, with_retries

STEPS: dict[str, dict[str, str]] = {
    "transcription": {
        StepKind.FETCH: "worker.steps.fetch",
        StepKind.PLAN: "worker.steps.plan",
        StepKind.TRANSCRIBE: "worker.steps.transcribe",
        StepKind.MODERATE: "worker.steps.moderate",
        StepKind.MERGE: "worker.steps.merge",
    },
}
"""By kind of job and of step, the module that has its ``run`` and ``limit_s`` (`StepModule`). It is
imported when such a step first comes."""


class StepModule(Protocol):
    """What a module in `worker.steps` has."""

    def run(self, context: Context, claim: Claim) -> Claim | None:
        """Do the step and end it with `Context.finish`; returns what that returns."""

    def limit_s(self, context: Context, claim: Claim) -> float:
        """How many seconds it may take, before it is taken for hung."""


OUTAGE_PAUSE_S = 1.0
"""How soon to try again to renew a lease while Postgres is away."""


class Runner:
    """Claims a step, works on it while its lease is renewed, and records how it ended.

    ``on_start(claim, limit_s)`` is told of each step and of the seconds it may take: who listens
    must end this process when they are over, since native code cannot be interrupted from within.
    ``on_lost()`` must do so at once: the step in hand is nobody's any more, or another's.
    """

    def __init__(
        self,
        context: Context,
        worker: str,
        on_start: Callable[[Claim, float], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._context = context
        self._worker = worker
        self._on_start = on_start
        self._on_lost = on_lost
        self._was_full = False

    def run(self, step_id: UUID, rq_job_id: str) -> None:
        """Run the step if it can be claimed, then those that follow at once from it.

        All of them are stopped by stopping ``rq_job_id``. The steps of a short job thus wait for a
        free worker once and not four times.
        """
        try:
            claim = self._context.steps.claim(step_id, self._worker, rq_job_id)
        except Unavailable as error:
            # It is published again; a claim that did take effect ends with its lease.
            logger.warning("step {} cannot be claimed: {}", step_id, error)
            return
        if claim is None:
            logger.debug("step {} is not pending any more", step_id)
            return
        following: Claim | None = claim
        while following is not None:
            claim, following = following, self._work(following)
            self._context.events.job_changed(claim.job_id)
        self._context.events.work_to_do()

    def _work(self, claim: Claim) -> Claim | None:
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
                self._on_start(claim, module.limit_s(self._context, claim))
                self._context.events.job_changed(claim.job_id)
                following = module.run(self._context, claim)
        except StaleClaim:
            logger.warning("the step was overtaken; its result is dropped")
            self._clear(claim)
            self._hand_back()
            return None
        except StenoError as error:
            logger.warning("the step failed: {}", error)
            self._fail(claim, error)
            return None
        except Exception as error:  # whatever it is, the job must not hang on it
            logger.exception("the step failed")
            reason = type(error).__name__
            self._fail(claim, StorageFull() if is_full(error) else Transient(reason=reason))
            return None
        logger.debug("the step is done")
        if self._was_full:
            self._was_full = False
            self._context.note_space(full=False)
        return following

    def _fail(self, claim: Claim, error: StenoError) -> None:
        if isinstance(error, StorageFull):
            self._was_full = True
            self._context.note_space(full=True)
        with_retries(self._context.steps.fail, claim.step_id, claim.attempt, error)

    def _hand_back(self) -> None:
        """Give back what was claimed as the step ended, where its end was not known to be one.

        A connection that breaks during the commit leaves open whether it took effect. Repeating the
        end then finds the step done, but not the claim of the next one.
        """
        with suppress(Unavailable):
            self._context.steps.hand_back(self._worker)

    def _clear(self, claim: Claim) -> None:
        """Erase what was written for a job that is over, whose files may be erased already.

        What cannot be erased now is found by the dispatcher (`worker.dispatcher.cleanup`).
        """
        context = self._context
        try:
            if claim.kind == StepKind.FETCH:
                recording_id = fetched_id(claim.step_id, claim.attempt)
                if not context.transcriptions.is_stored(recording_id):
                    context.storage.discard(recording_id)
            if context.cleaning.missing([claim.job_id]):
                erased = context.storage.erase(claim.job_id, None)
                if erased.files:
                    context.cleaning.erased(claim.job_id, files=erased.files, size=erased.bytes)
            else:
                context.cleaning.sweep_again([claim.job_id])
        except Transient as error:
            logger.warning("what was written too late cannot be erased now: {}", error)

    @contextmanager
    def _renewed(self, claim: Claim) -> Iterator[None]:
        """Renew the lease from a thread of its own for as long as the block runs.

        Whoever is not told that a step was called off finds out within a third of the lease, and
        has ended within two: so after a lease nobody writes for it any more.
        """
        over = threading.Event()
        calm_s = self._context.settings.worker.lease / 3

        def renew() -> None:
            pause_s = calm_s
            while not over.wait(pause_s):
                try:
                    if self._context.steps.renew(claim):
                        pause_s = calm_s
                        continue
                except Unavailable:
                    pause_s = min(calm_s, OUTAGE_PAUSE_S)
                    continue
                if not over.wait(calm_s):  # nor has it just been finished
                    try:
                        self._clear(claim)
                    finally:
                        self._on_lost()
                return

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def run_step(step_id: str) -> None:
    """What doorbells name. `worker.engine_process` runs it with its own `Runner`."""
    raise NotImplementedError(f"step {step_id} can be run by a worker of this project only")
