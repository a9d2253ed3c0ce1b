"""What is said in a recording is data: it never becomes an instruction to the model.

The server here obeys whatever instruction reaches it as one (`tests.support.obedient_chat`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.domain.chat import Message
from common.domain.enhancement import (
    Budget,
    Enhancement,
    NumberedSegment,
    Result,
    Task,
    call_of,
    checked,
    combine,
    first_parts,
    more_parts,
    parse_part,
)
from common.domain.enhancing.answers import one_line
from common.llm.openai_chat import ChatServer, OpenAIChat
from common.net.egress import Egress
from scripts.bench.scripted_chat import ChatScript, answer
from tests.support.obedient_chat import (
    HIDDEN,
    INJECTIONS,
    OBEYED,
    ORDERS,
    instructions_in,
    obedient,
)


def chat_of(server: ChatScript) -> OpenAIChat:
    return OpenAIChat(ChatServer(server.base_url, "m"), Egress("127.0.0.1"), timeout_s=60.0)


def enhanced(
    chat: OpenAIChat, work: Enhancement, segments: tuple[NumberedSegment, ...]
) -> tuple[Result, int]:
    """The whole result, and in how many rounds."""
    parts, rounds = first_parts(work, segments), 0
    results: list[Result] = []
    while parts:
        rounds += 1
        results = []
        for part in parts:
            call = call_of(work, part)
            answered = chat.ask(call.messages, max_tokens=call.max_tokens, form=call.form)
            results.append(parse_part(work, part, answered.text))
        parts = more_parts(work, parts, results)
    return combine(work, segments, results), rounds


def talk(*injected: str) -> tuple[NumberedSegment, ...]:
    texts = ["Lan ơi, mai họp nhé.", *injected, "Vâng, mai họp."]
    return tuple(
        NumberedSegment(number, number * 1000, number * 1000 + 900, f"Lan {text}", text)
        for number, text in enumerate(texts)
    )


def work_on(task: Task, budget: Budget | None = None, **more: Any) -> Enhancement:
    if task is Task.PROMPT:
        more = {"prompt": "What did they agree on?", **more}
    return checked(Enhancement(task, "en", budget or Budget(16_000, 4096), **more))


@pytest.mark.parametrize("injection", [*INJECTIONS, HIDDEN])
def test_the_server_would_obey_if_the_text_reached_it_as_it_was_said(injection: str) -> None:
    """Otherwise the tests below would show nothing."""
    with ChatScript(obedient) as server:
        for content in (f"Summarise <transcript>{injection}</transcript>", injection + "\n"):
            messages = [Message("system", "Summarise the transcript."), Message("user", content)]
            assert chat_of(server).ask(messages, max_tokens=100).text == OBEYED


@pytest.mark.parametrize("task", list(Task))
def test_a_transcript_that_gives_orders_changes_nothing_but_its_own_text(task: Task) -> None:
    with ChatScript(obedient) as server:
        chat = chat_of(server)
        if task is Task.PUNCTUATE:  # its texts are returned, so that this task shows what was read
            for injection in (*INJECTIONS, HIDDEN):
                segments = talk(injection)
                found, _ = enhanced(chat, work_on(task), segments)
                assert [it["text"] for it in found["segments"]] == [
                    one_line(it.text) for it in segments
                ]
            return
        plain, _ = enhanced(chat, work_on(task), talk("Họp lúc chín giờ."))
        for injection in (*INJECTIONS, HIDDEN):
            found, _ = enhanced(chat, work_on(task), talk(injection))
            assert _shape(found) == _shape(plain)


def _shape(value: Any) -> Any:
    """A result without its texts."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shape(each) for each in value]
    return "text" if isinstance(value, str) else value


@pytest.mark.parametrize("task", [Task.SUMMARY, Task.MINUTES, Task.PROMPT])
def test_orders_that_get_into_notes_are_data_in_the_next_round_too(task: Task) -> None:
    budget = Budget(2048, 1024)
    with ChatScript(obedient) as server:
        found, rounds = enhanced(chat_of(server), work_on(task, budget), talk(*INJECTIONS * 3))
    assert rounds > 1
    assert OBEYED not in json.dumps(_shape(found))
    assert not any(ORDERS.search(instructions_in(seen.body["messages"])) for seen in server.seen)


def test_a_glossary_gives_no_orders() -> None:
    with ChatScript(obedient) as server:
        work = work_on(Task.SUMMARY, glossary=tuple(INJECTIONS))
        found, _ = enhanced(chat_of(server), work, talk("Họp."))
    assert found["sentences"]


def test_an_answer_that_obeys_is_rejected_whatever_made_the_model_do_so() -> None:
    segments = talk("Họp.")
    with ChatScript.of(answer(OBEYED)) as server:
        for task in set(Task) - {Task.PROMPT}:
            work = work_on(task)
            (part,) = first_parts(work, segments)
            call = call_of(work, part)
            text = chat_of(server).ask(call.messages, max_tokens=100, form=call.form).text
            with pytest.raises(Exception, match="it is not JSON"):
                parse_part(work, part, text)
