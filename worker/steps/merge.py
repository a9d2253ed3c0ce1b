"""Merge: join all chunks of a job to one transcript and complete the job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from common.asr.guards import DOUBTFUL
from common.db.steps import Claim
from common.db.tables import Job, JobMetrics, TranscriptRevision
from common.db.transcriptions import ChunkResult, merged
from common.domain.detection import LANGUAGE_MISMATCH, MIXED_LANGUAGES, mismatched
from common.domain.formats import MEDIA_TYPES, write
from common.domain.languages import AUTO
from common.domain.masking import masked
from common.domain.merging import ChunkSegments, speech_without_text
from common.domain.merging import merge as merge_windows
from common.domain.request import Options
from common.domain.transcript import Transcript, segments_to_json
from common.errors import Transient
from common.transcripts import moderated_by, moderation_warnings, parts
from worker.context import Context, fenced, with_retries
from worker.steps.audio import decoding_identity

VERSIONS = ("av", "ctranslate2", "faster-whisper", "onnxruntime", "pywhispercpp", "sherpa-onnx")
"""The packages that a text depends on."""
NO_TEXT = "speech_without_text"
TOO_SHORT = "speech_too_short"
SHORT_SPEECH_MS = 300
"""A word takes longer; Whisper hallucinates on less."""
DOUBTFUL_TEXT = "doubtful_text"
"""The warning that every segment has a flag that makes it doubtful."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Merge the claimed job's chunks into its transcript; returns the next step's claim, if any.

    Raises:
        StaleClaim, StorageFull, Unavailable: as in every step.
    """
    started = time.monotonic()
    job, recording = claim.job, claim.job.recording
    assert recording is not None  # noqa: S101 - the phase that fetches it comes first
    stored, plan_ms = with_retries(context.transcriptions.to_merge, claim.job_id)
    options = Options.from_json(job.options)
    transcribed = parts(stored)
    transcript = Transcript(
        language=job.transcription.detected_language or job.language,
        duration_ms=job.units_total or 0,
        segments=merge_windows(transcribed),
        moderated_by=moderated_by(stored) if options.moderation else None,
    )
    speech_ms = sum(chunk.speech_ms for chunk, _ in transcribed)
    warnings = [*job.warnings, *text_warnings(transcript, transcribed, speech_ms)]
    others = mismatched(transcript.segments)
    if others:
        detected = job.language == AUTO and not options.languages
        warnings.append(MIXED_LANGUAGES if detected else LANGUAGE_MISMATCH)
    if options.moderation:
        warnings += moderation_warnings(stored)
    warnings = list(dict.fromkeys(warnings))
    languages = job.transcription.language_probabilities or others
    manifest = _manifest(job, stored, transcript, languages)
    shown = masked(transcript) if options.filter_profanity else transcript
    with_retries(context.storage.begin, "results", job.id)
    with_retries(context.steps.check, claim)
    with fenced():
        _write_files(context, job, shown, warnings, manifest)
    metrics = JobMetrics(
        job_id=job.id,
        audio_ms=transcript.duration_ms,
        speech_ms=speech_ms,
        upload_ms=recording.upload_ms,
        plan_ms=plan_ms,
        engine_ms=sum(chunk.engine_ms or 0 for chunk in stored),
        moderation_ms=sum(chunk.moderation_ms or 0 for chunk in stored),
        merge_ms=round((time.monotonic() - started) * 1000),
    )
    revision = TranscriptRevision(
        job_id=job.id,
        revision=1,
        language=transcript.language,
        duration_ms=transcript.duration_ms,
        word_count=transcript.word_count,
        segments=segments_to_json(transcript.segments),
        manifest=manifest,
    )
    following = context.finish(claim, within=merged(revision, metrics, warnings))
    with suppress(Transient):  # otherwise the dispatcher drops them
        context.storage.drop_chunks(job.id)
    return following


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """The time limit."""
    return context.settings.chunk.timeout


def text_warnings(
    transcript: Transcript, transcribed: Sequence[ChunkSegments], speech_ms: int
) -> Iterator[str]:
    """Warnings of speech without text, or of a text that is doubtful as a whole."""
    if 0 < speech_ms < SHORT_SPEECH_MS:
        yield TOO_SHORT
    elif speech_without_text(transcribed) or (speech_ms and not transcript.segments):
        yield NO_TEXT
    if transcript.segments and not any(
        DOUBTFUL.isdisjoint(segment.flags) for segment in transcript.segments
    ):
        yield DOUBTFUL_TEXT


def _write_files(
    context: Context,
    job: Job,
    transcript: Transcript,
    warnings: list[str],
    manifest: dict[str, Any],
) -> None:
    for ending in MEDIA_TYPES:
        content = write(ending, transcript, warnings=warnings, manifest=manifest)
        name, encoded = f"transcript.{ending}", content.encode()
        with_retries(context.storage.write_result, job.id, name, encoded)


def _manifest(
    job: Job,
    chunks: Sequence[ChunkResult],
    transcript: Transcript,
    languages: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the text depends on: enough to reproduce it."""
    assert job.recording is not None  # noqa: S101 - the phase that fetches it comes first
    models = transcript.moderated_by
    language = job.transcription.detected_language or job.language
    weights_sha256 = job.transcription.weights_sha256
    return {
        "recording_sha256": job.recording.sha256,
        "model": job.model,
        "weights_sha256": weights_sha256,
        "models": job.transcription.models,
        "decoding": decoding_identity(job, weights_sha256 or "", language),
        "encoders": sorted({segment.encoder for segment in transcript.segments} - {None}),
        "language_probabilities": languages or None,
        "options": job.options,
        "moderation": None if models is None else [by.to_json() for by in models],
        "versions": {name: version(name) for name in VERSIONS},
        "chunks": [
            {"index": chunk.index, "windows": chunk.windows, "content_hash": chunk.content_hash}
            for chunk in chunks
        ],
    }
