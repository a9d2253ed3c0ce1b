"""Converts a job's recording and stored request to the inputs of audio code and engines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from common.asr.engine import DecodingOptions, Samples
from common.audio.decode import DAMAGED, BlockDecoder, ChannelDecoder, MonoDecoder
from common.audio.planning import PlanOptions
from common.audio.silence import SilenceOptions
from common.db.steps import Claim
from common.db.tables import Job, Part, Recording
from common.domain.chunks import chunk_from_json, content_hash
from common.domain.cutting import CutOptions
from common.domain.models import ANY_LANGUAGE, ChosenModel, ModelName
from common.domain.request import Cutting, Options
from common.domain.values import BYTES_PER_MS, SAMPLES_PER_MS, Chunk, Span, Window
from common.errors import ChunkAudioLost, NotFound, RecordingLost
from common.weights.manifest import SHERPA_ONNX
from worker.context import Context, with_retries

SLOWEST_ENGINE = 4.0
"""An engine that takes more than this many times the length of the audio counts as hung."""
ADAPTER_REVISION = 5
"""Increased when our own code changes the text of the same audio and options."""
BEAM_SIZES = {SHERPA_ONNX: 1}
"""The beam size of engines that have another default than Whisper's 5."""


def open_recording(context: Context, recording: Recording | None) -> BinaryIO:
    """Open the recording of a job; the caller closes it.

    Raises:
        RecordingLost: it is missing from the storage.
    """
    assert recording is not None  # noqa: S101 - the phase that fetches it comes first
    try:
        return context.storage.open_recording(recording.id)
    except NotFound as error:
        raise RecordingLost from error


def cut_again(
    recording: BinaryIO, audio: Span, track: int | None, channel: int | None = None
) -> bytes:
    """The 16-bit PCM of a part of a recording, as planned; decodes everything before it.

    ``channel``: of this one; None: of the mix.

    Raises:
        DecodeFailed, NotAudio: as `BlockDecoder`.
    """
    pcm = bytearray()
    decoder = MonoDecoder if channel is None else ChannelDecoder
    for block in part_of(decoder(recording, track=track), audio):
        part = block if channel is None else block[:, channel]
        pcm += part.astype("<i2", copy=False).tobytes()
    return bytes(pcm.ljust(audio.duration_ms * BYTES_PER_MS, b"\0"))


def read_span(
    recording: BinaryIO,
    audio: Span,
    track: int | None,
    channel: int | None,
    warnings: Collection[str],
) -> Samples:
    """A part of a recording, shorter where the recording ends: mono float32 in [-1, 1) at 16 kHz.

    Decodes little before it. The samples may differ a little from those of the job's chunks, the
    times do not: ``warnings`` are those of the job, which show whether that is certain.

    Raises:
        DecodeFailed, NotAudio: as `BlockDecoder`.
    """
    start_ms = 0 if DAMAGED in warnings else audio.start_ms
    decoder = MonoDecoder if channel is None else ChannelDecoder
    blocks = part_of(decoder(recording, track=track, start_ms=start_ms), audio)
    parts = [block if channel is None else block[:, channel] for block in blocks]
    return np.concatenate(parts or [np.zeros(0, np.int16)]).astype(np.float32) / 32768.0


def chunk_of(part: Part | None) -> Chunk:
    """The chunk of a step in parts."""
    assert part is not None  # noqa: S101 - the pipeline has this step in parts
    return chunk_from_json(part.index, part.data)


def read_chunk(context: Context, claim: Claim) -> bytes:
    """The 16-bit PCM of the claimed chunk; cut from the recording again if it is lost.

    Raises:
        RecordingLost, ChunkAudioLost: it cannot be cut again.
    """
    job, part, chunk = claim.job, claim.part, chunk_of(claim.part)
    try:
        return with_retries(context.storage.read_chunk, job.id, chunk.index)
    except NotFound:
        logger.warning("the audio of chunk {} is lost: it is cut again", chunk.index)
    with open_recording(context, job.recording) as recording:
        pcm = cut_again(recording, chunk.audio, job.transcription.audio_track, chunk.channel)
    language = job.transcription.detected_language or job.language
    identity = decoding_identity(job, job.transcription.weights_sha256 or "", language)
    if part is None or content_hash(chunk, pcm, identity) != part.content_hash:
        raise ChunkAudioLost(index=chunk.index)
    return pcm


