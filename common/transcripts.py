"""Converts stored results to text, for results, partial results and the merge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from typing import Any
from uuid import UUID

from common.db.jobs import Jobs, Text
from common.db.snapshots import Snapshot
from common.db.transcriptions import ChunkResult
from common.db.vault import Cipher
from common.db.voices import opened
from common.domain.glossary import rewritten
from common.domain.job import MODERATION_FAILED, JobStatus
from common.domain.masking import masked, masked_segment
from common.domain.merging import ChunkSegments, IncrementalMerge
from common.domain.models import SPEAKER_NETWORKS
from common.domain.moderation import Finding, ModeratedBy, each_once
from common.domain.speakers import Stretch, gather, stretches_from_json
from common.domain.transcript import Transcript, segments_from_json, segments_to_json
from common.domain.values import Segment

SEVERAL_MODELS = "moderated_by_several_models"
"""The warning that segments were moderated by different models or thresholds."""


def result_to_json(windows: Iterable[Iterable[Segment]]) -> list[Any]:
    """The stored form of a chunk's result, from the segments of each window."""
    return [segments_to_json(segments) for segments in windows]


def moderation_to_json(by: ModeratedBy, windows: Iterable[Iterable[Finding]]) -> dict[str, Any]:
    """The stored form of a chunk's moderation, from the results of each window's segments."""
    return {
        "by": by.to_json(),
        "windows": [[finding.to_json() for finding in findings] for findings in windows],
    }


def parts(chunks: Iterable[ChunkResult]) -> list[ChunkSegments]:
    """The transcribed ones of ``chunks``, for merging."""
    return [
        (chunk.chunk, list(_moderated(chunk.result, chunk.moderation)))
        for chunk in chunks
        if chunk.result is not None
    ]


def usable(chunks: Iterable[ChunkResult], cipher: Cipher) -> list[ChunkResult]:
    """With embeddings decrypted.

    A diarization for which that fails, or that is of other networks than this version's, is as if
    it were missing: stretches of different networks cannot be compared.
    """
    networks = {it.model for it in SPEAKER_NETWORKS}

    def one(stored: dict[str, Any] | None) -> dict[str, Any] | None:
        found = opened(stored, cipher)
        is_of_them = found is not None and set(found["by"]["weights"]) == networks
        return found if is_of_them else None

    return [replace(it, diarization=one(it.diarization)) for it in chunks]


def stretches_of(chunks: Iterable[ChunkResult]) -> list[Stretch]:
    """The stretches of voices in all chunks that were diarized, on the recording's clock."""
    return gather(
        (chunk.chunk, stretches_from_json(chunk.diarization))
        for chunk in chunks
        if chunk.diarization is not None
    )


def transcript_of(text: Text, *, moderated_only: bool = False) -> Transcript:
    """A job's transcript; of an incomplete job, the text so far.

    ``moderated_only`` ends it before the first chunk that is not moderated, and so cannot be masked
    yet.
    """
    if text.complete:
        return Transcript.from_json(
            text.segments,
            language=text.language,
            duration_ms=text.duration_ms,
            manifest=text.manifest,
            diarization=text.diarization,
        )
    chunks: Iterable[ChunkResult] = text.chunks
    if moderated_only:
        chunks = takewhile(lambda chunk: chunk.moderation is not None, chunks)
    chunks = list(chunks)
    by = moderated_by(chunks) if text.options.moderation else None
    segments = rewritten(IncrementalMerge().add(parts(chunks)), text.options.to_rewrite)
    return Transcript(text.language, text.duration_ms, segments, by)


def transcript_shown(text: Text) -> Transcript:
    """A job's transcript as it is given out by default: masked if the job asks for it."""
    hide = text.options.filter_profanity
    transcript = transcript_of(text, moderated_only=hide)
    return masked(transcript) if hide else transcript


class GrowingTranscript:
    """Reads a job's growing text piece by piece; masked if the job asks for it.

    Speakers are known at the end only, unless they are the channels. Then segments may be split:
    what counts is words.
    """

    def __init__(self, jobs: Jobs, job_id: UUID) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._merge = IncrementalMerge()
        self._next_chunk = 0
        self._given = 0
        """In words; a segment without words counts as one."""
        self._whole = False
        """Whether the whole text was returned."""

    def read(self) -> tuple[Snapshot, list[Segment]]:
        """The state of the job, and the segments since the last call.

        If the job is moderated and moderation has not failed, segments are moderated. Once the
        whole text was returned there are no more, though people may edit it.

        Raises:
            NotFound: there is no such job.
        """
        snapshot = self._jobs.snapshot(self._job_id)
        if self._whole:
            return snapshot, []
        if snapshot.status in (JobStatus.REVIEW, JobStatus.COMPLETED):
            self._whole = True
            text = self._jobs.text(self._job_id)
            hide = text.options.filter_profanity
            segments = _after(self._given, transcript_of(text).segments)
        else:
            hide, segments = self._from_chunks(snapshot)
        self._given += sum(map(words_in, segments))
        return snapshot, [masked_segment(segment) if hide else segment for segment in segments]

    def _from_chunks(self, snapshot: Snapshot) -> tuple[bool, list[Segment]]:
        options = snapshot.options
        chunks: Iterable[ChunkResult] = self._jobs.chunks_since(self._job_id, self._next_chunk)
        failed = MODERATION_FAILED in snapshot.warnings
        if options.filter_profanity or (options.moderation and not failed):
            chunks = takewhile(lambda chunk: chunk.moderation is not None, chunks)
        chunks = list(chunks)
        self._next_chunk += len(chunks)
        segments = rewritten(self._merge.add(parts(chunks)), options.to_rewrite)
        return options.filter_profanity, list(segments)


def words_in(segment: Segment) -> int:
    """The words of a segment; one without words counts as one."""
    return len(segment.words) or 1


def _after(words: int, segments: Sequence[Segment]) -> list[Segment]:
    """The segments after the first ``words`` words."""
    before = accumulate(map(words_in, segments), initial=0)
    return [segment for segment, count in zip(segments, before, strict=False) if count >= words]


def moderated_by(chunks: Iterable[ChunkResult]) -> tuple[ModeratedBy, ...]:
    """The models that moderated any of ``chunks``, in order, each once."""
    moderated = (chunk.moderation for chunk in chunks if chunk.moderation is not None)
    return each_once(ModeratedBy.from_json(moderation["by"]) for moderation in moderated)


def moderation_warnings(chunks: Sequence[ChunkResult]) -> Iterator[str]:
    """The warnings about the moderation of a job's chunks."""
    if any(chunk.moderation is None for chunk in chunks):
        yield MODERATION_FAILED
    if len(moderated_by(chunks)) > 1:
        yield SEVERAL_MODELS


def _moderated(
    result: list[Any], moderation: dict[str, Any] | None
) -> Iterator[tuple[Segment, ...]]:
    windows = map(segments_from_json, result)
    if moderation is None:
        yield from windows
        return
    for segments, findings in zip(windows, moderation["windows"], strict=True):
        yield tuple(
            replace(segment, finding=Finding.from_json(finding))
            for segment, finding in zip(segments, findings, strict=True)
        )
