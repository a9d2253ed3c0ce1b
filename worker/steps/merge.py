"""Merge: join all chunks of a job to one transcript and complete the job."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from typing import Any

from loguru import logger

from common.asr.guards import DOUBTFUL
from common.db.steps import Claim
from common.db.tables import Job, JobMetrics
from common.db.transcriptions import ChunkResult, merged, row_of, transcript_in
from common.diarization.clustering import cluster
from common.diarization.identification import likeness, mean_voice
from common.domain.chunks import windows_to_json
from common.domain.detection import LANGUAGE_MISMATCH, MIXED_LANGUAGES, mismatched
from common.domain.glossary import Entry, rewritten
from common.domain.job import (
    CHANNELS_NOT_IDENTIFIED,
    DIARIZATION_FAILED,
    IDENTIFICATION_AMBIGUOUS,
    IDENTIFICATION_FAILED,
    NOBODY_ENROLLED,
    OF_IDENTIFICATION,
)
from common.domain.languages import AUTO
from common.domain.merging import ChunkSegments, speech_without_text
from common.domain.merging import merge as merge_windows
from common.domain.models import EMBEDDING_NETWORK
from common.domain.moderation import Label, each_once
from common.domain.pipeline import pipeline_of
from common.domain.request import Options
from common.domain.speakers import (
    Diarization,
    Identified,
    SpeakerCount,
    Stretch,
    attribute,
    marked_overlaps,
    turns_in,
    turns_of,
    voiced_by,
)
from common.domain.transcript import Origin, Transcript
from common.domain.values import Segment
from common.domain.voices import MIN_SPEAKER_MS, ambiguous, identify
from common.errors import StenoError, Transient, VoicesLocked
from common.transcripts import (
    moderated_by,
    moderation_warnings,
    parts,
    stretches_of,
    usable,
)
from worker.context import Context, with_retries
from worker.steps.audio import decoding_identity
from worker.steps.results import write_files

VERSIONS = ("av", "ctranslate2", "faster-whisper", "onnxruntime", "pywhispercpp", "sherpa-onnx")
"""The packages that a text depends on."""
NO_TEXT = "speech_without_text"
TOO_SHORT = "speech_too_short"
SHORT_SPEECH_MS = 300
"""A word takes longer; Whisper hallucinates on less."""
DOUBTFUL_TEXT = "doubtful_text"
"""The warning that every segment has a flag that makes it doubtful."""
SLOWEST = 0.005
"""A merge that takes more than this share of a recording's length counts as hung."""
FEWER_SPEAKERS = "fewer_speakers"
"""The warning that fewer speakers were found than the several that the request has at least."""
OWN_WARNINGS = {NO_TEXT, TOO_SHORT, DOUBTFUL_TEXT, FEWER_SPEAKERS, *OF_IDENTIFICATION}
"""Those of an earlier merge are not kept."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Merge the claimed job's chunks into its transcript; returns the next step's claim, if any.

    Raises:
        StaleClaim, StorageFull, Unavailable: as in every step.
    """
    started = time.monotonic()
    job, recording = claim.job, claim.job.recording
    assert recording is not None  # noqa: S101 - the phase that fetches it comes first
    stored, plan_ms = with_retries(context.transcriptions.to_merge, claim.job_id)
    known = sum(it.diarization is not None for it in stored)
    stored = usable(stored, context.voice_cipher)
    lost = known > sum(it.diarization is not None for it in stored)
    options = Options.from_json(job.options)
    transcribed = parts(stored)
    segments = corrected(context, merge_windows(transcribed), options.to_rewrite)
    diarization = None
    separate = job.transcription.channels is not None
    of_speakers: Sequence[str] = ()
    earlier = None
    if separate or options.diarize is not None:
        earlier = with_retries(context.transcriptions.diarization, job.id)
    if separate:
        diarization = Diarization(turns_in(segments))
        segments = marked_overlaps(segments, diarization.turns)
        of_speakers = [CHANNELS_NOT_IDENTIFIED] * options.identify
    elif options.diarize is not None:
        if lost and earlier is not None:
            diarization, of_speakers = earlier, [DIARIZATION_FAILED]
        else:
            diarization, of_speakers = _diarization(context, job, stored, options.diarize)
        segments = attributed(context, segments, diarization)
    if diarization is not None and earlier is not None:
        diarization = diarization.with_names_of(earlier)
    transcript = Transcript(
        language=job.transcription.detected_language or job.language,
        duration_ms=job.units_total or 0,
        segments=segments,
        moderated_by=moderated_by(stored) if options.moderation else None,
        diarization=diarization,
    )
    revised = with_retries(context.transcriptions.revised, job.id)
    speech_ms = sum(chunk.speech_ms for chunk, _ in transcribed)
    own = OWN_WARNINGS | pipeline_of(job.kind).warnings
    warnings = [it for it in job.warnings if it not in own]
    warnings += text_warnings(transcript, transcribed, speech_ms)
    others = mismatched(transcript.segments)
    if others:
        detected = job.language == AUTO and not options.languages
        warnings.append(MIXED_LANGUAGES if detected else LANGUAGE_MISMATCH)
    if options.moderation:
        warnings += moderation_warnings(stored)
    warnings += of_speakers
    warnings = list(dict.fromkeys(warnings))
    languages = job.transcription.language_probabilities or others
    if revised is not None:
        transcript = completed(transcript_in(revised), transcript)
    manifest = _manifest(job, stored, transcript, languages)
    if revised is not None and "reruns" in revised.manifest:
        manifest["reruns"] = revised.manifest["reruns"]
    write_files(context, claim, transcript, warnings=warnings, manifest=manifest)
    metrics = JobMetrics(
        job_id=job.id,
        audio_ms=transcript.duration_ms,
        speech_ms=speech_ms,
        upload_ms=recording.upload_ms,
        plan_ms=plan_ms,
        engine_ms=sum(chunk.engine_ms or 0 for chunk in stored),
        moderation_ms=sum(chunk.moderation_ms or 0 for chunk in stored),
        diarization_ms=sum(chunk.diarization_ms or 0 for chunk in stored),
        merge_ms=round((time.monotonic() - started) * 1000),
    )
    origin = Origin.MERGE if revised is None else Origin.RETRY
    revision = row_of(job.id, transcript, manifest, origin)
    # Before the end: a retry writes new ones.
    with suppress(Transient):  # otherwise the dispatcher drops them
        context.storage.drop_chunks(job.id)
    return context.finish(claim, within=merged(revision, metrics, warnings))


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the recording."""
    audio_s = (claim.job.units_total or 0) / 1000
    return context.settings.chunk.timeout + SLOWEST * audio_s


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


def _diarization(
    context: Context, job: Job, chunks: Sequence[ChunkResult], count: SpeakerCount
) -> tuple[Diarization, list[str]]:
    """Who speaks when, from the stretches of all chunks that were diarized; and warnings."""
    stretches = stretches_of(chunks)
    found = Diarization(turns_of(stretches, cluster(stretches, count)))
    warnings = list(_diarization_warnings(chunks, count, found))
    if Options.from_json(job.options).identify and stretches:
        try:
            found, of_voices = _identified(context, job.tenant, stretches, found)
            warnings += of_voices
        except VoicesLocked as error:
            logger.warning("nobody is identified: {}", error)
            warnings.append(IDENTIFICATION_FAILED)
    return found, warnings


def _identified(
    context: Context,
    tenant: str,
    stretches: Sequence[Stretch],
    diarization: Diarization,
) -> tuple[Diarization, list[str]]:
    """With the names of speakers whose voices the tenant has enrolled; and warnings.

    Raises:
        VoicesLocked: a voice cannot be decrypted.
    """
    speakers = {
        speaker: voice
        for speaker, theirs in voiced_by(stretches, diarization.turns).items()
        if (voice := mean_voice(theirs)) is not None and voice.sampled_ms >= MIN_SPEAKER_MS
    }
    voices = with_retries(context.voices(tenant).known, EMBEDDING_NETWORK.model)
    cosines = likeness(
        {speaker: it.embedding for speaker, it in speakers.items()},
        [voice.embedding for voice in voices],
    )
    narrow = [who for who, it in speakers.items() if it.narrow]
    known = identify(cosines, voices, narrow)
    warnings = [NOBODY_ENROLLED] * (not voices)
    warnings += [IDENTIFICATION_AMBIGUOUS] * bool(ambiguous(cosines, voices, narrow))
    named = replace(
        diarization,
        names={speaker: voice.name for speaker, (voice, _) in known.items()},
        identified={
            speaker: Identified(str(voice.id), round(cosine, 3))
            for speaker, (voice, cosine) in known.items()
        },
    )
    return named, warnings


def corrected(
    context: Context, segments: Sequence[Segment], entries: Sequence[Entry]
) -> tuple[Segment, ...]:
    """The segments with the words of glossaries written right, before they have speakers.

    So the text has the same words as it had while it grew. Offensive segments that change are
    classified anew: what was offensive may have been a name. Others stay CLEAN.
    """
    new = rewritten(segments, entries)
    changed = [it for it, old in zip(new, segments, strict=True) if it is not old]
    return _classified_anew(context, new, changed)


def attributed(
    context: Context, segments: Sequence[Segment], diarization: Diarization
) -> tuple[Segment, ...]:
    """The segments with their speakers, split where the speaker changes.

    The parts of an offensive segment are classified anew: not all of its speakers need to be so.
    """
    split = attribute(segments, diarization.turns)
    parts_of_split = [part for each in split if len(each) > 1 for part in each]
    return _classified_anew(context, [part for each in split for part in each], parts_of_split)


def _classified_anew(
    context: Context, segments: Sequence[Segment], changed: Iterable[Segment]
) -> tuple[Segment, ...]:
    """The segments; those of the ``changed`` that are labelled offensive with a new finding.

    If classifying fails, they keep the label of the text that they were made of.
    """
    offensive = [it for it in changed if it.finding and it.finding.label is not Label.CLEAN]
    if not offensive:
        return tuple(segments)
    try:
        found = context.moderation.get().classify([it.text for it in offensive])
    except StenoError as error:
        logger.warning("changed segments keep their labels: {}", error)
        return tuple(segments)
    anew = {it: replace(it, finding=finding) for it, finding in zip(offensive, found, strict=True)}
    return tuple(anew.get(it, it) for it in segments)


def completed(revised: Transcript, anew: Transcript) -> Transcript:
    """The text of people, with the speakers that a retry has found where there were none.

    The refinement that follows moderates what is not moderated.
    """
    models = None
    if revised.moderated_by is not None and anew.moderated_by is not None:
        models = each_once([*revised.moderated_by, *anew.moderated_by])
    diarization, segments = anew.diarization, revised.segments
    if diarization is not None:
        if revised.diarization is not None:
            diarization = revised.diarization.completed_by(diarization)
        unknown = [it for it in segments if it.speaker is None]
        found = dict(zip(map(id, unknown), attribute(unknown, diarization.turns), strict=True))
        parts = (_cut_finding(found.get(id(it), (it,))) for it in segments)
        segments = marked_overlaps(chain.from_iterable(parts), diarization.turns)
    return replace(revised, segments=segments, moderated_by=models, diarization=diarization)


def _cut_finding(parts: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The parts of a segment, without its label where it has several."""
    return parts if len(parts) == 1 else tuple(replace(it, finding=None) for it in parts)


