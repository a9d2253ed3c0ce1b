"""The adapter of OpenAI's chat completions, against a real HTTP server that behaves as scripted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from loguru import logger
from pydantic import SecretStr

from common.domain.chat import Form, Message
from common.errors import (
    AnswerBroken,
    AnswerTruncated,
    AnswerWithheld,
    ChatRejected,
    ChatUnavailable,
    EnhancementOff,
    OutOfRange,
    StenoError,
    UrlRefused,
)
from common.llm.chat import Answer
from common.llm.openai_chat import ChatServer, OpenAIChat, open_chat
from common.net.egress import Egress
from common.settings import EgressSettings, EnhancedAiSettings, Settings
from scripts.bench.scripted_chat import (
    DONE,
    ChatScript,
    Scripted,
    answer,
    chunk,
    error,
    event,
    written,
)
from tests.support.programs import run_python

KEY = "sk-made-up-0123456789"
SPOKEN = "Chào Lan, mật khẩu mới của kho là bốn lá sen"
MESSAGES = (
    Message("system", "Summarise the data."),
    Message("user", json.dumps({"transcript": [{"id": 0, "text": SPOKEN}]}, ensure_ascii=False)),
)
HALVES = (rb"\ud83d", rb"\ude00, ", rb"\udc00")
FORM = Form("answer", {"type": "object"})


def chat_of(
    server: ChatScript, *, timeout_s: float = 30.0, silence_s: float = 30.0, key: str | None = KEY
) -> OpenAIChat:
    there = ChatServer(server.base_url, "m", key)
    return OpenAIChat(there, Egress("127.0.0.1"), timeout_s=timeout_s, silence_s=silence_s)


def ask(*responses: Scripted, timeout_s: float = 30.0, silence_s: float = 30.0) -> Answer:
    with ChatScript.of(*responses) as server:
        chat = chat_of(server, timeout_s=timeout_s, silence_s=silence_s)
        return chat.ask(MESSAGES, max_tokens=100)


@contextmanager
def all_logs() -> Iterator[io.StringIO]:
    """All that is logged by loguru and `logging`, at every level."""
    written_to = io.StringIO()
    sink = logger.add(written_to, level="TRACE", diagnose=False)
    handler = logging.StreamHandler(written_to)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield written_to
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        logger.remove(sink)


def test_an_answer_comes_with_its_tokens_and_its_model() -> None:
    with ChatScript.of(answer("Cuộc họp bàn về kho hàng.")) as server:
        found = chat_of(server).ask(MESSAGES, max_tokens=100, form=FORM)
    assert found.text == "Cuộc họp bàn về kho hàng."
    assert (found.model, found.input_tokens, found.output_tokens) == ("m-1", 7, 3)
    (request,) = server.seen
    assert request.path == "/v1/chat/completions"
    assert request.body["model"] == "m"
    assert request.body["max_tokens"] == 100
    assert request.body["stream"] is True
    assert [it["role"] for it in request.body["messages"]] == ["system", "user"]
    assert request.body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_server_gets_its_key_and_nothing_about_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer other\nX-Secret: 1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other.example/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    sent = {"host", "accept", "accept-encoding", "content-length", "content-type", "user-agent"}
    with ChatScript.of(answer("yes")) as server:
        chat_of(server).ask(MESSAGES, max_tokens=100)
        chat_of(server, key=None).ask(MESSAGES, max_tokens=100)
    with_key, without = server.seen
    assert with_key.headers["authorization"] == f"Bearer {KEY}"
    assert with_key.headers.keys() - {"authorization"} == without.headers.keys() == sent


def test_a_slow_answer_is_awaited_as_long_as_more_of_it_comes() -> None:
    assert ask(answer("word " * 500), silence_s=5.0).text == "word " * 500


@pytest.mark.parametrize(
    ("response", "timeout_s"),
    [
        (Scripted(hangs=True), 0.3),
        (Scripted([chunk("half an ans")], hangs=True), 30.0),
        (Scripted([chunk("half an ans")], endless=b": keep-alive\n\n"), 30.0),
        (Scripted(written("never", None)[:-1], hangs=True), 30.0),
    ],
    ids=["from the start", "in the middle", "with comments", "without an end"],
)
def test_a_server_that_falls_silent_is_given_up(response: Scripted, timeout_s: float) -> None:
    with pytest.raises(ChatUnavailable, match="did not complete its answer in time"):
        ask(response, timeout_s=timeout_s, silence_s=0.3)


def test_a_complete_answer_counts_though_the_server_keeps_the_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.llm.openai_chat.LAST_EVENTS_S", 0.2)
    found = ask(Scripted([chunk("done"), chunk(finish_reason="stop")], hangs=True))
    assert (found.text, found.output_tokens) == ("done", None)


def test_a_connection_that_breaks_after_the_end_costs_only_the_number_of_tokens() -> None:
    found = ask(Scripted([chunk("done"), chunk(finish_reason="stop")], is_cut=True))
    assert (found.text, found.output_tokens) == ("done", None)


def test_half_letters_of_two_events_are_one_and_others_are_replaced() -> None:
    events = [b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % it for it in HALVES]
    assert ask(Scripted([*events, *written("")])).text == "\N{GRINNING FACE}, \ufffd"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Scripted(written("half", None)), "cut off"),
        (Scripted([DONE]), "no choices"),
        (Scripted([event({"choices": "none"}), DONE]), "no choices"),
        (Scripted([event([1, 2]), event(None), event({"choices": [7]}), DONE]), "cut off"),
        (Scripted(written("")), "blank"),
        (Scripted(written(" \n ")), "blank"),
        (Scripted([b"data: {not json\n\n"]), "not JSON"),
        (Scripted([b'data: {"choices": "\xff\xfe"}\n\n']), "not JSON in UTF-8"),
        (Scripted([b"data: " + b"[" * 100_000 + b"\n\n"]), "not JSON"),
        (Scripted(written("x", "tool_calls")), "did not end as a text does"),
        (Scripted(endless=chunk("word " * 5000)), "more than 600000 bytes"),
        (Scripted(endless=b": " + b"x" * 50_000), "more than 600000 bytes"),
        (Scripted([], headers={"content-encoding": "gzip"}), "compressed"),
    ],
)
def test_an_answer_that_cannot_be_read_says_why_and_is_tried_again(
    response: Scripted, reason: str
) -> None:
    with pytest.raises(AnswerBroken, match=reason):
        ask(response)


def test_a_connection_that_breaks_is_tried_again() -> None:
    with pytest.raises(ChatUnavailable, match="the connection broke"):
        ask(Scripted([chunk("half an ans")], is_cut=True))


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with ChatScript.of(answer("")) as server:
        chat = chat_of(server)
    with pytest.raises(ChatUnavailable, match=r"127\.0\.0\.1 is unavailable: it cannot be reached"):
        chat.ask(MESSAGES, max_tokens=100)


def test_answers_that_the_model_does_not_end_or_the_server_withholds_have_errors_of_their_own() -> (
    None
):
    with pytest.raises(AnswerTruncated, match="100 tokens") as caught:
        ask(Scripted(written("and so on", "length")))
    assert cost_in(caught.value) == {"input_tokens": 7, "output_tokens": 3}
    with pytest.raises(AnswerWithheld, match="content filter"):
        ask(Scripted(written("I", "content_filter")))
    refusal = event({"choices": [{"delta": {"refusal": "I can't"}, "finish_reason": "stop"}]})
    with pytest.raises(AnswerWithheld, match="refused"):
        ask(Scripted([refusal, DONE]))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_busy_or_broken_server_is_tried_again(status: int) -> None:
    with pytest.raises(ChatUnavailable, match=f"it answered {status}: try later") as caught:
        ask(error(status, "try later"))
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("17", 17, 17),
        (format_datetime(datetime.now(UTC) + timedelta(minutes=55), usegmt=True), 60, 3300),
        ("999999", 3600, 3600),
    ],
    ids=["seconds", "date", "capped"],
)
def test_it_is_tried_again_when_the_server_asks_for_it(
    header: str, least: float, most: float
) -> None:
    with pytest.raises(ChatUnavailable) as caught:
        ask(error(429, "slow down", **{"retry-after": header}))
    assert caught.value.retry_after_s is not None
    assert least <= caught.value.retry_after_s <= most


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_a_request_that_the_server_rejects_is_not_sent_again(status: int) -> None:
    with ChatScript.of(error(status, "no such thing")) as server:
        with pytest.raises(ChatRejected, match=f"it answered {status}"):
            chat_of(server).ask(MESSAGES, max_tokens=100)
        assert len(server.seen) == 1


def test_an_error_that_comes_as_an_event_is_one() -> None:
    with pytest.raises(AnswerBroken, match="ends with an error: out of memory"):
        ask(Scripted([chunk("half"), event({"error": {"message": "out of memory"}})]))


def test_a_web_page_in_place_of_an_answer_leads_to_the_address() -> None:
    page = Scripted([b"<html>It works!</html>"], headers={"content-type": "text/html"})
    with pytest.raises(ChatRejected, match="check its address"):
        ask(page)


def test_a_redirect_is_not_followed_wherever_it_leads() -> None:
    with ChatScript.of(answer("secret")) as inside:
        for location in (inside.base_url, "http://169.254.169.254/latest/meta-data/"):
            with pytest.raises(ChatRejected, match="redirects are not followed"):
                ask(Scripted([], 307, {"location": f"{location}/chat/completions"}))
        assert not inside.seen


@pytest.mark.parametrize(
    "response", ["echo", "key", "part of the key", "401", "escaped", "bytes", "JSON", "event"]
)
def test_no_error_and_no_log_has_the_key_or_the_transcript(response: str) -> None:
    said = {
        "echo": error(400, f"Bad input: ...{SPOKEN}..."),
        "key": error(400, f"Key {KEY} has no credit"),
        "part of the key": error(429, f"Key {KEY[:12]}*** is limited"),
        "401": error(401, f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]}"),
        "escaped": error(500, f"failed on {SPOKEN.encode('unicode_escape').decode()}"),
        "bytes": error(500, f"failed on {SPOKEN.encode()!r}"),
        "JSON": error(500, f"failed on {json.dumps({'text': SPOKEN})}"),
        "event": Scripted([event({"error": {"message": f"cannot encode {SPOKEN!r}"}})]),
    }
    with all_logs() as logs:
        with pytest.raises(StenoError) as caught:
            ask(said[response])
        logger.opt(exception=caught.value).error("the step failed")
    for text in (str(caught.value), logs.getvalue()):
        assert KEY[:8] not in text
        assert KEY[-4:] not in text
        assert SPOKEN[10:24] not in text
        for form in (json.dumps(SPOKEN[10:24])[1:-1], repr(SPOKEN[10:24].encode())[2:-1]):
            assert form not in text


def test_a_long_message_of_a_server_is_cut() -> None:
    with pytest.raises(ChatRejected) as caught:
        ask(error(400, "no " * 1000))
    assert len(str(caught.value)) < 300


# --- servers that accept less ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("complaints", "formats"),
    [
        (["response_format.type must be text or json_object"], ["json_schema", "json_object"]),
        (
            ["'response_format' of json_schema is not supported", "unknown: response_format"],
            ["json_schema", "json_object", None],
        ),
    ],
)
def test_a_server_without_schemas_is_asked_in_simpler_ways_and_it_is_remembered(
    complaints: list[str], formats: list[str | None]
) -> None:
    responses = [error(400, complaint) for complaint in complaints]
    with ChatScript.of(*responses, answer("{}")) as server:
        chat = chat_of(server)
        assert chat.ask(MESSAGES, max_tokens=100, form=FORM).text == "{}"
        assert chat.ask(MESSAGES, max_tokens=100, form=FORM).text == "{}"
    asked = [it.body.get("response_format", {}).get("type") for it in server.seen]
    assert asked == [*formats, formats[-1]]


def test_a_callers_schema_that_a_server_rejects_changes_nothing_for_others() -> None:
    theirs = Form("answer", {"type": "object"}, is_strict=False)
    with ChatScript.of(error(400, "Invalid schema"), answer("{}")) as server:
        chat = chat_of(server)
        chat.ask(MESSAGES, max_tokens=100, form=theirs)
        chat.ask(MESSAGES, max_tokens=100, form=FORM)
    asked = [it.body["response_format"]["type"] for it in server.seen]
    assert asked == ["json_schema", "json_object", "json_schema"]


def test_a_server_that_names_other_parameters_is_asked_without_them() -> None:
    responses = [
        error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        error(400, "'temperature' does not support 0.2 with this model"),
        error(422, "extra fields not permitted: stream_options"),
    ]
    with ChatScript.of(*responses, answer("yes")) as server:
        assert chat_of(server).ask(MESSAGES, max_tokens=100).text == "yes"
    last = server.seen[-1].body
    assert last["max_completion_tokens"] == 100
    assert not last.keys() & {"max_tokens", "temperature", "stream_options"}


def test_a_server_that_rejects_everything_is_not_asked_for_ever() -> None:
    with ChatScript.of(error(400, "schema temperature stream_options max_completion_tokens")) as it:
        with pytest.raises(ChatRejected):
            chat_of(it).ask(MESSAGES, max_tokens=100, form=FORM)
        assert len(it.seen) == 6


# --- which server ---------------------------------------------------------------------------------


def cost_in(error: StenoError) -> dict[str, int]:
    """What an error says was used up, but for the time."""
    assert error.cost is not None
    assert error.cost["elapsed_ms"] >= 0
    return {name: number for name, number in error.cost.items() if name != "elapsed_ms"}


@pytest.mark.parametrize(
    ("response", "tokens"),
    [
        (Scripted(written("I can not", "content_filter")), {"input_tokens": 7, "output_tokens": 3}),
        (Scripted(written("", "stop")), {"input_tokens": 7, "output_tokens": 3}),
        (Scripted([chunk("cut")], is_cut=True), {}),
        (Scripted([chunk("cut"), b"data: {no JSON\n\n"]), {}),
    ],
)
def test_what_an_unusable_answer_took_is_with_its_error(
    response: Scripted, tokens: dict[str, int]
) -> None:
    with pytest.raises(StenoError) as caught:
        ask(response)
    assert cost_in(caught.value) == tokens


def test_what_no_model_has_worked_on_took_nothing() -> None:
    with pytest.raises(ChatUnavailable) as caught:
        ask(error(429, "slow down"))
    assert caught.value.cost is None


def settings_with(**options: object) -> Settings:
    ai = EnhancedAiSettings.model_validate(options)
    return Settings(egress=EgressSettings(), enhanced_ai=ai)


def test_the_server_of_the_settings_may_be_private_and_a_tenants_may_not() -> None:
    with ChatScript.of(answer("yes")) as server:
        settings = settings_with(base_url=server.base_url, model="m", api_key=SecretStr(KEY))
        assert open_chat(settings).ask(MESSAGES, max_tokens=100).text == "yes"
        tenants = ChatServer(server.base_url, "m")
        with pytest.raises(UrlRefused, match=r"base_url of the tenant's server is .* not public"):
            open_chat(settings, tenants).ask(MESSAGES, max_tokens=100)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "of_settings", "of_tenants"),
    [
        (401, "(ENHANCED_AI_API_KEY)", "(api_key of the tenant's server)"),
        (404, "(ENHANCED_AI_MODEL)", "(model of the tenant's server)"),
    ],
)
def test_an_error_names_where_the_server_was_set(
    status: int, of_settings: str, of_tenants: str
) -> None:
    with ChatScript.of(error(status, "no")) as server:
        ai = EnhancedAiSettings(base_url=server.base_url, model="m")
        settings = Settings(egress=EgressSettings(allow="127.0.0.1"), enhanced_ai=ai)
        for override, named in (
            (None, of_settings),
            (ChatServer(server.base_url, "m"), of_tenants),
        ):
            with pytest.raises(ChatRejected) as caught:
                open_chat(settings, override).ask(MESSAGES, max_tokens=100)
            assert named in str(caught.value)
            assert ("ENHANCED_AI" in str(caught.value)) is (override is None)


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(EnhancementOff, match="ENHANCED_AI_BASE_URL"):
        open_chat(settings_with(model="m"))
    with pytest.raises(EnhancementOff, match="ENHANCED_AI_MODEL"):
        open_chat(settings_with(base_url="http://ollama:11434/v1"))


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "khoá"])
def test_a_key_that_cannot_be_sent_is_rejected_and_not_shown(key: str) -> None:
    with pytest.raises(OutOfRange, match="api_key must be printable ASCII") as caught:
        ChatServer("http://ollama:11434/v1", "m", key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["http://u:secret@ollama/v1", "file:///etc/passwd", "ollama:11434"])
def test_an_address_that_is_no_server_is_rejected(url: str) -> None:
    with pytest.raises(UrlRefused):
        ChatServer(url, "m")


def test_the_key_is_not_shown_with_its_server() -> None:
    assert KEY not in repr(ChatServer("http://ollama:11434/v1", "m", KEY))


def test_a_process_that_asks_no_model_does_not_load_the_packages_for_it() -> None:
    modules = "common.llm.openai_chat, common.domain.enhancement"
    loaded = f"import sys, {modules}; print(sys.modules.keys() & {{'openai', 'jsonschema'}})"
    assert run_python("-c", loaded).stdout.strip() == "set()"
