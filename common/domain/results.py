"""A transcript as clients see it: seconds as floats, and OpenAI's names for a segment's fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.domain.masking import marked_words
from common.domain.moderation import Label, Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word


def transcript_document(
    transcript: Transcript,
    *,
    warnings: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The full transcript document, ready for JSON."""
    return {
        "text": transcript.text,
        "word_count": transcript.word_count,
        "duration_seconds": seconds(transcript.duration_ms),
        "language": transcript.language,
        "language_probabilities": (manifest or {}).get("language_probabilities"),
        "segments": [
            segment_document(index, segment, transcript.language)
            for index, segment in enumerate(transcript.segments)
        ],
        "words": words_document(transcript),
        "speakers": speakers_document(transcript),
        "moderation": moderation_document(transcript),
        "warnings": list(warnings),
        "manifest": manifest,
    }


def segment_document(index: int, segment: Segment, language: str | None = None) -> dict[str, Any]:
    """A segment with OpenAI's names, its language, and reasons to doubt its text (``flags``).

    ``language`` is the transcript's, for segments that have none of their own; None: leave it out.
    """
    return {
        "id": index,
        "start": seconds(segment.span.start_ms),
        "end": seconds(segment.span.end_ms),
        "text": segment.text.strip(),
        **({"language": segment.language or language} if language else {}),
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        "temperature": segment.temperature,
        "speaker": segment.speaker,
        "channel": segment.channel,
        "flags": list(segment.flags),
    }


def word_document(word: Word, speaker: str | None = None) -> dict[str, Any]:
    """A word with its times, without its leading space."""
    return {
        "word": word.text.strip(),
        "start": seconds(word.span.start_ms),
        "end": seconds(word.span.end_ms),
        "probability": word.probability,
        "speaker": speaker,
    }


def words_document(transcript: Transcript) -> list[dict[str, Any]]:
    """All words, segment by segment, as channels may overlap."""
    return [word for segment in transcript.segments for word in words_of(segment)]


def words_of(segment: Segment) -> list[dict[str, Any]]:
    """The words of a segment, each with its speaker; ``estimated`` is that of `Word`."""
    return [
        {**word_document(word, segment.speaker), "estimated": word.estimated}
        for word in segment.words
    ]


def speakers_document(transcript: Transcript) -> list[dict[str, Any]] | None:
    """The speakers in the order in which they first speak; None: they were not requested.

    ``words`` are counted as `Transcript.word_count` counts them. ``voice_id`` and ``similarity``
    are None unless the name is that of an enrolled voice.
    """
    diarization = transcript.diarization
    if diarization is None:
        return None
    words: Counter[str | None] = Counter()
    for segment in transcript.segments:
        words[segment.speaker] += len(segment.text.split())
    voices = diarization.identified
    return [
        {
            "id": speaker,
            "name": diarization.names.get(speaker),
            "voice_id": voices[speaker].voice_id if speaker in voices else None,
            "similarity": voices[speaker].similarity if speaker in voices else None,
            "seconds": seconds(diarization.spoken_ms(speaker)),
            "words": words[speaker],
        }
        for speaker in diarization.speakers
    ]


def moderation_document(transcript: Transcript) -> dict[str, Any] | None:
    """The moderation of the segments, and its model; None: it was not requested.

    Segments that could not be moderated are absent. If there were several models, `model` and
    `threshold` are those of the first; the manifest has all.
    """
    if transcript.moderated_by is None:
        return None
    moderated = [
        (segment.speaker, segment.span, segment.finding.label)
        for segment in transcript.segments
        if segment.finding is not None
    ]
    diarization = transcript.diarization
    findings = (finding_document(index, it) for index, it in enumerate(transcript.segments))
    first = transcript.moderated_by[0].to_json() if transcript.moderated_by else {}
    return {
        "results": [finding for finding in findings if finding is not None],
        "summary": _summary([(span, label) for _, span, label in moderated]),
        "speakers": diarization
        and {
            speaker: _summary([(span, label) for who, span, label in moderated if who == speaker])
            for speaker in diarization.speakers
        },
        "model": first.get("model"),
        "threshold": first.get("threshold"),
    }


def finding_document(index: int, segment: Segment) -> dict[str, Any] | None:
    """The moderation of a segment; None: it is not moderated."""
    finding = segment.finding
    if finding is None:
        return None
    return {
        "id": index,
        "text": segment.text.strip(),
        "label": finding.label,
        "score": finding.score,
        "scores": dict(zip(Label, finding.scores, strict=True)),
        "start": seconds(segment.span.start_ms),
        "end": seconds(segment.span.end_ms),
        "spans": [
            _offence(segment.text[mark.start : mark.end].strip(), mark, words)
            for mark, words in zip(finding.marks, marked_words(segment, finding.marks), strict=True)
        ],
    }


def _offence(text: str, mark: Mark, words: Sequence[Word]) -> dict[str, Any]:
    return {
        "text": text,
        "start": seconds(words[0].span.start_ms) if words else None,
        "end": seconds(words[-1].span.end_ms) if words else None,
        "label": mark.label,
        "source": mark.source,
    }


def _summary(moderated: Sequence[tuple[Span, Label]]) -> dict[str, Any]:
    """The worst label (None: nothing was moderated), and segments and seconds of each label."""
    labels = [label for _, label in moderated]
    return {
        "label": max(labels, key=lambda label: label.severity, default=None),
        "counts": {label: labels.count(label) for label in Label},
        "seconds": {
            label: seconds(sum(span.duration_ms for span, its in moderated if its is label))
            for label in Label
        },
    }


def seconds(ms: int) -> float:
    """Milliseconds as seconds, the unit of the API."""
    return ms / 1000
