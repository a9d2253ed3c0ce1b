"""What the gateway promises to those who download a recording, as it is or redacted."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from common.audio.wav import wav_header
from common.db.jobs import Jobs
from common.domain.request import Options
from tests.support.api import Api
from tests.support.audio_files import KINDS, tone, write
from tests.support.factories import BY, MODERATED, TENANT, offensive, stored_segment
from tests.support.gateway import children
from tests.support.service import wait_until

TEXT = " oh shit happens"
WORDS = [[" oh", 5_000, 5_300, 0.9], [" shit", 6_000, 6_500, 0.9], [" happens", 7_000, 7_500, 0.9]]
FOUL = offensive(4, 8).to_json()
LARGE_BYTES = 20 * 192_000 * 16


def talk(path: Path) -> None:
    write(path, tone(20), KINDS["mp3"])


def large(path: Path) -> None:
    """20 s in 60 MB, more than any buffer on the way takes."""
    header = wav_header(192_000, 8, 20 * 192_000)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + LARGE_BYTES)


def completed(
    api: Api,
    record: Callable[[Path], object],
    *segments: dict[str, Any],
    options: Options = MODERATED,
) -> UUID:
    """A completed job of 20 s, with the recording that ``record`` writes."""
    job_id = api.submit(options=options)
    recording = Jobs(api.database, TENANT).recording(job_id).id
    record(api.gateway.folder / "uploads" / "recordings" / str(recording))
    manifest = {"moderation": [BY.to_json()]} if options.moderation else {}
    api.complete(segments=segments, manifest=manifest)
    return job_id


def wav(api: Api, job_id: UUID, status: int = 200, **query: str) -> httpx.Response:
    return api.download(job_id, status, format="wav", **query)


def samples(answer: httpx.Response) -> NDArray[np.int16]:
    assert answer.headers["content-type"] == "audio/wav"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 44_100)
        assert file.getnframes() == 20 * 44_100
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


@contextmanager
def streaming(api: Api, job_id: UUID) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
    """A download that has begun, and the rest of its body."""
    url = f"/api/v1/download/{job_id}?format=wav"
    with api.http.stream("GET", url) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        yield answer, pieces


def wav_processes(api: Api) -> list[psutil.Process]:
    return children("api.processes.wav_process", api.gateway.process.pid)


def wait_for_no_process(api: Api) -> None:
    wait_until(lambda: not wav_processes(api), "the end of the process")


def test_a_recording_comes_as_wav_whatever_it_was(api: Api) -> None:
    answer = wav(api, completed(api, talk))
    assert np.abs(samples(answer)).max() > 5_000
    assert 'filename="talk.wav"' in answer.headers["content-disposition"]
    wait_for_no_process(api)


@pytest.mark.parametrize(
    ("words", "covered_ms"), [(WORDS, (5_900, 6_600)), ([], (4_900, 7_600))], ids=["word", "whole"]
)
def test_marked_words_are_covered_or_the_segment_where_no_word_has_times(
    api: Api, words: list[Any], covered_ms: tuple[int, int]
) -> None:
    segment = stored_segment(5_000, 7_500, TEXT, words=words, verdict=FOUL)
    job_id = completed(api, talk, segment)
    plain, redacted = wav(api, job_id), wav(api, job_id, redact="true")
    places = np.flatnonzero(samples(plain) != samples(redacted))
    assert (places[0] / 44.1, places[-1] / 44.1) == pytest.approx(covered_ms, abs=2)
    assert 'filename="talk.redacted.wav"' in redacted.headers["content-disposition"]


def test_a_recording_without_a_word_can_be_redacted(api: Api) -> None:
    job_id = completed(api, talk)
    assert np.array_equal(samples(wav(api, job_id)), samples(wav(api, job_id, redact="true")))


def test_a_recording_that_was_moderated_in_part_is_not_redacted(api: Api) -> None:
    moderated = stored_segment(5_000, 7_500, TEXT, words=WORDS, verdict=FOUL)
    job_id = completed(api, talk, moderated, stored_segment(8_000, 9_000, " who knows"))
    problem = wav(api, job_id, 409, redact="true").json()
    assert problem["code"] == "conflict"
    assert "redact" in problem["detail"]
    assert "8.0 s" in problem["detail"]
    wav(api, job_id)


def test_a_recording_without_moderation_is_not_redacted(api: Api) -> None:
    job_id = completed(api, talk, stored_segment(5_000, 7_500, TEXT), options=Options())
    problem = wav(api, job_id, 422, redact="true").json()
    assert (problem["field"], "moderation=true" in problem["detail"]) == ("redact", True)


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        ({"redact": "true"}, "redact", "format=wav"),
        ({"redact": "true", "format": "txt"}, "redact", "format=wav"),
        ({"redact": "true", "format": "json"}, "redact", "format=wav"),
        ({"flag": "true", "format": "wav"}, "flag", "flag"),
        ({"filter_profanity": "true", "format": "wav"}, "filter_profanity", "filter_profanity"),
    ],
)
def test_what_is_for_audio_is_refused_for_text_and_the_reverse(
    api: Api, query: dict[str, str], field: str, detail: str
) -> None:
    problem = api.download(completed(api, talk), 422, **query).json()
    assert problem["field"] == field
    assert detail in problem["detail"]


def test_a_job_that_has_not_ended_and_one_of_another_tenant_give_no_recording(api: Api) -> None:
    assert wav(api, api.submit(), 409).json()["code"] == "not_ready"
    wav(api, api.submit(tenant="another"), 404)


def test_a_lost_recording_is_404_and_a_broken_one_409(api: Api) -> None:
    lost = completed(api, lambda _: None)
    assert wav(api, lost, 404).json()["code"] == "not_found"
    broken = completed(api, lambda path: path.write_bytes(b"no recording any more" * 99))
    assert "cannot be read" in wav(api, broken, 409).json()["detail"]
    assert wav_processes(api) == []


def test_the_process_ends_when_its_client_disconnects(api: Api) -> None:
    with streaming(api, completed(api, large)):
        assert len(wav_processes(api)) == 1
    wait_for_no_process(api)


def test_head_makes_none_of_the_file(api: Api) -> None:
    answer = api.http.head(f"/api/v1/download/{completed(api, large)}?format=wav")
    assert answer.headers["content-length"] == str(LARGE_BYTES + 44)
    wait_for_no_process(api)


def test_a_slow_client_makes_the_process_wait_and_gets_all_of_it(api: Api) -> None:
    with streaming(api, completed(api, large)) as (answer, pieces):
        (process,) = wav_processes(api)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, "its sleep")
        assert process.memory_info().rss < 200 << 20
        for _ in pieces:
            pass
    assert answer.headers["content-length"] == str(LARGE_BYTES + 44)
    assert answer.num_bytes_downloaded == LARGE_BYTES + 44


def test_a_file_whose_process_dies_does_not_look_whole(api: Api) -> None:
    with streaming(api, completed(api, large)) as (_, pieces):
        wav_processes(api)[0].kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_too_many_downloads_at_once_are_refused_for_now(api: Api) -> None:
    job_id = completed(api, large)
    with ExitStack() as stack:
        for _ in range(8):
            answer, _ = stack.enter_context(streaming(api, job_id))
            assert answer.status_code == 200
        refused = wav(api, job_id, 503)
        assert refused.json()["code"] == "busy"
        assert "retry-after" in refused.headers
    wait_for_no_process(api)

    def is_accepted() -> bool:
        with streaming(api, job_id) as (answer, _):
            return answer.is_success

    wait_until(is_accepted, "a free place")
