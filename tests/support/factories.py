"""Rows that tests start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from common.db.database import Database
from common.db.flow import NewPart
from common.db.jobs import Jobs, NewJob
from common.db.steps import Claim, RetryPolicy, Steps, Within
from common.db.streams import NewStream, StreamFinal, Streams
from common.db.tables import JobMetrics, TranscriptRevision
from common.db.transcriptions import (
    NewRecording,
    Transcriptions,
    merged,
    plan_begun,
    plan_ended,
    recording_fetched,
)
from common.domain.job import Priority
from common.domain.models import SPEAKER_NETWORKS, ModelName
from common.domain.moderation import Finding, Label, Mark, ModeratedBy
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.domain.speakers import Diarization, SpeakerCount, Stretch, stretches_to_json
from common.domain.transcript import Origin
from common.domain.values import Segment, Span, Word
from common.transcripts import moderation_to_json

TENANT = "default"
MODERATED = Options(moderation=True)
DIARIZED = Options(diarize=SpeakerCount())
BY = ModeratedBy("a-model", "a" * 64, {Label.OFFENSIVE: 0.5, Label.HATE: 0.5})
"""The model that moderates the chunks of `finish_moderation`."""
CLEAN = Finding(Label.CLEAN, (0.9, 0.1, 0.0))


def new_recording(duration_ms: int | None = 60_000) -> NewRecording:
    """A recording of one minute."""
    return NewRecording(
        id=uuid4(),
        filename="talk.mp3",
        container="mp3",
        codec="mp3float",
        size_bytes=1_000_000,
        sha256="0" * 64,
        duration_ms=duration_ms,
        upload_ms=10,
    )


def new_job(**fields: Any) -> NewJob:
    """A job in English; ``fields`` are those of `NewJob`."""
    usual: dict[str, Any] = {
        "id": uuid4(),
        "engine": "faster-whisper",
        "model": "base",
        "language": "en",
        "priority": Priority.NORMAL,
        "options": Options(),
    }
    return NewJob(**usual | fields)


def submit_job(
    database: Database, *, tenant: str = TENANT, duration_ms: int | None = 60_000, **fields: Any
) -> UUID:
    """Submit a recording of one minute; ``fields`` are those of `NewJob`. Returns the job's id."""
    job = new_job(**fields)
    Jobs(database, tenant).submit(new_recording(duration_ms), job)
    return job.id


def make_steps(
    database: Database, *, lease_s: float = 30.0, max_retries: int = 3, delay_s: float = 0.0
) -> Steps:
    """The steps, with retries that need no waiting."""
    return Steps(database, lease_s=lease_s, retry=RetryPolicy(max_retries, delay_s))


def published(steps: Steps, limit: int = 1000) -> list[UUID]:
    """The steps the dispatcher would hand out now, in its order."""
    handed_out: list[UUID] = []
    steps.publish(limit, lambda rows: handed_out.extend(row.step_id for row in rows))
    return handed_out


def claim_next(steps: Steps, worker: str = "worker-1") -> Claim:
    """Claim whatever is handed out next."""
    (step_id,) = published(steps, 1)
    claim = steps.claim(step_id, worker)
    assert claim is not None
    return claim


def plan_chunks(steps: Steps, count: int, *, finish: bool = True) -> Claim:
    """Claim a plan and have it find ``count`` chunks of 10 s."""
    claim = claim_next(steps)
    assert claim.kind == "plan"
    store_plan(steps, claim, count, finish=finish)
    return claim


def store_plan(steps: Steps, claim: Claim, count: int, *, finish: bool = True) -> None:
    """Have a claimed plan find ``count`` chunks of 10 s."""
    steps.write(claim, plan_started())
    steps.add_parts(claim, [chunk_part(index) for index in range(count)])
    if finish:
        finish_plan(steps, claim, 10_000 * count)


def plan_started(*, replan: bool = False) -> Within:
    """What a plan stores before its first chunk."""
    return plan_begun(
        name=ModelName("faster-whisper", "base"),
        weights_sha256="w" * 64,
        language="en",
        audio_track=None,
        replan=replan,
    )


def finish_plan(
    steps: Steps, claim: Claim, duration_ms: int, *, take_next: bool = False
) -> Claim | None:
    """End a claimed plan."""
    ended = plan_ended(duration_ms=duration_ms, warnings=[], languages={})
    return steps.finish(claim, elapsed_ms=5, within=ended, take_next=take_next)


def chunk_part(index: int, content: str = "c") -> NewPart:
    """Chunk ``index`` as a plan stores it."""
    start, end = index * 10_000, (index + 1) * 10_000
    return NewPart(index, 10_000, [[start, end, start, end, 9_000]], f"{content}{index}")


def finish_chunk(steps: Steps, claim: Claim, *, take_next: bool = False) -> Claim | None:
    """End a claimed chunk with one segment."""
    segment = stored_segment(0, 10_000, f" chunk {claim.part_index}")
    return steps.finish(claim, result=[[segment]], elapsed_ms=100, take_next=take_next)


def finish_moderation(
    steps: Steps,
    claim: Claim,
    finding: Finding = CLEAN,
    by: ModeratedBy = BY,
    *,
    take_next: bool = False,
) -> Claim | None:
    """End the claimed moderation of a chunk with one segment."""
    result = moderation_to_json(by, [[finding]])
    return steps.finish(claim, result=result, elapsed_ms=7, take_next=take_next)


