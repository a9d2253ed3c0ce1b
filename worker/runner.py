"""Runs the step that a doorbell names, inside the engine's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from loguru import logger

from common.db.steps import Claim, StaleClaim, fetched_id
from common.domain.chunks import windows_from_json
from common.domain.detection import MOST_ASKED
from common.domain.job import StepKind
from common.domain.languages import AUTO
from common.domain.values import MAX_WINDOW_MS, Chunk
from common.errors import StenoError, StorageFull, Transient, Unavailable
from common.storage.storage import is_full
from worker.context import Context, persist
from worker.steps.merge import merge
from worker.steps.moderate import moderate
from worker.steps.plan import plan
from worker.steps.transcribe import transcribe


def fetch(context: Context, claim: Claim) -> UUID:
    """See `worker.steps.fetch`, whose HTTP client is large and seldom needed."""
    from worker.steps.fetch import fetch

    return fetch(context, claim)


STEPS: dict[StepKind, Callable[[Context, Claim], UUID | None]] = {
    StepKind.FETCH: fetch,
    StepKind.PLAN: plan,
    StepKind.TRANSCRIBE: transcribe,
    StepKind.MODERATE: moderate,
    StepKind.MERGE: merge,
}

SLOWEST_ENGINE = 4.0
"""A chunk that takes more than this many times its sound's length is taken for hung."""
SLOWEST_PLAN = 0.05
"""The same for decoding and cutting."""
OUTAGE_PAUSE_S = 1.0
"""How soon to try again to renew a lease while Postgres is away."""
LOWEST_COPY_RATE = 5_000_000
"""Bytes a second at which a recording that was fetched gets from here to the storage."""
LOWEST_BYTE_RATE = 1_000
"""Bytes a second of the thinnest recording, to bound the length of one that does not tell it."""


class Runner:
    """Claims a step, works on it while its lease is renewed, and records how it ended.

    ``on_start(claim, limit_s)`` is told of each step and of the seconds it may take: who listens
    must end this process when they are over, since native code cannot be interrupted from within.
    ``on_lost()`` must do so at once: the step in hand is nobody's any more, or another's.
    ``may_go_on()`` tells whether to take up a step that follows from the one just done.
    """

    def __init__(
        self,
        context: Context,
        worker: str,
        on_start: Callable[[Claim, float], None],
        on_lost: Callable[[], None],
        may_go_on: Callable[[], bool],
    ) -> None:
        self._context = context
        self._worker = worker
        self._on_start = on_start
        self._on_lost = on_lost
        self._may_go_on = may_go_on
        self._was_full = False

    def run(self, step_id: UUID, doorbell: str) -> None:
        """Run the step if it can be claimed, then those that follow at once from it.

        All of them are stopped by stopping ``doorbell``.

        The steps of a short job thus wait for a free worker once and not four times.
        """
        following: UUID | None = step_id
        while following is not None:
            try:
                claim = self._context.steps.claim(following, self._worker, doorbell)
            except Unavailable as error:
                # It is rung again; a claim that did take effect ends with its lease.
                logger.warning("step {} cannot be claimed: {}", following, error)
                return
            if claim is None:
                logger.debug("step {} is not to be had", following)
                return
            following = self._work(claim)
            self._context.events.job_changed(claim.job_id)
            if following is None or not self._may_go_on():
                self._context.events.work_to_do()
                return

    def _work(self, claim: Claim) -> UUID | None:
        with logger.contextualize(
            request_id=claim.request_id,
            job_id=claim.job_id,
            step=claim.kind.value,
            chunk=claim.chunk_index,
            attempt=claim.attempt,
        ):
            return self._attempt(claim)

    def _attempt(self, claim: Claim) -> UUID | None:
        try:
            with self._renewed(claim):
                self._on_start(claim, self._limit_s(claim))
                self._context.events.job_changed(claim.job_id)
                following = STEPS[claim.kind](self._context, claim)
        except StaleClaim:
            logger.warning("the step was overtaken; its result is dropped")
            self._clear(claim)
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
        persist(lambda: self._context.steps.fail(claim.step_id, claim.attempt, error))

    def _clear(self, claim: Claim) -> None:
        """Erase what was written for a job that is over, whose files may be erased already.

        What cannot be erased now is found by the dispatcher (`worker.janitor`).
        """
        context = self._context
        try:
            if claim.kind is StepKind.FETCH:
                recording_id = fetched_id(claim.step_id, claim.attempt)
                if not context.steps.is_stored(recording_id):
                    context.storage.discard(recording_id)
            if context.cleaning.missing([claim.job_id]):
                erased = context.storage.erase(claim.job_id, None)
                if erased.files:
                    context.cleaning.erased(claim.job_id, files=erased.files, size=erased.bytes)
            else:
                context.cleaning.sweep_again([claim.job_id])
        except Transient as error:
            logger.warning("what was written too late cannot be erased now: {}", error)

    def _limit_s(self, claim: Claim) -> float:
        base = self._context.settings.chunk.timeout
        if claim.kind is StepKind.TRANSCRIBE:
            chunk = persist(lambda: self._context.steps.chunk_of(claim))
            audio = Chunk(chunk.index, windows_from_json(chunk.windows)).audio
            return base + SLOWEST_ENGINE * audio.duration_ms / 1000
        if claim.kind is StepKind.FETCH:
            settings = self._context.settings
            return base + settings.fetch.timeout + settings.upload.max_bytes / LOWEST_COPY_RATE
        if claim.kind is StepKind.PLAN:
            job, recording = persist(lambda: self._context.steps.job_of(claim))
            longest_s = recording.size_bytes / LOWEST_BYTE_RATE
            asked_s = MOST_ASKED * MAX_WINDOW_MS / 1000 if job.language == AUTO else 0
            return base + SLOWEST_PLAN * longest_s + SLOWEST_ENGINE * asked_s
        return base

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
    """What doorbells name. `worker.horse` runs it with its own `Runner`."""
    raise NotImplementedError(f"step {step_id} can be run by a worker of this project only")
