"""What the gateway promises to live streams: over a real WebSocket, by real weights."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from uuid import UUID

import httpx
import numpy as np
import psutil
import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api.app import create_app
from api.services import Services
from common.domain.keys import DEFAULT_TENANT
from common.settings import DatabaseSettings, RedisSettings, Settings, StorageSettings
from tests.support.gateway import GatewayProcess, children
from tests.support.service import wait_until
from tests.support.speech import pcm16, silence, speak

FOX = "The quick brown fox jumps over the lazy dog."
RICE = "Rice is often served in round bowls."
FOUL = "Shut the fuck up."
MODULE = "api.processes.recognizer_process"
PATIENCE_S = 90
PIECE = 3_200
"""100 ms."""

Document = dict[str, Any]
Condition = Callable[[Document], bool]
Alone = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {
        "STREAM_PRELOAD": "true",
        "STREAM_MAX_WHISPER": "3",
        "STREAM_IDLE": "4",
        "DEFAULT_LANGUAGE": "en",
    }


def audio(*texts: str, pause_s: float = 1.2) -> bytes:
    """Sentences, and silence after each."""
    return pcm16(
        np.concatenate([part for text in texts for part in (speak(text), silence(pause_s))])
    )


class Talk:
    """A client; ``messages`` are all that it received."""

    def __init__(
        self, gateway: GatewayProcess, *, query: Document | None = None, **how: Any
    ) -> None:
        self.url = f"ws://127.0.0.1:{gateway.port}/ws/transcribe?{urlencode(query or {})}"
        self.messages: list[Document] = []
        self.code: int | None = None
        self._connection = ExitStack()
        self._how = how

    def __enter__(self) -> Self:
        connecting = connect(self.url, proxy=None, compression=None, close_timeout=5, **self._how)
        self.socket: ClientConnection = self._connection.enter_context(connecting)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def start(self, **options: Any) -> str:
        """Begin in English, and wait until it is ready; returns the session's id."""
        self.send(language="en", **options)
        session_id: str = self.receive(status("ready"))["session_id"]
        return session_id

    def speak(self, pcm: bytes) -> None:
        for start in range(0, len(pcm), PIECE):
            self.socket.send(pcm[start : start + PIECE])

    def receive(self, wanted: Condition, within_s: float = PATIENCE_S) -> Document:
        """The first message that is ``wanted``."""
        deadline = time.monotonic() + within_s
        while True:
            text = self.socket.recv(timeout=max(0.1, deadline - time.monotonic()))
            self.messages.append(json.loads(text))
            if wanted(self.messages[-1]):
                return self.messages[-1]

    def receive_all(self) -> int | None:
        """Until the gateway closes; returns the code that it closes with."""
        with pytest.raises(ConnectionClosed) as closed:
            self.receive(lambda _: False)
        self.code = None if closed.value.rcvd is None else closed.value.rcvd.code
        return self.code

    def finish(self) -> None:
        self.send(type="CloseStream")
        assert self.receive_all() == 1000

    def of(self, kind: str) -> list[Document]:
        return [each for each in self.messages if each["type"] == kind]

    @property
    def text(self) -> str:
        return final_text(self.messages)


def final(message: Document) -> bool:
    return bool(message["is_final"])


def final_text(messages: list[Document]) -> str:
    return " ".join(each["text"] for each in messages if each["is_final"])


def of_type(kind: str) -> Condition:
    return lambda message: bool(message["type"] == kind)


def status(name: str) -> Condition:
    return lambda message: message.get("status") == name


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def is_about(text: str, said: str) -> bool:
    """Whether most of what was said is in it: the voice is a robot's."""
    wanted = words(said)
    return len(wanted & words(text)) >= 0.6 * len(wanted)


def recognizers(gateway: GatewayProcess) -> list[psutil.Process]:
    """The processes that run Whisper; another engine may have some beside them."""
    assert gateway.process is not None
    return children(MODULE, gateway.process.pid, argument="faster-whisper")


def recognizer(gateway: GatewayProcess) -> psutil.Process:
    """The only one of them."""
    (found,) = recognizers(gateway)
    return found


def live_streams(gateway: GatewayProcess) -> int:
    """How many streams the gateway's recognizers have."""
    models = gateway.http.get("/api/v1/models").json()["models"]
    return sum(each["live_streams"] or 0 for each in models)


