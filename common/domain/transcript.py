"""A recording's text with its times, and its stored JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from common.domain.moderation import Finding, ModeratedBy
from common.domain.speakers import Diarization
from common.domain.values import Detected, Segment, Span, Word


class Origin(StrEnum):
    """What made a revision of a transcript."""

    MERGE = "merge"
    """The steps of its job, or of its retry."""
    EDIT = "edit"
    SPEAKERS = "speakers"
    """Speakers were renamed or merged."""
    RESTORE = "restore"
    """It is a copy of an earlier revision."""
    RETRY = "retry"
    """A retry of the job added what was missing; the text of people stayed."""
    RERUN = "rerun"
    """A span was transcribed again."""
    PROPOSAL = "proposal"
    """A person has accepted what a language model proposed."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Segments in order of their starts. Those of different channels may overlap, no others.

    ``moderated_by`` lists the models that moderated segments, in order of time, each once; None:
    moderation was not requested. If it was, a segment without a finding could not be moderated.
    ``diarization`` is None where the speakers were not requested, or are not known yet.
    """

    language: str
    duration_ms: int
    segments: tuple[Segment, ...]
    moderated_by: tuple[ModeratedBy, ...] | None = None
    diarization: Diarization | None = None

    @classmethod
    def from_json(
        cls,
        segments: Sequence[dict[str, Any]],
        *,
        language: str,
        duration_ms: int,
        manifest: Mapping[str, Any] | None,
        diarization: Mapping[str, Any] | None,
    ) -> Self:
        """Read the stored form of a complete transcript."""
        models = (manifest or {}).get("moderation")
        return cls(
            language,
            duration_ms,
            segments_from_json(segments),
            None if models is None else tuple(map(ModeratedBy.from_json, models)),
            None if diarization is None else Diarization.from_json(diarization),
        )

    def models_to_json(self) -> list[dict[str, Any]] | None:
        """The stored form of ``moderated_by``, as the manifest has it."""
        models = self.moderated_by
        return None if models is None else [by.to_json() for by in models]

    @property
    def encoders(self) -> list[str]:
        """What encoded the audio of its segments, as the manifest has it."""
        return sorted({it.encoder for it in self.segments if it.encoder is not None})

    @property
    def text(self) -> str:
        """The whole text on one line."""
        return join_text(self.segments)

    def speaker_of(self, segment: Segment) -> str | None:
        """The name of who says a segment; None: it is not known, or was not requested."""
        if self.diarization is None or segment.speaker is None:
            return None
        return self.diarization.name_of(segment.speaker)

    @property
    def word_count(self) -> int:
        """Space-separated tokens; in Vietnamese these are syllables."""
        return len(self.text.split())


def join_text(segments: Iterable[Segment]) -> str:
    """The segments' texts on one line."""
    return " ".join(text for segment in segments if (text := segment.text.strip()))


def segments_to_json(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """The stored form: short keys, integer milliseconds; a word has a fifth item if estimated."""
    return [
        {
            "span": [segment.span.start_ms, segment.span.end_ms],
            "text": segment.text,
            "words": [
                [
                    word.text,
                    word.span.start_ms,
                    word.span.end_ms,
                    round(word.probability, 4),
                    *([1] if word.estimated else []),
                ]
                for word in segment.words
            ],
            "avg_logprob": round(segment.avg_logprob, 4),
            "compression_ratio": round(segment.compression_ratio, 4),
            "no_speech_prob": round(segment.no_speech_prob, 4),
            "temperature": segment.temperature,
            "flags": list(segment.flags),
            "language": segment.language,
            "detected": segment.detected
            and [segment.detected.language, round(segment.detected.probability, 3)],
            "verdict": segment.finding and segment.finding.to_json(),
            "encoder": segment.encoder,
            "speaker": segment.speaker,
            "channel": segment.channel,
        }
        for segment in segments
    ]


def segments_from_json(document: Sequence[dict[str, Any]]) -> tuple[Segment, ...]:
    """Read the output of `segments_to_json`, also of versions with fewer fields."""
    return tuple(
        Segment(
            span=Span(*entry["span"]),
            text=entry["text"],
            words=tuple(
                Word(text, Span(start, end), probability, bool(estimated))
                for text, start, end, probability, *estimated in entry["words"]
            ),
            avg_logprob=entry["avg_logprob"],
            compression_ratio=entry["compression_ratio"],
            no_speech_prob=entry["no_speech_prob"],
            temperature=entry["temperature"],
            flags=tuple(entry["flags"]),
            language=entry.get("language"),
            detected=Detected(*detected) if (detected := entry.get("detected")) else None,
            finding=Finding.from_json(finding) if (finding := entry.get("verdict")) else None,
            encoder=entry.get("encoder"),
            speaker=entry.get("speaker"),
            channel=entry.get("channel"),
        )
        for entry in document
    )
