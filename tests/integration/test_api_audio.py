"""What the gateway promises to those who take a recording away, as it is or redacted."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from common.audio.wav import wav_header
from common.db.database import Database
from common.db.jobs import Jobs
from common.db.steps import Steps
from common.domain.request import Options
from tests.support.audio_files import KINDS, tone, write
from tests.support.factories import (
    BY,
    MODERATED,
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    offensive,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess, children

TEXT = " oh shit happens"
WORDS = [[" oh", 5_000, 5_300, 0.9], [" shit", 6_000, 6_500, 0.9], [" happens", 7_000, 7_500, 0.9]]
FOUL = offensive(4, 8).to_json()

Completed = Callable[..., UUID]


@pytest.fixture
def completed(gateway: GatewayProcess, gateway_database: Database, steps: Steps) -> Completed:
    """Makes a finished job of 20 s, with the recording that a function writes."""

    def make(
        record: Callable[[Path], object],
        *segments: dict[str, Any],
        options: Options = MODERATED,
    ) -> UUID:
        job_id = submit_job(gateway_database, options=options)
        recording = Jobs(gateway_database, TENANT).recording(job_id).id
        record(gateway.folder / "uploads" / "recordings" / str(recording))
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))
        if options.moderation:
            finish_moderation(steps, claim_next(steps))
        by = {"moderation": [BY.to_json()]} if options.moderation else {}
        finish_merge(steps, claim_next(steps), segments=segments, manifest=by)
        return job_id

    return make


def talk(path: Path) -> None:
    write(path, tone(20), KINDS["mp3"])


def large(path: Path) -> None:
    """20 s in 60 MB, more than any buffer on the way takes."""
    header = wav_header(192_000, 8, 20 * 192_000)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 20 * 192_000 * 16)


def get(gateway: GatewayProcess, job_id: UUID, status: int = 200, **query: str) -> httpx.Response:
    answer = gateway.http.get(f"/api/v1/download/{job_id}", params=query)
    assert answer.status_code == status, answer.text[:1_000]
    return answer


def sound(answer: httpx.Response) -> NDArray[np.int16]:
    assert answer.headers["content-type"] == "audio/wav"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 44_100)
        assert file.getnframes() == 20 * 44_100
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def differing_ms(one: NDArray[np.int16], other: NDArray[np.int16]) -> tuple[int, int]:
    places = np.flatnonzero(one != other)
    return round(places[0] / 44.1), round(places[-1] / 44.1)


def sound_processes(gateway: GatewayProcess) -> list[psutil.Process]:
    assert gateway.process is not None
    return children("api.processes.wav_process", gateway.process.pid)


def answered(gateway: GatewayProcess, job_id: UUID) -> int:
    """How many questions for a job's files have come to an end."""
    return gateway.log_file.read_text().count(f"GET /api/v1/download/{job_id} ")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_recording_comes_as_wav_whatever_it_was(
    gateway: GatewayProcess, completed: Completed
) -> None:
    answer = get(gateway, completed(talk), format="wav")
    assert np.abs(sound(answer)).max() > 5_000
    assert 'filename="talk.wav"' in answer.headers["content-disposition"]
    wait_for(lambda: not sound_processes(gateway))


def test_marked_words_are_covered_and_nothing_else(
    gateway: GatewayProcess, completed: Completed
) -> None:
    job_id = completed(talk, stored_segment(5_000, 7_500, TEXT, words=WORDS, finding=FOUL))
    plain = sound(get(gateway, job_id, format="wav"))
    answer = get(gateway, job_id, format="wav", redact="true")
    assert differing_ms(plain, sound(answer)) == pytest.approx((5_900, 6_600), abs=2)
    assert 'filename="talk.redacted.wav"' in answer.headers["content-disposition"]


def test_a_segment_without_word_times_is_covered_as_a_whole(
    gateway: GatewayProcess, completed: Completed
) -> None:
    job_id = completed(talk, stored_segment(5_000, 7_500, TEXT, finding=FOUL))
    plain = sound(get(gateway, job_id, format="wav"))
    redacted = sound(get(gateway, job_id, format="wav", redact="true"))
    assert differing_ms(plain, redacted) == pytest.approx((4_900, 7_600), abs=2)


def test_a_recording_without_a_word_can_be_redacted(
    gateway: GatewayProcess, completed: Completed
) -> None:
    job_id = completed(talk)
    plain = sound(get(gateway, job_id, format="wav"))
    assert np.array_equal(plain, sound(get(gateway, job_id, format="wav", redact="true")))


