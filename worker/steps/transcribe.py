"""Transcribe: one chunk's audio to the segments of its windows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from common.asr.engine import Samples
from common.asr.multilingual import parts_by_language
from common.asr.segments import cut
from common.db.steps import Claim
from common.db.tables import Job
from common.domain.models import ANY_LANGUAGE, ChosenModel
from common.domain.values import Segment, Span
from common.errors import WeightsCorrupt
from common.transcripts import result_to_json
from worker.context import Context
from worker.steps.audio import (
    SLOWEST_ENGINE,
    chosen_models,
    chunk_of,
    cut_samples,
    decoding_options,
    model_of,
    read_chunk,
)

TRANSLATED = "en"
"""The language that Whisper translates into."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Transcribe the claimed chunk; returns the claim of the next step, if any.

    Raises:
        WeightsMissing, WeightsCorrupt, RecordingLost, ChunkAudioLost: permanently.
        EngineFailed, ModelFetchFailed, StaleClaim, Unavailable: as in every step.
    """
    if claim.known is not None:
        return context.finish(claim, result=claim.known, elapsed_ms=0)
    started = time.monotonic()
    result = _transcribe(context, claim)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, result=result, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the chunk."""
    audio_s = chunk_of(claim.part).audio.duration_ms / 1000
    several = chosen_models(claim.job)
    names = {chosen.name for chosen in several.values()} or {model_of(claim.job)}
    fetch_s = sum(context.models.fetch_limit_s([name]) for name in names)
    runs = 2 if several else 1  # to detect the languages may take as long as to transcribe
    return context.settings.chunk.timeout + runs * SLOWEST_ENGINE * audio_s + fetch_s


def _transcribe(context: Context, claim: Claim) -> list[Any]:
    job, chunk = claim.job, chunk_of(claim.part)
    several = chosen_models(job)
    weights_sha256 = job.transcription.weights_sha256 or ""
    for chosen in several.values() or [ChosenModel(model_of(job), weights_sha256)]:
        _check(context, chosen)
    language = job.transcription.detected_language or job.language
    windows = cut_samples(read_chunk(context, claim), chunk.windows, chunk.audio)
    if several:
        return result_to_json(_in_several_languages(context, job, windows, language))
    engine = context.engines.get(model_of(job))
    options = decoding_options(job, job.engine, language)
    written = TRANSLATED if options.task == "translate" else None
    return result_to_json(
        [replace(segment, encoder=engine.encoder, language=written) for segment in segments]
        for segments in engine.transcribe(windows, options)
    )


def _check(context: Context, chosen: ChosenModel) -> None:
    """Have the weights that the job was planned with."""
    weights = context.models.resolve(chosen.name)
    if weights.sha256 != chosen.weights_sha256:
        raise WeightsCorrupt(
            path=weights.path, found=weights.sha256, expected=chosen.weights_sha256
        )


def _in_several_languages(
    context: Context, job: Job, windows: list[Samples], first: str
) -> list[list[Segment]]:
    """The segments of each window, each part of it by the model of its language."""
    models = chosen_models(job)
    detector = models.pop(ANY_LANGUAGE).name
    parts = parts_by_language(
        windows, context.engines.get(detector), context.voice_network, list(models), first
    )
    found: dict[tuple[int, Span], list[Segment]] = {}
    # The detector is loaded, and of the others each is loaded once.
    order = sorted(models, key=lambda code: (models[code].name != detector, str(models[code].name)))
    for language in order:
        own = [
            (index, span)
            for index, each in enumerate(parts)
            for span, spoken in each
            if spoken == language
        ]
        if not own:
            continue
        engine = context.engines.get(models[language].name)
        options = decoding_options(job, engine.name, language)
        decoded = engine.transcribe([cut(windows[index], span) for index, span in own], options)
        written = TRANSLATED if options.task == "translate" else language
        for (index, span), segments in zip(own, decoded, strict=True):
            found[index, span] = [
                replace(segment.shifted(span.start_ms), encoder=engine.encoder, language=written)
                for segment in segments
            ]
    return [
        [segment for span, _ in each for segment in found[index, span]]
        for index, each in enumerate(parts)
    ]
