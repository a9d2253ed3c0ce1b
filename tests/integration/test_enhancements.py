"""The second AI step by real workers, with a scripted server of language models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.db.database import Database
from common.db.enhancements import Enhancements, Enhancing, FoundEnhancement
from common.db.flow import NewPart
from common.db.jobs import Jobs, NewJob
from common.domain.enhancing.options import EnhancementOptions
from common.domain.enhancing.tasks import Task
from common.domain.job import ENHANCEMENT_INCOMPLETE, JobStatus
from common.domain.pipeline import CHAT_ENGINE, ENHANCEMENT
from common.errors import AnswerRejected
from common.redis.events import Events
from common.redis.queue import connect
from scripts.bench.scripted_chat import (
    ChatScript,
    Scripted,
    SeenChat,
    answer,
    chunk,
    error,
    written,
)
from scripts.stack.embedded import EmbeddedValkey
from tests.support.factories import TENANT, claim_next, make_steps, new_job
from tests.support.obedient_chat import INJECTIONS, OBEYED, obedient
from tests.support.service import Service, Start, engine_process_of, wait_until
from tests.support.speech import silence
from tests.support.transcripts import completed_job

SMALL = {"context_tokens": 2048, "max_output_tokens": 1024}
Respond = Callable[[SeenChat], Scripted]


def texts(number: int) -> list[str]:
    """Sentences about people and things, each another one."""
    return [f"Sentence {it}: Lan meets Minh at gate {it * 7} tomorrow." for it in range(number)]


def ids_in(seen: SeenChat) -> tuple[int, ...]:
    """The segments in a request; none: it is about notes."""
    data = json.loads(seen.body["messages"][-1]["content"])
    return tuple(it["id"] for it in data.get("transcript", ()))


class Chat(ChatScript):
    """A server for all tests of this module; each says how it responds."""

    def __init__(self) -> None:
        super().__init__(obedient)

    def reset(self, respond: Respond) -> None:
        self.respond, self.seen = respond, []


@pytest.fixture(scope="module")
def server() -> Iterator[Chat]:
    with Chat() as server:
        yield server


@pytest.fixture(scope="module")
def service(
    module_database_url: str,
    valkey: EmbeddedValkey,
    tmp_path_factory: pytest.TempPathFactory,
    server: Chat,
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder, **configured(server)) as service:
        yield service.serve(2)


@pytest.fixture
def chat(server: Chat) -> Chat:
    server.reset(obedient)
    return server


def configured(server: ChatScript) -> dict[str, str]:
    return {
        "ENHANCED_AI_BASE_URL": server.base_url,
        "ENHANCED_AI_MODEL": "m",
        "ENHANCED_AI_API_KEY": "a-secret-key",
        "MAX_RETRIES": "2",
    }


def begin(service: Service, source: UUID, task: Task, **options: Any) -> UUID:
    usual: dict[str, Any] = {"model": "m", "context_tokens": 16_000, "max_output_tokens": 4096}
    wanted = EnhancementOptions(task=task, **usual | options).checked()
    job: NewJob = new_job(
        id=uuid4(),
        kind=ENHANCEMENT.kind,
        source_id=source,
        engine=CHAT_ENGINE,
        model=wanted.model,
        own_options={ENHANCEMENT.kind: wanted.to_json()},
    )
    service.jobs.create_from_source(job)
    service.notify()
    return job.id


def ended(service: Service, job_id: UUID) -> FoundEnhancement:
    service.ended(job_id)
    return Enhancements(service.database, TENANT).get(job_id)


def result_of(found: FoundEnhancement) -> Any:
    assert found.snapshot.status is JobStatus.COMPLETED, found.snapshot.error_message
    assert found.row is not None
    return found.row.result


def tokens_of(found: FoundEnhancement) -> tuple[int | None, int | None]:
    assert found.row is not None
    return found.row.input_tokens, found.row.output_tokens


@pytest.mark.parametrize("task", list(Task))
def test_each_task_has_a_result_from_the_transcript(
    service: Service, chat: Chat, task: Task
) -> None:
    source = completed_job(service.database, ["Lan calls Minh.", "Minh says yes."])
    more: dict[str, Any] = {
        Task.TRANSLATE: {"language": "vi"},
        Task.PROMPT: {"prompt": "Who calls whom?"},
    }.get(task, {})
    found = ended(service, begin(service, source, task, **more))
    assert result_of(found)
    assert found.row is not None
    assert (found.row.revision, found.newest, found.row.missing) == (1, 1, [])
    assert (found.row.model, found.row.input_tokens, found.row.output_tokens) == ("m-1", 7, 3)
    assert found.row.language == more.get("language", "en")
    assert (found.snapshot.progress, found.snapshot.stage) == (100, "done")
    assert len(chat.seen) == 1
    assert chat.seen[0].headers["authorization"] == "Bearer a-secret-key"
    assert "a-secret-key" not in service.log()


def test_a_long_transcript_is_summarised_in_rounds_and_keeps_its_order(
    service: Service, chat: Chat
) -> None:
    source = completed_job(service.database, texts(120))
    found = ended(service, begin(service, source, Task.SUMMARY, **SMALL))
    (sentence,) = result_of(found)["sentences"]
    assert sentence["segments"] == list(range(120))
    asked = [ids_in(seen) for seen in chat.seen]
    first = [ids for ids in asked if ids]
    assert len(first) > 3
    assert sorted(number for ids in first for number in ids) == list(range(120))
    assert len(asked) > len(first) + 1  # of which the last makes the answer of notes
    assert found.snapshot.chunks_total == len(asked)
    assert found.row is not None
    assert found.row.input_tokens == 7 * len(asked)


def test_equal_requests_are_made_once(service: Service, chat: Chat) -> None:
    source = completed_job(service.database, ["Lan makes equal requests once."])
    first = ended(service, begin(service, source, Task.KEYWORDS))
    again = ended(service, begin(service, source, Task.KEYWORDS))
    assert len(chat.seen) == 1
    assert result_of(again) == result_of(first)
    assert again.row is not None
    assert again.row.input_tokens == 0
    ended(service, begin(service, source, Task.KEYWORDS, model="another"))
    assert [seen.body["model"] for seen in chat.seen] == ["m", "another"]


def test_a_killed_worker_costs_the_call_in_hand(start: Start, chat: Chat) -> None:
    hanging = Event()

    def respond(seen: SeenChat) -> Scripted:
        if 30 in ids_in(seen) and not hanging.is_set():
            hanging.set()
            return Scripted(hangs=True)
        return obedient(seen)

    chat.reset(respond)
    service = start(**configured(chat), WORKER_LEASE="6").serve(2)
    source = completed_job(service.database, texts(120))
    job_id = begin(service, source, Task.SUMMARY, **SMALL)
    wait_until(hanging.is_set, "the call")
    for worker in service.workers():  # the one that waits for an answer in vain is among them
        engine_process_of(worker).kill()
    found = ended(service, job_id)
    (sentence,) = result_of(found)["sentences"]
    assert sentence["segments"] == list(range(120))
    assert tokens_of(found) == (7 * found.snapshot.chunks_total, 3 * found.snapshot.chunks_total)
    calls = Counter(ids for seen in chat.seen if (ids := ids_in(seen)))
    assert set(calls.values()) <= {1, 2}
    assert max(calls.values()) == 2


def test_an_overloaded_server_is_asked_again_when_it_says(service: Service, chat: Chat) -> None:
    responses = [error(429, "slow down", **{"retry-after": "1"})]
    chat.reset(lambda seen: responses.pop() if responses else obedient(seen))
    source = completed_job(service.database, ["The server is overloaded."])
    found = ended(service, begin(service, source, Task.CHAPTERS))
    assert result_of(found)["chapters"]
    assert len(chat.seen) == 2


def test_a_rejected_answer_is_asked_for_again_with_the_reason(service: Service, chat: Chat) -> None:
    wrong = json.dumps({"sentences": [{"text": "Yes.", "segments": [99]}]})
    responses = [answer("no JSON"), answer(wrong)]
    chat.reset(lambda seen: responses.pop() if responses else obedient(seen))
    source = completed_job(service.database, ["The answer is rejected."])
    found = ended(service, begin(service, source, Task.SUMMARY))
    assert result_of(found)["sentences"][0]["segments"] == [0]
    first, *later = [seen.body["messages"][0]["content"] for seen in chat.seen]
    assert "rejected" not in first
    assert len(later) == 2
    assert all("An earlier answer was rejected" in it for it in later)
    assert tokens_of(found) == (3 * 7, 3 * 3)


def test_what_no_answer_is_right_about_is_missing_and_the_rest_is_kept(
    service: Service, chat: Chat
) -> None:
    def respond(seen: SeenChat) -> Scripted:
        return answer("nonsense") if 60 in ids_in(seen) else obedient(seen)

    chat.reset(respond)
    source = completed_job(service.database, [f"{it} and more." for it in texts(120)])
    job_id = begin(service, source, Task.SUMMARY, **SMALL)
    found = ended(service, job_id)
    (sentence,) = result_of(found)["sentences"]
    assert found.snapshot.warnings == (ENHANCEMENT_INCOMPLETE,)
    assert found.row is not None
    ((lost),) = found.row.missing
    gone = range(lost["first"], lost["last"] + 1)
    assert 60 in gone
    assert sentence["segments"] == [it for it in range(120) if it not in gone]
    assert Counter(60 in ids_in(seen) for seen in chat.seen)[True] == 3
    asked = len(chat.seen)
    assert tokens_of(found) == (asked * 7, asked * 3)

    chat.reset(obedient)
    service.retry(job_id)
    again = ended(service, job_id)
    wait_until(lambda: not Enhancements(service.database, TENANT).get(job_id).snapshot.warnings)
    again = Enhancements(service.database, TENANT).get(job_id)
    assert result_of(again)["sentences"][0]["segments"] == list(range(120))
    assert again.row is not None
    assert again.row.missing == []
    asked += len(chat.seen)
    assert tokens_of(again) == (asked * 7, asked * 3)


def test_without_any_right_answer_it_fails_and_says_why(service: Service, chat: Chat) -> None:
    source = completed_job(service.database, ["Nothing is right."])
    chat.reset(lambda _: answer('{"chapters": [{}]}'))
    found = ended(service, begin(service, source, Task.CHAPTERS))
    job = found.snapshot
    assert (job.status, job.error_code) == (JobStatus.FAILED, "enhancement_failed")
    assert "is rejected" in (job.error_message or "")
    assert len(chat.seen) == 3
    assert tokens_of(found) == (3 * 7, 3 * 3)
    chat.reset(lambda _: error(401, "Incorrect API key provided: a-secret-key"))
    job = ended(service, begin(service, source, Task.MINUTES)).snapshot
    assert "check the key (ENHANCED_AI_API_KEY)" in (job.error_message or "")
    assert "a-secret-key" not in (job.error_message or "")
    assert len(chat.seen) == 1


def test_answers_that_are_cut_short_count_as_far_as_the_server_says(
    service: Service, chat: Chat
) -> None:
    unusable = [Scripted(written("too long", "length")), Scripted([chunk("broken")], is_cut=True)]
    chat.reset(lambda seen: unusable.pop(0) if unusable else obedient(seen))
    source = completed_job(service.database, ["The answers are cut short."])
    found = ended(service, begin(service, source, Task.SUMMARY))
    assert result_of(found)["sentences"]
    assert len(chat.seen) == 3
    assert tokens_of(found) == (2 * 7, 2 * 3)


def test_an_attempt_that_fails_twice_counts_once(database: Database) -> None:
    """As after a connection that breaks during the commit."""
    steps, jobs = make_steps(database), Jobs(database, TENANT)
    source = completed_job(database, ["Lan calls."])
    wanted = EnhancementOptions(Task.KEYWORDS, "m", 8192, 4096)
    job: NewJob = new_job(
        id=uuid4(),
        kind=ENHANCEMENT.kind,
        source_id=source,
        engine=CHAT_ENGINE,
        own_options={ENHANCEMENT.kind: wanted.to_json()},
    )
    jobs.create_from_source(job)
    steps.finish(claim_next(steps), parts=[NewPart(0, 4_000, [0, 0, 1, 0, 0], "hash")])
    claim = claim_next(steps)
    rejected = AnswerRejected(reason="it is not JSON")
    rejected.cost = {"input_tokens": 7, "output_tokens": 3, "elapsed_ms": 5}
    assert steps.fail(claim.step_id, claim.attempt, rejected)
    assert not steps.fail(claim.step_id, claim.attempt, rejected)
    assert Enhancing(database).lost_costs(job.id) == [rejected.cost]


@pytest.mark.parametrize("hide", [True, False])
def test_masked_words_reach_the_model_only_of_a_job_that_shows_them(
    service: Service, chat: Chat, hide: bool
) -> None:
    source = completed_job(
        service.database,
        [f"That damn gate. {hide}", "Minh says yes."],
        marks={0: (5, 9)},
        moderation=True,
        filter_profanity=hide,
    )
    found = ended(service, begin(service, source, Task.SUMMARY))
    (sentence,) = result_of(found)["sentences"]
    assert ("d***" in sentence["text"]) is hide
    assert ("damn" in sentence["text"]) is not hide
    assert ("damn" in str(chat.seen[0].body)) is not hide
    assert ("asterisks" in chat.seen[0].body["messages"][0]["content"]) is hide


def test_what_was_said_gives_no_orders(service: Service, chat: Chat) -> None:
    source = completed_job(service.database, INJECTIONS)
    found = ended(service, begin(service, source, Task.PUNCTUATE))
    assert len(result_of(found)["segments"]) == len(INJECTIONS)
    found = ended(service, begin(service, source, Task.ACTION_ITEMS))
    assert OBEYED not in json.dumps(result_of(found))
    assert len(chat.seen) == 2


def test_a_cancelled_one_asks_no_more_and_a_deleted_source_takes_it_along(
    service: Service, chat: Chat
) -> None:
    chat.reset(lambda _: Scripted(hangs=True))
    source = completed_job(service.database, [f"{it} to cancel." for it in texts(120)])
    job_id = begin(service, source, Task.SUMMARY, **SMALL)
    wait_until(lambda: len(chat.seen) >= 2, "two calls")
    for worker, message in service.jobs.cancel(job_id):
        with connect(service.redis_url) as redis:
            Events(redis).stop(worker, message)
    assert ended(service, job_id).snapshot.status is JobStatus.CANCELLED
    chat.reset(obedient)
    assert result_of(ended(service, begin(service, source, Task.KEYWORDS)))
    assert all(seen.body["messages"][0]["content"].count("keyword") for seen in chat.seen)


def test_only_so_many_are_asked_at_once(start: Start, chat: Chat) -> None:
    go = Event()

    def respond(seen: SeenChat) -> Scripted:
        go.wait(30)
        return obedient(seen)

    chat.reset(respond)
    service = start(**configured(chat), ENHANCED_AI_CONCURRENCY="1").serve(2)
    first = begin(service, completed_job(service.database, texts(60)), Task.CHAPTERS, **SMALL)
    second = begin(service, completed_job(service.database, ["Alone."]), Task.CHAPTERS)
    wait_until(lambda: chat.seen, "a call")
    job = service.submit(silence(1))  # other work goes on meanwhile
    assert service.ended(job).status is not JobStatus.PROCESSING
    assert len(chat.seen) == 1
    go.set()
    assert result_of(ended(service, first))
    assert result_of(ended(service, second))