def finish_diarization(
    steps: Steps, claim: Claim, stretches: Sequence[Stretch] = (), *, take_next: bool = False
) -> Claim | None:
    """End the claimed diarization of a chunk."""
    by = {"revision": 1, "weights": {it.model: it.model for it in SPEAKER_NETWORKS}}
    result = {"by": by, **stretches_to_json(stretches)}
    return steps.finish(claim, result=result, elapsed_ms=9, take_next=take_next)


def do_step(steps: Steps, claim: Claim, chunks: int = 3) -> None:
    """Do a claimed step as a worker does; a plan finds ``chunks``, and leaves out what is done."""
    if claim.kind == StepKind.FETCH:
        steps.finish(claim, within=recording_fetched(new_recording()))
    elif claim.kind == StepKind.PLAN:
        reading = [
            StepKind.TRANSCRIBE,
            *[StepKind.DIARIZE] * bool(claim.job.options.get("diarize")),
        ]
        known = Transcriptions(steps._database).planned(claim.job_id, reading)
        chunks = max(chunks, len(known))
        steps.write(claim, plan_started())
        undone = [index for index in range(chunks) if not known.get(index, ("", False))[1]]
        steps.add_parts(claim, [chunk_part(index) for index in undone])
        finish_plan(steps, claim, 10_000 * chunks)
    elif claim.kind == StepKind.TRANSCRIBE:
        finish_chunk(steps, claim)
    elif claim.kind == StepKind.MODERATE:
        finish_moderation(steps, claim)
    elif claim.kind == StepKind.DIARIZE:
        finish_diarization(steps, claim)
    elif claim.kind == StepKind.REFINE:
        steps.finish(claim)
    else:
        finish_merge(steps, claim)


def do_all(steps: Steps, chunks: int = 3) -> list[str]:
    """Do all there is to do; returns the kinds of the steps."""
    kinds: list[str] = []
    while ready := published(steps):
        for step_id in ready:
            claim = steps.claim(step_id, "worker")
            assert claim is not None
            kinds.append(claim.kind)
            do_step(steps, claim, chunks)
    return kinds


def offensive(start: int, end: int) -> Finding:
    """A finding on a text that gives offence in ``[start, end)``."""
    mark = Mark(start, end, Label.OFFENSIVE, "list")
    return Finding(Label.OFFENSIVE, (0.2, 0.7, 0.1), (mark,))


def finish_merge(
    steps: Steps,
    claim: Claim,
    *,
    segments: Sequence[dict[str, Any]] = (),
    manifest: dict[str, Any] | None = None,
    diarization: Diarization | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """End a claimed merge, which completes the job: 20 s in English."""
    assert claim.kind == "merge"
    transcript = TranscriptRevision(
        job_id=claim.job_id,
        language="en",
        duration_ms=20_000,
        word_count=4,
        segments=list(segments),
        diarization=diarization and diarization.to_json(),
        manifest=manifest or {},
        origin=Origin.MERGE,
    )
    metrics = JobMetrics(
        job_id=claim.job_id,
        audio_ms=20_000,
        speech_ms=18_000,
        upload_ms=10,
        plan_ms=5,
        engine_ms=200,
        moderation_ms=0,
        diarization_ms=0,
        merge_ms=3,
    )
    steps.finish(claim, within=merged(transcript, metrics, list(warnings)))


def stored_segment(start_ms: int, end_ms: int, text: str, **others: Any) -> dict[str, Any]:
    """A segment as it is stored, as it was before there was moderation."""
    return {
        "span": [start_ms, end_ms],
        "text": text,
        "words": [],
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
        "temperature": 0.0,
        "flags": [],
        **others,
    }


def new_stream(**fields: Any) -> NewStream:
    """A stream in English; ``fields`` are those of `NewStream`."""
    usual: dict[str, Any] = {
        "id": uuid4(),
        "engine": "faster-whisper",
        "model": "base",
        "language": "en",
        "moderation": False,
    }
    return NewStream(**usual | fields)


def open_stream(database: Database, *, tenant: str = TENANT, **fields: Any) -> UUID:
    """Begin a stream; ``fields`` are those of `NewStream`. Returns its id."""
    stream = new_stream(**fields)
    Streams(database, tenant).open(stream)
    return stream.id


def new_final(seq: int, text: str = " hello", **fields: Any) -> StreamFinal:
    """An utterance of one word, in second ``seq``; ``fields`` are those of `StreamFinal`."""
    span = Span(seq * 1000, seq * 1000 + 800)
    usual: dict[str, Any] = {
        "seq": seq,
        "span": span,
        "engine": "faster-whisper",
        "model": "base",
        "language": "en",
        "segments": (Segment(span, text, words=(Word(text, span, 0.9),)),),
        "latency_ms": 300,
    }
    return StreamFinal(**usual | fields)


def moderated_final(seq: int, finding: Finding = CLEAN, by: ModeratedBy = BY) -> StreamFinal:
    """The same final with moderation."""
    final = new_final(seq)
    moderated = tuple(replace(segment, finding=finding) for segment in final.segments)
    return replace(final, segments=moderated, moderated_by=by)
