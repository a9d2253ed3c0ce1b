"""The second AI step on a real server of language models, llama.cpp's own: requests, and jobs.

Its model has made-up weights and writes nonsense, but the protocol is the true one, and the server
makes the nonsense meet the schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.domain.chat import Message
from common.domain.enhancement import (
    Budget,
    Enhancement,
    NumberedSegment,
    Task,
    call_of,
    checked,
    first_parts,
)
from common.domain.enhancing.answers import read_answer
from common.errors import AnswerBroken, AnswerTruncated, ChatRejected
from common.llm.openai_chat import ChatServer, OpenAIChat
from common.net.egress import Egress
from tests.support.api import Api
from tests.support.gateway import GatewayProcess
from tests.support.llama_server import CONTEXT, KEY, llama_server
from tests.support.service import Service, wait_until
from tests.support.transcripts import completed_job

QUESTION = (Message("system", "Answer."), Message("user", '{"transcript":[]}'))
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(tmp_path_factory.mktemp("llama")) as url:
        yield url


def chat_at(base_url: str, key: str | None = KEY) -> OpenAIChat:
    return OpenAIChat(ChatServer(base_url, "made-up", key), Egress("127.0.0.1"), timeout_s=300.0)


def test_an_answer_is_read_to_its_end_with_its_tokens(base_url: str) -> None:
    prompt = "What is the mood?"
    work = checked(Enhancement(Task.PROMPT, "en", Budget(CONTEXT, 1024), prompt, SCHEMA))
    segments = (NumberedSegment(0, 0, 900, None, "Chào các bạn <|im_end|>"),)
    (part,) = first_parts(work, segments)
    call = call_of(work, part)
    found = chat_at(base_url).ask(call.messages, max_tokens=call.max_tokens, form=call.form)
    assert read_answer(found.text, SCHEMA)["mood"] in {"good", "bad"}
    assert found.input_tokens is not None
    assert found.input_tokens > 100
    assert found.output_tokens
    assert "made-up" in found.model


@pytest.mark.parametrize("task", list(Task))
def test_the_server_accepts_the_request_of_every_task(base_url: str, task: Task) -> None:
    prompt = "What is the mood?" if task is Task.PROMPT else None
    work = checked(Enhancement(task, "vi", Budget(CONTEXT, 1024), prompt))
    segments = (NumberedSegment(0, 0, 900, "Lan", "chào các bạn"),)
    (part,) = first_parts(work, segments)
    call = call_of(work, part)
    chat = chat_at(base_url)
    try:
        found = chat.ask(call.messages, max_tokens=200, form=call.form)
    except (AnswerTruncated, AnswerBroken):  # nonsense need not end, nor does JSON of it
        return
    assert found.text
    if call.form is not None:
        assert isinstance(read_answer(found.text, call.form.schema), dict)


def test_an_answer_that_reaches_its_limit_is_truncated(base_url: str) -> None:
    with pytest.raises(AnswerTruncated, match="1 tokens"):
        chat_at(base_url).ask(QUESTION, max_tokens=1)


def test_a_wrong_key_is_rejected_without_being_shown(base_url: str) -> None:
    with pytest.raises(ChatRejected, match="401; check the key") as caught:
        chat_at(base_url, "wrong-key-0123").ask(QUESTION, max_tokens=10)
    assert "wrong-key" not in str(caught.value)


def test_a_request_beyond_the_servers_context_is_rejected_with_the_servers_reason(
    base_url: str,
) -> None:
    long = (*QUESTION, Message("user", "x" * 2 * CONTEXT))
    with pytest.raises(ChatRejected, match="exceeds the available context size"):
        chat_at(base_url).ask(long, max_tokens=10)


def test_a_path_that_the_server_does_not_have_is_named(base_url: str) -> None:
    with pytest.raises(ChatRejected, match="404; check the address"):
        chat_at(base_url + "/v2").ask(QUESTION, max_tokens=10)


# --- jobs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway_settings(base_url: str) -> dict[str, str]:
    return {
        "ENHANCED_AI_BASE_URL": base_url,
        "ENHANCED_AI_API_KEY": KEY,
        "ENHANCED_AI_MODEL": "made-up",
        "ENHANCED_AI_MAX_OUTPUT_TOKENS": "1024",
        "MAX_RETRIES": "0",
    }


@pytest.fixture(scope="module")
def workers(gateway: GatewayProcess, gateway_settings: dict[str, str]) -> Iterator[Service]:
    url, redis_url, folder = gateway.database_url, gateway.redis_url, gateway.folder
    with Service(url, redis_url, folder, **gateway_settings) as service:
        yield service.serve()


def prompted(api: Api, **more: Any) -> Any:
    """What becomes of a prompt about a short transcript."""
    job_id = completed_job(api.database, ["Lan calls Minh.", "Minh says yes."])
    body = {"job_id": str(job_id), "task": "prompt", "prompt": "What is the mood?"} | more
    made = api.ask("POST", "enhanced-ai", 202, json=body).json()["enhanced_job_id"]

    def look() -> Any:
        found = api.get(f"enhanced-ai/{made}")
        return found if found["status"] in {"COMPLETED", "FAILED"} else None

    return wait_until(look, "the end")


@pytest.mark.usefixtures("workers")
def test_a_job_is_answered_as_its_schema_says(api: Api) -> None:
    found = prompted(api, schema=SCHEMA)
    assert found["status"] == "COMPLETED", found["error_message"]
    assert found["result"]["answer"]["mood"] in {"good", "bad"}
    assert "made-up" in found["model"]
    assert found["input_tokens"] > 100
    assert found["output_tokens"] > 1


@pytest.mark.usefixtures("workers")
def test_a_free_text_is_an_answer_or_is_too_long_and_both_are_counted(api: Api) -> None:
    found = prompted(api)
    if found["status"] == "COMPLETED":
        assert found["result"]["answer"]
    else:
        assert "did not end its answer within" in found["error_message"]
        assert found["result"] is None
    assert found["input_tokens"] > 100
    assert found["output_tokens"] > 1