def test_what_was_judged_in_part_is_not_redacted(
    gateway: GatewayProcess, completed: Completed
) -> None:
    judged = stored_segment(5_000, 7_500, TEXT, words=WORDS, finding=FOUL)
    job_id = completed(talk, judged, stored_segment(8_000, 9_000, " who knows"))
    problem = get(gateway, job_id, 409, format="wav", redact="true").json()
    assert problem["code"] == "conflict"
    assert "redact" in problem["detail"]
    assert "8.0 s" in problem["detail"]
    get(gateway, job_id, format="wav")


def test_what_was_never_judged_is_not_redacted(
    gateway: GatewayProcess, completed: Completed
) -> None:
    job_id = completed(talk, stored_segment(5_000, 7_500, TEXT), options=Options())
    problem = get(gateway, job_id, 422, format="wav", redact="true").json()
    assert (problem["field"], "moderation=true" in problem["detail"]) == ("redact", True)


@pytest.mark.parametrize("query", [{}, {"format": "txt"}, {"format": "json"}])
def test_text_is_not_redacted_but_masked(
    gateway: GatewayProcess, completed: Completed, query: dict[str, str]
) -> None:
    problem = get(gateway, completed(talk), 422, redact="true", **query).json()
    assert (problem["field"], "format=wav" in problem["detail"]) == ("redact", True)


@pytest.mark.parametrize("field", ["flag", "filter_profanity"])
def test_what_is_for_text_is_refused_for_sound(
    gateway: GatewayProcess, completed: Completed, field: str
) -> None:
    query = {"format": "wav", field: "true"}
    assert get(gateway, completed(talk), 422, **query).json()["field"] == field


def test_a_job_that_has_not_ended_and_one_of_another_tenant_give_no_recording(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    job_id = submit_job(gateway_database)
    assert get(gateway, job_id, 409, format="wav").json()["code"] == "not_ready"
    foreign = submit_job(gateway_database, tenant="another")
    get(gateway, foreign, 404, format="wav")


def test_a_recording_that_is_gone_or_broken_is_told_of(
    gateway: GatewayProcess, completed: Completed
) -> None:
    gone = completed(lambda _: None)
    assert get(gateway, gone, 404, format="wav").json()["code"] == "not_found"
    broken = completed(lambda path: path.write_bytes(b"no recording any more" * 99))
    assert "cannot be read" in get(gateway, broken, 409, format="wav").json()["detail"]
    assert sound_processes(gateway) == []


def test_a_client_that_leaves_takes_the_process_with_it(
    gateway: GatewayProcess, completed: Completed
) -> None:
    url = f"/api/v1/download/{completed(large)}"
    with gateway.http.stream("GET", url, params={"format": "wav"}) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        assert len(sound_processes(gateway)) == 1
    wait_for(lambda: not sound_processes(gateway))


def test_head_makes_none_of_the_file(gateway: GatewayProcess, completed: Completed) -> None:
    url = f"/api/v1/download/{completed(large)}"
    answer = gateway.http.head(url, params={"format": "wav"})
    assert answer.headers["content-length"] == str(20 * 192_000 * 16 + 44)
    wait_for(lambda: not sound_processes(gateway))


def test_a_slow_client_makes_the_process_wait_and_gets_all_of_it(
    gateway: GatewayProcess, completed: Completed
) -> None:
    url = f"/api/v1/download/{completed(large)}"
    assert gateway.process is not None
    with gateway.http.stream("GET", url, params={"format": "wav"}) as answer:
        pieces = answer.iter_bytes()
        received = len(next(pieces))
        (process,) = sound_processes(gateway)
        wait_for(lambda: process.status() == psutil.STATUS_SLEEPING)
        assert process.memory_info().rss < 200 << 20
        received += sum(map(len, pieces))
    assert received == int(answer.headers["content-length"]) == 20 * 192_000 * 16 + 44


def test_a_file_whose_making_dies_does_not_look_whole(
    gateway: GatewayProcess, completed: Completed
) -> None:
    url = f"/api/v1/download/{completed(large)}"

    def take() -> None:
        with gateway.http.stream("GET", url, params={"format": "wav"}) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            sound_processes(gateway)[0].kill()
            for _ in pieces:
                pass

    with pytest.raises(httpx.RemoteProtocolError):
        take()


def test_too_many_at_once_are_told_to_come_again(
    gateway: GatewayProcess, completed: Completed
) -> None:
    job_id = completed(large)
    with ExitStack() as stack:
        for _ in range(8):
            answer = stack.enter_context(
                gateway.http.stream("GET", f"/api/v1/download/{job_id}", params={"format": "wav"})
            )
            assert answer.status_code == 200
        refused = get(gateway, job_id, 503, format="wav")
        assert refused.json()["code"] == "busy"
        assert "retry-after" in refused.headers
    wait_for(lambda: answered(gateway, job_id) == 9)
    assert sound_processes(gateway) == []
    get(gateway, job_id, format="wav")
