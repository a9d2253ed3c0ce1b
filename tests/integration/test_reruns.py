"""Spans that are transcribed again by workers with the real engine, of voices of eSpeak NG."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from uuid import UUID

import numpy as np
import pytest

from common.db.jobs import NewJob
from common.db.revisions import Author, Revisions
from common.db.snapshots import Snapshot
from common.domain.editing import Replace, apply_edits
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import RERUN
from common.domain.request import Options
from common.domain.transcript import Origin, Transcript
from common.domain.values import Span
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import write_channels
from tests.support.factories import TENANT, new_job
from tests.support.service import Service, wait_until
from tests.support.speech import silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")

SAID = (
    "The weather will be warm and dry in the south of the country.",
    "They swarmed up in front of the palings as thick as they could jam.",
    "The captain walked along the beach and looked for shells.",
)
SECONDS = [len(speak(text, "en")) / 16_000 for text in SAID]


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder) as service:
        yield service.serve()


@pytest.fixture
def revisions(service: Service) -> Revisions:
    return Revisions(service.database, TENANT)


@pytest.fixture
def job_id(service: Service) -> UUID:
    """A completed job: three sentences with two seconds between."""
    pieces = [piece for text in SAID for piece in (speak(text, "en"), silence(2))]
    job_id = service.submit(np.concatenate(pieces), options=Options(moderation=True))
    assert service.ended(job_id).status == JobStatus.COMPLETED
    return job_id


def second_sentence() -> Span:
    start_ms = round(1_000 * (SECONDS[0] + 1))
    return Span(start_ms, start_ms + round(1_000 * (SECONDS[1] + 2)))


def rerun(service: Service, job_id: UUID, span: Span) -> Snapshot:
    job: NewJob = new_job(
        kind=RERUN.kind, source_id=job_id, options=Options(span=span, moderation=True)
    )
    service.jobs.create_from_source(job)
    service.notify()
    return service.ended(job.id)


def refined(revisions: Revisions, job_id: UUID) -> Transcript:
    """The newest revision, once it is refined."""
    wait_until(lambda: revisions.get(job_id).refining is StepStatus.DONE, "the refinement")
    return revisions.get(job_id).transcript


def words(transcript: Transcript, span: Span) -> list[str]:
    """What is said in a span."""
    return [
        word.text.strip(" .,").lower()
        for segment in transcript.segments
        for word in segment.words
        if 2 * span.start_ms <= word.span.start_ms + word.span.end_ms < 2 * span.end_ms
    ]


def test_a_span_is_transcribed_again_and_nothing_else_changes(
    service: Service, revisions: Revisions, job_id: UUID
) -> None:
    span = second_sentence()
    before = revisions.get(job_id).transcript

    def spoil(transcript: Transcript) -> Transcript:
        wrong = [
            Replace(index, text="all wrong here")
            for index, it in enumerate(transcript.segments)
            if span.start_ms <= it.span.start_ms < span.end_ms
        ]
        assert wrong
        return apply_edits(transcript, wrong)

    revisions.change(job_id, spoil, origin=Origin.EDIT, author=Author())
    assert "wrong" in words(revisions.get(job_id).transcript, span)

    ended = rerun(service, job_id, span)

    assert (ended.status, ended.warnings, ended.progress) == (JobStatus.COMPLETED, (), 100)
    found = revisions.get(job_id)
    assert (found.row.revision, found.row.origin) == (3, Origin.RERUN)
    assert found.row.manifest["reruns"][0]["start_ms"] == span.start_ms
    anew = words(found.transcript, span)
    assert {"swarmed", "up", "front", "could"} <= set(anew)
    assert "wrong" not in anew
    outside = Span(0, span.start_ms), Span(span.end_ms, 60_000)
    assert [words(found.transcript, it) for it in outside] == [words(before, it) for it in outside]
    for left, right in pairwise(found.transcript.segments):
        assert left.span.end_ms <= right.span.start_ms
    final = refined(revisions, job_id)
    assert all(it.finding is not None for it in final.segments)
    file = service.folder / "results" / str(job_id) / "transcript.txt"
    assert "swarmed" in file.read_text()


def test_where_nobody_speaks_a_rerun_fails_and_changes_nothing(
    service: Service, revisions: Revisions, job_id: UUID
) -> None:
    start_ms = round(1_000 * SECONDS[0]) + 300
    ended = rerun(service, job_id, Span(start_ms, start_ms + 1_200))
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "no_speech")
    assert revisions.get(job_id).row.revision == 1


def test_a_rerun_of_a_lost_recording_fails_and_changes_nothing(
    service: Service, revisions: Revisions, job_id: UUID
) -> None:
    service.storage.erase(UUID(int=0), service.jobs.recording(job_id).id)
    ended = rerun(service, job_id, second_sentence())
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "recording_lost")
    assert revisions.get(job_id).row.revision == 1


def test_edited_words_get_the_times_at_which_they_are_said(
    revisions: Revisions, job_id: UUID
) -> None:
    before = revisions.get(job_id).transcript
    first = before.segments[0]
    assert "weather" in first.text

    def retype(transcript: Transcript) -> Transcript:
        text = first.text.replace("weather", "big weather").replace("country", "county")
        return apply_edits(transcript, [Replace(0, text=text)])

    revisions.change(job_id, retype, origin=Origin.EDIT, author=Author())
    estimated = [it for it in revisions.get(job_id).transcript.segments[0].words if it.estimated]
    assert [it.text.strip() for it in estimated][:1] == ["big"]

    final = refined(revisions, job_id)

    assert final.text == revisions.get(job_id).transcript.text
    kept = {word for word in first.words if word.text.strip(" .,") not in ("weather", "country")}
    assert kept.issuperset(set(first.words) & set(final.segments[0].words))
    (said,) = [it for it in first.words if "weather" in it.text]
    (now,) = [it for it in final.segments[0].words if "weather" in it.text]
    assert abs(now.span.end_ms - said.span.end_ms) <= 300
    assert revisions.get(job_id).row.refinements == 1


def test_each_channel_is_transcribed_again(service: Service, revisions: Revisions) -> None:
    one, other = speak(SAID[0], "en"), speak(SAID[1], "en+f4")
    path = write_channels(
        service.folder / "call.wav",
        np.concatenate([one, silence(SECONDS[1] + 1)]),
        np.concatenate([silence(SECONDS[0] + 0.5), other, silence(0.5)]),
    )
    job_id = service.submit(path, options=Options(channels="separate", moderation=True))
    assert service.ended(job_id).status == JobStatus.COMPLETED
    before = revisions.get(job_id).transcript
    speakers = {it.channel: it.speaker for it in before.segments}
    assert len(speakers) == 2

    ended = rerun(service, job_id, Span(0, before.duration_ms))

    assert ended.status == JobStatus.COMPLETED, ended
    after = revisions.get(job_id).transcript
    assert {it.channel: it.speaker for it in after.segments} == speakers
    of_channel = {it.channel: it.text for it in after.segments}
    assert "weather" in of_channel[0]
    assert "in front of" in of_channel[1]
