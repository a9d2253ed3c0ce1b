"""A transcript as clients read it: seconds as floats, and OpenAI's names for a segment's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.domain.transcript import Transcript
from common.domain.values import Segment, Word


def transcript_document(
    transcript: Transcript,
    *,
    warnings: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is known of a recording's text, fit for JSON."""
    return {
        "text": transcript.text,
        "word_count": transcript.word_count,
        "duration_seconds": seconds(transcript.duration_ms),
        "language": transcript.language,
        "segments": [
            segment_document(index, segment) for index, segment in enumerate(transcript.segments)
        ],
        "words": [word_document(word) for word in transcript.words],
        "moderation": None,
        "warnings": list(warnings),
        "manifest": manifest,
    }


def segment_document(index: int, segment: Segment) -> dict[str, Any]:
    """A segment, named as OpenAI names it, and why its text may be doubted (``flags``)."""
    return {
        "id": index,
        "start": seconds(segment.span.start_ms),
        "end": seconds(segment.span.end_ms),
        "text": segment.text.strip(),
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        "temperature": segment.temperature,
        "speaker": None,
        "channel": None,
        "flags": list(segment.flags),
    }


def word_document(word: Word) -> dict[str, Any]:
    """A word with its times; the space before it is left out."""
    return {
        "word": word.text.strip(),
        "start": seconds(word.span.start_ms),
        "end": seconds(word.span.end_ms),
        "probability": word.probability,
        "speaker": None,
    }


def seconds(ms: int) -> float:
    """Milliseconds as the wire has them."""
    return ms / 1000