def _diarization_warnings(
    chunks: Sequence[ChunkResult], count: SpeakerCount, diarization: Diarization
) -> Iterator[str]:
    if any(it.diarization is None for it in chunks):
        yield DIARIZATION_FAILED
    elif len(diarization.speakers) < count.minimum > 1:
        yield FEWER_SPEAKERS


def _manifest(
    job: Job,
    chunks: Sequence[ChunkResult],
    transcript: Transcript,
    languages: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the text depends on: enough to reproduce it."""
    assert job.recording is not None  # noqa: S101 - the phase that fetches it comes first
    language = job.transcription.detected_language or job.language
    weights_sha256 = job.transcription.weights_sha256
    channels = job.transcription.channels
    options = Options.from_json(job.options)
    return {
        "recording_sha256": job.recording.sha256,
        "model": job.model,
        "weights_sha256": weights_sha256,
        "models": job.transcription.models,
        "decoding": decoding_identity(job, weights_sha256 or "", language),
        "encoders": transcript.encoders,
        "language_probabilities": languages or None,
        # Without the words of the glossaries: the job's own options have them.
        "options": {
            name: it for name, it in job.options.items() if name not in ("glossaries", "enhance")
        },
        "glossaries": {it.name: len(it.entries) for it in options.glossaries},
        "moderation": transcript.models_to_json(),
        "channels": channels,
        "diarization": None if channels or not job.options.get("diarize") else _diarized_by(chunks),
        "versions": {name: version(name) for name in VERSIONS},
        "chunks": [
            {
                "index": stored.index,
                "channel": stored.chunk.channel,
                "windows": windows_to_json(stored.chunk.windows),
                "content_hash": stored.content_hash,
            }
            for stored in chunks
        ],
    }


def _diarized_by(chunks: Sequence[ChunkResult]) -> list[dict[str, Any]]:
    """What diarized any of these chunks, each once."""
    found: list[dict[str, Any]] = []
    for chunk in chunks:
        if chunk.diarization is not None and chunk.diarization["by"] not in found:
            found.append(chunk.diarization["by"])
    return found
