"""Plan: decode a recording once and cut it into chunks, which other workers start on meanwhile."""

from __future__ import annotations

import time
from uuid import UUID

from common.asr.languages import AUTO
from common.audio.decode import Decoding
from common.audio.planning import PlannedChunk, Planner
from common.audio.probe import check_length
from common.db.steps import Claim, PlannedRow
from common.domain.chunks import content_hash, windows_to_json
from common.domain.request import Options
from worker.context import Context, fenced, persist
from worker.steps.sound import cut_samples, decoding_identity, open_recording, plan_options

CHARGED_MS = 30_000
"""How much audio may be decoded before it is charged."""
NOBODY_SPEAKS = "en"
"""The language of a recording in which none could be detected: any is as good."""


class _PlannedOtherwise(Exception):
    """An earlier attempt, by other code, cut the recording in other places."""


def plan(context: Context, claim: Claim) -> UUID | None:
    """Cut the recording of the claimed job; returns the step to go on with, if there is just one.

    Raises:
        DecodeFailed, RecordingLost, TooLarge, WeightsMissing: for good.
        StaleClaim, StorageFull, Unavailable: as everywhere.
    """
    started = time.monotonic()
    planning = _Planning(context, claim)
    try:
        persist(lambda: planning.run(replan=False))
    except _PlannedOtherwise:
        persist(lambda: planning.run(replan=True))
    elapsed_ms = round((time.monotonic() - started) * 1000)
    merge = persist(
        lambda: context.steps.finish_plan(
            claim,
            duration_ms=planning.duration_ms,
            warnings=planning.warnings,
            elapsed_ms=elapsed_ms,
        )
    )
    return planning.added[0] if len(planning.added) == 1 else merge


class _Planning:
    def __init__(self, context: Context, claim: Claim) -> None:
        self._context = context
        self._claim = claim
        self._job, recording = persist(lambda: context.steps.job_of(claim))
        self._cutting = Options.from_json(self._job.options).cutting
        self._recording_id = recording.id
        self._weights = context.engines.weights(self._job.engine, self._job.model)
        self._language: str | None = None
        self._known: dict[int, tuple[str, bool]] = {}
        self._charged_ms = self._job.charged_ms
        self.duration_ms = 0
        self.warnings: list[str] = []
        self.added: list[UUID] = []

    def run(self, *, replan: bool) -> None:
        self._language = None
        # `_start` checks the claim after this and before anything is written.
        persist(lambda: self._context.storage.begin_chunks(self._claim.job_id))
        if not replan:
            self._known = persist(lambda: self._context.steps.planned(self._claim.job_id))
        if self._job.language != AUTO:
            self._start(self._job.language, replan=replan)
        planner = Planner(plan_options(self._cutting), self._context.voice_network)
        with open_recording(self._context, self._recording_id) as recording:
            decoding = Decoding(recording)
            for block in decoding:
                check_length(decoding.duration_ms, self._context.settings.upload.max_audio_hours)
                if not self._charged_ms or decoding.duration_ms >= self._charged_ms + CHARGED_MS:
                    self._charge(decoding.duration_ms)
                for chunk in planner.feed(block):
                    self._add(chunk, replan=replan)
        self._charge(decoding.duration_ms)
        for chunk in planner.finish():
            self._add(chunk, replan=replan)
        if self._language is None:
            self._start(NOBODY_SPEAKS, replan=replan)
        self.duration_ms = planner.duration_ms
        self.warnings = [*decoding.warnings, *(["no_speech"] if planner.speech_ms == 0 else [])]

    def _charge(self, decoded_ms: int) -> None:
        if decoded_ms > self._charged_ms:
            persist(lambda: self._context.steps.charge_decoded(self._claim, decoded_ms))
            self._charged_ms = decoded_ms

    def _start(self, language: str, *, replan: bool) -> None:
        self._language = language
        if replan:
            self._known = {}
        persist(
            lambda: self._context.steps.start_plan(
                self._claim,
                weights_sha256=self._weights.sha256,
                language=language,
                replan=replan,
            )
        )

    def _add(self, planned: PlannedChunk, *, replan: bool) -> None:
        chunk = planned.chunk
        language = self._language
        if language is None:
            engine = self._context.engines.get(self._job.engine, self._job.model)
            language, _ = engine.detect_language(
                cut_samples(planned.pcm, chunk.windows, chunk.audio)
            )
            self._start(language, replan=replan)
        identity = decoding_identity(self._job, self._weights.sha256, language)
        address = content_hash(chunk, planned.pcm, identity)
        known_address, done = self._known.get(chunk.index, (address, False))
        if known_address != address:
            raise _PlannedOtherwise
        if done:
            return
        storage, job_id = self._context.storage, self._claim.job_id
        with fenced():
            persist(lambda: storage.write_chunk(job_id, chunk.index, planned.pcm))
        row = PlannedRow(chunk.index, windows_to_json(chunk.windows), address)
        self.added += persist(lambda: self._context.steps.add_chunks(self._claim, [row]))
        self._context.events.work_to_do()
