"""Completed jobs with a transcript, without workers that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func

from common.db.database import Database
from common.db.tables import Job, Transcription, TranscriptRevision
from common.domain.job import JobStatus
from common.domain.request import Options
from tests.support.factories import TENANT, new_recording, offensive, stored_segment

SEGMENT_MS = 4_000


def completed_job(
    database: Database,
    texts: Sequence[str],
    *,
    language: str = "en",
    tenant: str = TENANT,
    marks: Mapping[int, tuple[int, int]] | None = None,
    **options: Any,
) -> UUID:
    """A job whose transcript has a segment of `SEGMENT_MS` for each of ``texts``.

    ``marks`` are the offending characters of segments. ``options`` are those of `Options`.
    """
    job_id, duration_ms = uuid4(), SEGMENT_MS * len(texts)
    recording = new_recording(duration_ms).row(tenant)
    segments = [
        stored_segment(number * SEGMENT_MS, (number + 1) * SEGMENT_MS, text)
        for number, text in enumerate(texts)
    ]
    for number, (start, end) in (marks or {}).items():
        segments[number]["verdict"] = offensive(start, end).to_json()
    with database.transaction() as session:
        session.add(recording)
        session.flush()
        session.add(
            Job(
                id=job_id,
                tenant=tenant,
                recording_id=recording.id,
                status=JobStatus.COMPLETED,
                phase="merge",
                engine="faster-whisper",
                model="base",
                language=language,
                options=Options(**options).to_json(),
                units_total=duration_ms,
                parts_known=True,
                completed_at=func.now(),
            )
        )
        session.flush()
        session.add_all(
            [
                Transcription(job_id=job_id, detected_language=language),
                TranscriptRevision(
                    job_id=job_id,
                    revision=1,
                    language=language,
                    duration_ms=duration_ms,
                    word_count=sum(len(text.split()) for text in texts),
                    segments=segments,
                    manifest={},
                ),
            ]
        )
    return job_id
