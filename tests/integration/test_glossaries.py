"""Jobs with glossaries, by a worker with a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from common.domain.glossary import GLOSSARY_TRUNCATED, Entry, Glossary
from common.domain.job import JobStatus
from common.domain.moderation import Label
from common.domain.request import Cutting, Decoding, Options
from common.domain.values import Segment, Span, Word
from common.transcripts import GrowingTranscript, transcript_of
from scripts.stack.embedded import EmbeddedValkey
from tests.support.api import Api
from tests.support.factories import offensive
from tests.support.frozen import SENTENCE
from tests.support.service import Service
from tests.support.speech import silence, speak
from worker.context import Context
from worker.steps.merge import corrected

pytestmark = pytest.mark.usefixtures("weights_dir")

FOX = Entry("Vulpes Vulpes Nova", ("fox",))


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder) as service:
        yield service.serve()


def using(*entries: Entry, rewrite: bool = True, **options: object) -> Options:
    glossary = Glossary("animals", entries, rewrite=rewrite)
    return Options(glossaries=(glossary,), **options)  # type: ignore[arg-type]


def test_words_are_written_right_in_all_that_a_job_gives(service: Service) -> None:
    audio = np.concatenate([speak(SENTENCE), silence(1.0), speak(SENTENCE)])
    options = using(FOX, cutting=Cutting(window_ms=5_000))
    job_id = service.submit(audio, options=options)
    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())

    text = service.jobs.text(job_id)
    transcript = transcript_of(text)
    assert transcript.text.count("Vulpes Vulpes Nova") == 2
    assert "fox" not in transcript.text.lower()
    for segment in transcript.segments:
        assert segment.text == "".join(word.text for word in segment.words)
        ends = [at for word in segment.words for at in (word.span.start_ms, word.span.end_ms)]
        assert ends == sorted(ends)
    results = service.folder / "results" / str(job_id)
    assert (results / "transcript.srt").read_text().count("Vulpes Vulpes Nova") == 2
    manifest = json.loads((results / "transcript.json").read_text())["manifest"]
    assert manifest["glossaries"] == {"animals": 1}
    assert "glossaries" not in manifest["options"]

    # The text so far had the same words, so a client that watched the job missed and repeated none.
    chunks = service.jobs.chunks_since(job_id, 0)
    so_far = transcript_of(replace(text, complete=False, segments=[], chunks=chunks))
    assert so_far.segments == transcript.segments
    assert GrowingTranscript(service.jobs, job_id).read()[1] == list(transcript.segments)


def test_a_glossary_that_does_not_rewrite_leaves_the_text(service: Service) -> None:
    job_id = service.submit(speak(SENTENCE), options=using(FOX, rewrite=False))
    service.ended(job_id)
    assert "fox" in service.text(job_id)


def test_words_that_are_no_hotwords_are_a_warning(service: Service) -> None:
    options = Options(decoding=Decoding(hotwords="fox"), glossary_truncated=True)
    job_id = service.submit(speak(SENTENCE), options=options)
    assert service.ended(job_id).warnings == (GLOSSARY_TRUNCATED,)


def rude() -> Segment:
    said = (" hello", " fuck", " my", " friend")
    words = tuple(Word(text, Span(300 * at, 300 * at + 250), 0.9) for at, text in enumerate(said))
    return Segment(Span(0, 1_200), "".join(said), words, finding=offensive(7, 11))


def marked(segment: Segment) -> list[str]:
    assert segment.finding is not None
    return [segment.text[mark.start : mark.end] for mark in segment.finding.marks]


def test_what_was_a_name_is_no_longer_offensive(context: Context) -> None:
    (new,) = corrected(context, [rude()], [Entry("Phúc", ("fuck",))])
    assert new.text == " hello Phúc my friend"
    assert new.finding is not None
    assert (new.finding.label, marked(new)) == (Label.CLEAN, [])
    (still,) = corrected(context, [rude()], [Entry("bạn", ("friend",))])
    assert marked(still) == ["fuck"]


@pytest.mark.parametrize("worker_settings", [{"AI_LOAD_MODELS": "false"}])
def test_without_moderation_a_changed_segment_keeps_its_label(context: Context) -> None:
    (kept,) = corrected(context, [rude()], [Entry("Phúc", ("fuck",))])
    assert kept.finding is not None
    assert (kept.finding.label, marked(kept)) == (Label.OFFENSIVE, ["Phúc"])


def test_the_growing_text_is_written_right(api: Api) -> None:
    job_id: UUID = api.submit(options=using(Entry("Đoạn", ("chunk",))))
    api.plan(2)
    api.transcribe()
    partial = api.get(f"result/{job_id}", partial="true")
    assert [it["text"] for it in partial["segments"]] == ["Đoạn 0"]
