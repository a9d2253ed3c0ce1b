"""Refine: complete a revision that is not the machine's: its moderation, word times and files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from loguru import logger

from common.db.steps import Claim
from common.db.transcriptions import refined, transcript_in
from common.domain.aligning import Passage, passages, with_times
from common.domain.moderation import each_once
from common.domain.transcript import Transcript
from common.domain.values import Word
from common.errors import StenoError
from worker.context import Context, with_retries
from worker.steps.audio import (
    SLOWEST_ENGINE,
    chosen_models,
    decoding_options,
    model_of,
    open_recording,
    read_span,
)
from worker.steps.results import write_files


def run(context: Context, claim: Claim) -> Claim | None:
    """Refine the newest revision of the claimed job.

    While the claim is valid it stays the newest: each new one has a step of its own.

    Raises:
        ModerationOff, ModerationUnusable, RecordingLost, WeightsMissing, WeightsCorrupt,
            DecodeFailed: permanently; everything else is done before.
        EngineFailed, ModelFetchFailed, ModerationFailed, StaleClaim, StorageFull, Unavailable: as
            in every step.
    """
    revision = with_retries(context.transcriptions.newest, claim.job_id)
    complete = transcript_in(revision)
    failure: StenoError | None = None
    for refinement in (partial(_moderated, context), partial(_aligned, context, claim)):
        try:
            complete = refinement(complete)
        except StenoError as error:
            failure = error
    manifest = {**revision.manifest, "moderation": complete.models_to_json()}
    with_retries(context.steps.write, claim, refined(complete, manifest))
    # Scores and probabilities are rounded now: the files have what downloads have.
    stored = with_retries(context.transcriptions.newest, claim.job_id)
    write_files(
        context,
        claim,
        transcript_in(stored),
        warnings=claim.job.warnings,
        manifest=stored.manifest,
    )
    if failure is not None:
        raise failure
    return context.finish(claim)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the recording, all of which may have been edited."""
    audio_s = (claim.job.units_total or 0) / 1000
    return context.settings.chunk.timeout + SLOWEST_ENGINE * audio_s


def _moderated(context: Context, transcript: Transcript) -> Transcript:
    """With the findings of the segments that lack one, if moderation was requested."""
    missing = [it for it in transcript.segments if it.finding is None and it.text.strip()]
    if transcript.moderated_by is None or not missing:
        return transcript
    moderation = context.moderation.get()
    findings = moderation.classify([segment.text for segment in missing])
    found = dict(zip(map(id, missing), findings, strict=True))
    logger.info("{} segments of a new revision are moderated", len(missing))
    return replace(
        transcript,
        segments=tuple(
            replace(it, finding=found.get(id(it), it.finding)) for it in transcript.segments
        ),
        moderated_by=each_once([*transcript.moderated_by, moderation.by]),
    )


def _aligned(context: Context, claim: Claim, transcript: Transcript) -> Transcript:
    """With the times of words that are estimated, as far as the engine can align them."""
    found = passages(transcript.segments)
    if not found:
        return transcript
    job = claim.job
    chosen = chosen_models(job)
    track, warnings = job.transcription.audio_track, job.warnings
    aligned: list[tuple[Passage, tuple[Word, ...] | None]] = []
    with open_recording(context, job.recording) as recording:
        for passage in found:
            language = passage.language or transcript.language
            name = chosen[language].name if language in chosen else model_of(job)
            engine = context.engines.get(name)
            samples = read_span(recording, passage.audio, track, passage.channel, warnings)
            options = decoding_options(job, name.engine, language)
            (words,) = engine.align([samples], [passage.texts], options)
            aligned.append((passage, words))
    return replace(transcript, segments=with_times(transcript.segments, aligned))