def part_of(decoding: BlockDecoder, part: Span) -> Iterator[NDArray[np.int16]]:
    """The samples of a part of a recording; decodes everything before it and little after it."""
    first, last = part.start_ms * SAMPLES_PER_MS, part.end_ms * SAMPLES_PER_MS
    for block in decoding:
        at = decoding.samples - len(block)
        yield block[max(0, first - at) : max(0, last - at)]
        if decoding.samples >= last:
            return


def plan_options(cutting: Cutting) -> PlanOptions:
    """How to cut, from the stored options."""
    return PlanOptions(
        strategy=cutting.strategy,
        cut=CutOptions(
            window_ms=cutting.window_ms,
            overlap_ms=min(cutting.overlap_ms, cutting.window_ms // 4),
            pad_ms=min(CutOptions().pad_ms, cutting.window_ms // 8),
        ),
        silence=SilenceOptions(
            threshold_dbfs=cutting.silence_dbfs, min_silence_ms=cutting.min_silence_ms
        ),
    )


def model_of(job: Job) -> ModelName:
    """The model that transcribes the job; with ``auto`` it is known once the job is planned."""
    return ModelName(job.engine, job.model)


def chosen_models(job: Job) -> dict[str, ChosenModel]:
    """With several languages, the model of each and of `ANY_LANGUAGE`: that which detects them.

    Empty with one language, and until the job is planned.
    """
    stored = job.transcription.models or {}
    return {language: ChosenModel.from_json(each) for language, each in stored.items()}


def decoding_options(job: Job, engine: str, language: str) -> DecodingOptions:
    """How to decode, from the stored options and each engine's measured defaults."""
    asked = Options.from_json(job.options).decoding
    given: dict[str, Any] = {
        "language": language,
        "task": asked.task,
        "initial_prompt": asked.initial_prompt,
        "hotwords": asked.hotwords,
        "word_timestamps": asked.word_timestamps,
    }
    beam_size = asked.beam_size or BEAM_SIZES.get(engine)
    if beam_size is not None:
        given["beam_size"] = beam_size
    if asked.temperature is not None:
        given["temperatures"] = (asked.temperature,)
    return DecodingOptions(**given)


def decoding_identity(job: Job, weights_sha256: str, language: str) -> dict[str, Any]:
    """Everything but the audio that a text depends on, as far as all workers agree on it.

    Workers on unlike processors may have unlike encoders (`SpeechEngine.encoder`), and any of them
    may transcribe what another one planned, or reuse its text. So each segment names its encoder,
    and the manifest those of a text.

    ``language`` is that of the recording; with several, their models decide (`chosen_models`).
    """

    def of_one(engine: str, weights_sha256: str, language: str) -> dict[str, Any]:
        options = asdict(decoding_options(job, engine, language))
        return {"engine": engine, "weights": weights_sha256, "options": options}

    models = chosen_models(job)
    if not models:
        return {"adapter": ADAPTER_REVISION, **of_one(job.engine, weights_sha256, language)}
    detector = models.pop(ANY_LANGUAGE)
    return {
        "adapter": ADAPTER_REVISION,
        "detector": detector.to_json(),
        "first": language,
        "languages": {
            code: of_one(chosen.name.engine, chosen.weights_sha256, code)
            for code, chosen in models.items()
        },
    }


def samples_of(pcm: bytes) -> Samples:
    """16-bit PCM as mono float32 in [-1, 1)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0


def cut_samples(pcm: bytes, windows: Iterable[Window], chunk_audio: Span) -> list[Samples]:
    """Each window's audio from its chunk's 16-bit PCM: mono float32 in [-1, 1) at 16 kHz."""
    cut = []
    for window in windows:
        audio = window.audio.shifted(-chunk_audio.start_ms)
        cut.append(samples_of(pcm[audio.start_ms * BYTES_PER_MS : audio.end_ms * BYTES_PER_MS]))
    return cut