def stored(gateway: GatewayProcess, session_id: str) -> Document:
    document: Document = gateway.http.get(f"/api/v1/streams/{session_id}").json()
    return document


def test_words_come_during_speech_and_are_moderated_and_stored(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        session = talk.start(model_id="base", recording_id="call 7", metadata={"a": [1]})
        samples = audio(FOX, FOUL)
        for start in range(0, len(samples), PIECE):
            talk.socket.send(samples[start : start + PIECE])
            time.sleep(0.08)
        talk.finish()
    finals, partials = talk.of("final"), talk.of("partial")
    assert is_about(talk.text, f"{FOX} {FOUL}")
    assert partials
    assert partials[0]["seq"] < finals[0]["seq"]
    numbers = [each["seq"] for each in talk.messages]
    assert numbers == sorted(set(numbers))
    for each in talk.messages:
        assert {"type", "seq", "start", "end", "text", "is_final"} <= each.keys()
        assert each["is_final"] is (each["type"] == "final")
    for each in finals:
        assert each["start"] <= each["words"][0]["start"] <= each["words"][-1]["end"]
        assert (each["engine"], each["model_id"]) == ("faster-whisper", "base")
        assert each["language"] == "en"
        assert each["latency_ms"] >= 0
    moderated = talk.of("detections")
    assert [each["final_seq"] for each in moderated] == [each["seq"] for each in finals]
    labels = [result["label"] for each in moderated for result in each["results"]]
    assert labels[0] == "CLEAN"
    assert "OFFENSIVE" in labels
    found = stored(gateway, session)
    assert (found["text"], found["outcome"]) == (talk.text, "completed")
    assert (found["recording_id"], found["metadata"]) == ("call 7", {"a": [1]})
    history = gateway.http.get("/api/v1/history").json()["history"]
    (entry,) = (each for each in history if each["session_id"] == session)
    assert entry["model_id"] == "base"
    assert talk.text.startswith(entry["content"][:20])


def test_audio_without_options_is_recognized_as_the_settings_say(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.speak(audio(RICE))
        talk.finish()
    assert is_about(talk.text, RICE)


def test_options_of_the_first_message_go_before_those_of_the_url(gateway: GatewayProcess) -> None:
    query = {"language": "vi", "model_id": "whisper", "moderation": "false"}
    with Talk(gateway, query=query) as talk:
        talk.send(language="en")
        talk.speak(audio(RICE))
        talk.finish()
    assert talk.of("final")[0]["language"] == "en"
    assert not talk.of("detections")


def test_audio_may_come_all_at_once(gateway: GatewayProcess) -> None:
    samples = audio(FOX, RICE)
    with Talk(gateway) as talk:
        talk.send(language="en")
        talk.socket.send(samples[:333])  # half a sample at the end
        talk.socket.send(samples[333:])
        talk.finish()
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_audio_that_stops_in_the_middle_becomes_a_final(gateway: GatewayProcess) -> None:
    spoken = pcm16(speak(FOX))
    with Talk(gateway) as talk:
        talk.send(language="en")
        talk.speak(spoken[: len(spoken) * 3 // 4])
        ended = talk.receive(final)
    assert is_about(ended["text"], "The quick brown fox jumps")


def test_a_client_may_end_an_utterance(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(pcm16(speak(RICE)))
        talk.send(type="Finalize")
        assert is_about(talk.receive(final)["text"], RICE)
        talk.speak(audio(FOX))
        talk.finish()
    assert is_about(talk.text, FOX)


def test_a_switch_keeps_the_connection_and_what_was_said(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(audio(FOX))
        talk.send(language="de")
        talk.speak(audio(RICE))
        talk.finish()
    languages = [each["language"] for each in talk.of("final")]
    assert languages == sorted(languages, reverse=True)
    assert set(languages) == {"en", "de"}
    english = " ".join(each["text"] for each in talk.of("final") if each["language"] == "en")
    assert is_about(english, FOX)


def test_a_stream_can_switch_engines(gateway: GatewayProcess, streaming_weights: Path) -> None:
    rain = "Hôm nay trời mưa rất to."
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(audio(FOX))
        talk.send(model_id="zipformer")
        talk.speak(pcm16(np.concatenate([speak(rain, "vi"), silence(1.2)])))
        talk.receive(lambda it: it["is_final"] and it["engine"] == "zipformer")
        talk.send(model_id="base", language="en")
        talk.speak(audio(RICE))
        talk.finish()
    engines = [each["engine"] for each in talk.of("final")]
    assert engines[0] == engines[-1] == "faster-whisper"
    (model,) = {it["model_id"] for it in talk.of("final") if it["engine"] == "zipformer"}
    assert streaming_weights.name.endswith(model)
    english = [it["text"] for it in talk.of("final") if it["engine"] == "faster-whisper"]
    assert is_about(" ".join(english), f"{FOX} {RICE}")
    ready = [it["engine"] for it in talk.of("status") if it["status"] == "ready"]
    assert ready == ["faster-whisper", "zipformer", "faster-whisper"]


def test_a_wrong_switch_changes_nothing_and_is_named(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.send(language="en")
        talk.speak(audio(FOX))
        talk.send(model_id="no-such")
        talk.send(endpointing=700)
        talk.send(language="auto")
        talk.send(languag="vi")
        talk.finish()
    errors = talk.of("error")
    assert [error["fatal"] for error in errors] == [False] * 4
    fields = [error["field"] for error in errors]
    assert fields == ["model_id", "endpointing", "language", "languag"]
    assert is_about(talk.text, FOX)


def test_malformed_messages_are_answered_and_many_end_the_stream(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.send(language="en")
        for text in ("{", "[]", '"x"', '{"type": "Dance"}'):
            talk.socket.send(text)
        talk.speak(audio(RICE))
        talk.receive(final)
        assert [error["code"] for error in talk.of("error")] == ["malformed"] * 4
        for _ in range(7):
            talk.socket.send("garbage")
        assert talk.receive_all() == 4400
    assert talk.of("error")[-1]["fatal"]
    assert is_about(talk.text, RICE)


@pytest.mark.parametrize(
    ("first", "code", "field"),
    [
        ("garbage", 4400, None),
        ('{"type": "Start"}', 4400, None),
        ('{"model_id": "no-such"}', 4422, "model_id"),
        ('{"model_id": "small"}', 4422, "model_id"),
        ('{"language": "xx"}', 4422, "language"),
        ('{"endpointing": 10}', 4422, "endpointing"),
        ('{"sample_rate": 8000}', 4422, "sample_rate"),
        ('{"engine": "whisper.cpp"}', 4422, "engine"),
        ('{"metadata": [1]}', 4422, "metadata"),
    ],
)
def test_a_stream_that_cannot_begin_says_why(
    gateway: GatewayProcess, first: str, code: int, field: str | None
) -> None:
    with Talk(gateway) as talk:
        talk.socket.send(first)
        assert talk.receive_all() == code
    (error,) = talk.messages
    assert error["fatal"]
    assert error.get("field") == field


def test_a_file_that_is_not_raw_pcm_is_rejected_by_its_format(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.socket.send(b"\x1aE\xdf\xa3" + bytes(1000))
        assert talk.receive_all() == 4415
    assert "WebM" in talk.of("error")[0]["detail"]


def test_a_message_that_is_too_large_closes_the_connection(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.socket.send(bytes(1_000_001))
        assert talk.receive_all() == 1009


def test_an_idle_stream_ends_complete_unless_it_is_kept_alive(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(audio(RICE))
        for _ in range(6):  # longer than STREAM_IDLE
            time.sleep(1)
            talk.send(type="KeepAlive")
        talk.speak(audio(FOX))
        assert talk.receive_all() == 4408
    assert talk.of("error")[-1]["code"] == "idle"
    assert is_about(talk.text, f"{RICE} {FOX}")


def test_one_stream_too_many_is_rejected_and_the_others_go_on(gateway: GatewayProcess) -> None:
    with Talk(gateway) as one, Talk(gateway) as two, Talk(gateway) as three:
        for talk in (one, two, three):
            talk.start()
        with Talk(gateway) as four:
            four.send(language="en")
            assert four.receive_all() == 4503
        assert four.messages[0]["code"] == "streams_full"
        assert "3 live streams" in four.messages[0]["detail"]
        for talk in (one, two, three):
            talk.speak(audio(RICE))
        for talk in (one, two, three):
            talk.finish()
            assert is_about(talk.text, RICE)
    wait_until(lambda: live_streams(gateway) == 0, "the end of all streams")


def test_the_text_of_a_client_that_disconnects_is_stored(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        session = talk.start()
        talk.speak(audio(FOX))
        talk.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: stored(gateway, session)["completed_at"], "the end of the stream")
    found = stored(gateway, session)
    assert is_about(found["text"], FOX)
    assert found["outcome"] == "client_left"
    assert live_streams(gateway) == 0


def test_a_connection_lost_while_the_gateway_sends_is_a_disconnection(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The server reports it to whoever sends at that moment, and to whoever receives."""
    app = create_app(
        Settings(
            database=DatabaseSettings(url=SecretStr(database_url)),
            redis=RedisSettings(url=SecretStr(redis_url)),
            storage=StorageSettings(data_dir=tmp_path),
        )
    )

    async def outcome() -> str | None:
        lost = asyncio.Event()
        messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "{}"}]
        sessions: list[str] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await lost.wait()
            return {"type": "websocket.disconnect", "code": 1006}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "websocket.send":
                sessions.append(json.loads(message["text"])["session_id"])
                lost.set()
                raise OSError

        async with app.router.lifespan_context(app) as state:
            assert state is not None
            scope = {
                "type": "websocket",
                "path": "/ws/transcribe",
                "query_string": b"",
                "headers": [(b"host", b"localhost")],
                "client": ("127.0.0.1", 40_000),
                "subprotocols": [],
                "state": dict(state),
            }
            await app(scope, receive, send)
            gateway: Services = state["services"]
            return gateway.streams(DEFAULT_TENANT).get(UUID(sessions[0])).outcome

    assert asyncio.run(outcome()) == "client_left"


def test_a_recognizer_that_is_killed_loses_no_word(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        spoken = audio(FOX, RICE)
        talk.speak(spoken[: len(spoken) // 3])
        talk.receive(of_type("partial"))
        recognizer(gateway).kill()
        talk.receive(status("recognizer_lost"))
        talk.speak(spoken[len(spoken) // 3 :])
        talk.receive(status("recognizer_back"))
        talk.finish()
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_a_recognizer_that_hangs_is_replaced(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(audio(FOX))
        talk.receive(final)
        recognizer(gateway).suspend()
        talk.speak(audio(RICE))

        def is_replaced() -> bool:
            talk.send(type="KeepAlive")
            with suppress(TimeoutError):
                talk.receive(status("recognizer_lost"), within_s=1)
            return talk.messages[-1].get("status") == "recognizer_lost"

        wait_until(is_replaced, "another recognizer")
        talk.finish()
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_a_deleted_stream_is_closed_and_not_found(alone: Alone) -> None:
    gateway = alone()
    with Talk(gateway) as talk:
        session = talk.start()
        talk.speak(audio(FOX))
        talk.receive(of_type("detections"))
        wait_until(lambda: stored(gateway, session)["text"], "its text")
        assert gateway.http.delete(f"/api/v1/streams/{session}").status_code == 204
        talk.speak(audio(RICE))
        assert talk.receive_all() == 4404
        assert gateway.http.get(f"/api/v1/streams/{session}").status_code == 404


def test_a_gateway_that_is_stopped_sends_the_last_words(alone: Alone) -> None:
    gateway = alone(STREAM_PRELOAD="true")
    assert gateway.process is not None
    with Talk(gateway) as talk:
        talk.start()
        talk.speak(pcm16(speak(FOX)))
        talk.receive(of_type("partial"))
        gateway.process.send_signal(signal.SIGTERM)
        assert talk.receive_all() == 1012
        assert gateway.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
    assert is_about(talk.text, FOX)


def test_a_stream_that_is_too_long_is_closed(alone: Alone) -> None:
    with Talk(alone(STREAM_MAX_HOURS=str(3 / 3600))) as talk:
        talk.speak(audio(FOX, RICE))
        assert talk.receive_all() == 4413
    assert talk.of("error")[-1]["code"] == "too_long"


def test_audio_too_fast_to_recognize_ends_the_stream(
    alone: Alone, pool: ThreadPoolExecutor
) -> None:
    hour = audio(FOX, RICE, pause_s=0.6) * 60
    with Talk(alone(STREAM_PATIENCE="1")) as talk:
        pool.submit(talk.speak, hour)  # until the connection is closed
        assert talk.receive_all() == 4429
    assert talk.of("error")[-1]["code"] == "too_fast"
    assert any(each.get("status") == "behind" for each in talk.messages)


def test_weights_that_cannot_be_loaded_are_named_at_once(alone: Alone, tmp_path: Path) -> None:
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (broken / name).write_text("{}")
    gateway = alone(MODELS_DIR=str(tmp_path / "models"))
    for _ in range(2):
        with Talk(gateway) as talk:
            talk.send(model_id="broken")
            assert talk.receive_all() == 4503
        error = talk.of("error")[-1]
        assert error["code"] == "recognizer_unusable"
        assert str(tmp_path) not in error["detail"]


def test_a_gateway_is_ready_once_its_preloaded_models_are(alone: Alone, tmp_path: Path) -> None:
    def streams(path: str) -> str:
        return str(gateway.http.get(path).json()["parts"]["streams"])

    def is_ready() -> bool:
        return bool(gateway.http.get("/readyz").is_success)

    gateway = alone(STREAM_PRELOAD="true")
    wait_until(is_ready, "readiness")
    assert streams("/readyz") == streams("/health") == "ok"
    before = recognizer(gateway)
    before.kill()  # while it has no stream
    wait_until(lambda: recognizers(gateway) not in ([], [before]) and is_ready(), "another")
    gateway = alone(STREAM_PRELOAD="true", MODELS_DIR=str(tmp_path))
    wait_until(lambda: "base" in streams("/readyz"), "the reason")
    assert not is_ready()
    assert gateway.http.get("/health").json()["status"] == "degraded"


# --- keys ----------------------------------------------------------------------------------------


@pytest.fixture
def locked(alone: Alone) -> GatewayProcess:
    gateway = alone(GATEWAY_API_KEY="a-key-of-the-test")
    gateway.http.headers["X-API-Key"] = "a-key-of-the-test"
    return gateway


def test_a_key_is_required_and_may_be_sent_in_three_ways(locked: GatewayProcess) -> None:
    wrong: list[dict[str, Any]] = [{}, {"additional_headers": {"X-API-Key": "wrong"}}]
    for how in wrong:
        with pytest.raises(InvalidStatus) as refused, Talk(locked, **how):
            pass
        answer = refused.value.response
        assert answer.status_code == 401
        assert json.loads(answer.body)["code"] == "unauthorised"
    for how in (
        {"additional_headers": {"Authorization": "Bearer a-key-of-the-test"}},
        {"additional_headers": {"X-API-Key": "a-key-of-the-test"}},
        {"subprotocols": ["token", "a-key-of-the-test"]},
    ):
        with Talk(locked, **how) as talk:
            assert talk.socket.subprotocol == ("token" if "subprotocols" in how else None)


def test_a_key_has_a_limit_of_streams_and_needs_the_scope(locked: GatewayProcess) -> None:
    def make(**key: Any) -> dict[str, Any]:
        made = locked.http.post("/api/v1/keys", json={"name": "x", **key}).json()
        return {"additional_headers": {"X-API-Key": made["key"]}}

    one = make(scopes=["transcribe"], limits={"concurrent_streams": 1})
    with Talk(locked, **one) as talk:
        talk.start()
        with Talk(locked, **one) as second:
            second.send(language="en")
            assert second.receive_all() == 4429
        assert second.messages[0]["field"] == "concurrent_streams"
        talk.finish()
    with pytest.raises(InvalidStatus) as refused, Talk(locked, **make(scopes=["read"])):
        pass
    assert refused.value.response.status_code == 403


def test_pages_of_other_origins_are_rejected_without_keys(gateway: GatewayProcess) -> None:
    with pytest.raises(InvalidStatus) as refused, Talk(gateway, origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403


def test_neither_words_nor_queries_are_in_the_log(gateway: GatewayProcess) -> None:
    with Talk(gateway, query={"recording_id": "my-secret-name"}) as talk:
        talk.speak(audio(FOX))
        talk.finish()
    log = gateway.log_file.read_text()
    assert "/ws/transcribe" in log
    assert "my-secret-name" not in log
    assert "brown" not in log.lower()


# --- HTTP ----------------------------------------------------------------------------------------


@contextmanager
def posting(gateway: GatewayProcess, *, accept: str = "*/*") -> Iterator[tuple[socket.socket, Any]]:
    """A request whose body is sent bit by bit, and its answer as a file."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.settimeout(PATIENCE_S)
        line.sendall(
            f"POST /asr/stream?language=en HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n"
            f"Content-Type: application/octet-stream\r\nAccept: {accept}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        with line.makefile("rb") as answer:
            yield line, answer


def send_chunk(line: socket.socket, data: bytes) -> None:
    line.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def documents(lines: Iterable[bytes]) -> list[Document]:
    """Those in the lines of an answer."""
    return [json.loads(text) for text in lines if text.startswith(b"{")]


def test_an_answer_begins_before_the_request_has_ended(gateway: GatewayProcess) -> None:
    with posting(gateway) as (line, answer):
        send_chunk(line, audio(FOX))
        received: list[Document] = []
        while not (received and received[-1]["is_final"]):
            received += documents([answer.readline()])
        assert is_about(received[-1]["text"], FOX)
        send_chunk(line, audio(RICE))
        send_chunk(line, b"")
        received += documents(answer)
    assert {each["type"] for each in received} >= {"status", "partial", "final", "detections"}
    assert is_about(final_text(received), f"{FOX} {RICE}")
    assert received[-1]["status"] == "closed"


def test_an_answers_finals_are_stored_by_its_end(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/asr/stream?language=en", content=pcm16(speak(FOX)))
    received = documents(answer.content.splitlines())
    found = stored(gateway, received[0]["session_id"])
    assert found["outcome"] == "completed"
    texts = [each["text"] for each in received if each["is_final"]]
    assert [each["text"] for each in found["finals"]] == texts
    assert found["moderation"]["model"]
    history = gateway.http.get("/api/v1/history").json()["history"]
    assert history[0]["session_id"] == found["session_id"]


def test_clients_that_accept_events_receive_events(gateway: GatewayProcess) -> None:
    answer = gateway.http.post(
        "/asr/stream?language=en&moderation=false",
        content=audio(RICE),
        headers={"Accept": "text/event-stream"},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [
        dict(line.split(": ", 1) for line in part.split("\n"))
        for part in answer.text.split("\n\n")
        if part
    ]
    assert [event["id"] for event in events] == sorted((e["id"] for e in events), key=int)
    finals = [json.loads(event["data"]) for event in events if event["event"] == "final"]
    assert is_about(finals[0]["text"], RICE)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("language=xx", "language"),
        ("model_id=no", "model_id"),
        ("foo=1", "foo"),
        ("endpointing=1", "endpointing"),
    ],
)
def test_a_wrong_query_option_is_named(gateway: GatewayProcess, query: str, field: str) -> None:
    answer = gateway.http.post(f"/asr/stream?{query}", content=audio(RICE))
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert answer.json()["field"] == field


def test_a_request_that_stops_ends_with_its_text(gateway: GatewayProcess) -> None:
    with posting(gateway) as (line, answer):
        send_chunk(line, audio(FOX))
        received = documents(answer)
    assert is_about(final_text(received), FOX)
    assert [it["code"] for it in received if it["type"] == "error"] == ["idle"]


def test_a_stream_is_not_idle_while_its_model_is_loaded(alone: Alone) -> None:
    # Loading takes longer.
    with posting(alone(STREAM_IDLE="0.3")) as (_, answer):
        received = documents(answer)
    states = [it["code"] if it["type"] == "error" else it["status"] for it in received]
    assert states == ["loading", "ready", "closing", "idle", "closed"]


def test_models_report_which_can_stream_and_are_loaded(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.start()
        models = gateway.http.get("/api/v1/models").json()["models"]
    by_name = {(each["engine"], each["model"]): each for each in models}
    base = by_name["faster-whisper", "base"]
    assert (base["streams"], base["loaded"], base["live_streams"]) == (True, True, 1)
    other = by_name["whisper.cpp", "tiny"]
    assert (other["streams"], other["loaded"], other["live_streams"]) == (False, False, None)
