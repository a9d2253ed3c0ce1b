"""What the gateway promises to those who speak: over a real WebSocket, by real weights."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
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
from tests.support.speech import pcm16, silence, speak

FOX = "The quick brown fox jumps over the lazy dog."
RICE = "Rice is often served in round bowls."
FOUL = "Shut the fuck up."
MODULE = "api.processes.recognizer_process"
PATIENCE_S = 90
PIECE = 3_200
"""100 ms."""

Document = dict[str, Any]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {
        "STREAM_PRELOAD": "true",
        "STREAM_MAX_WHISPER": "3",
        "STREAM_IDLE": "4",
        "DEFAULT_LANGUAGE": "en",
    }


@pytest.fixture
def alone(tmp_path: Path, database_url: str, redis_url: str) -> Callable[..., GatewayProcess]:
    """A gateway of this test's own, with settings."""
    return lambda **settings: GatewayProcess(
        tmp_path, database_url, redis_url, DEFAULT_LANGUAGE="en", **settings
    )


def sound(*texts: str, pause_s: float = 1.2) -> bytes:
    """Sentences, and silence after each."""
    return pcm16(
        np.concatenate([part for text in texts for part in (speak(text), silence(pause_s))])
    )


class Talk:
    """A client; all that it was told is in ``told``."""

    def __init__(
        self, gateway: GatewayProcess, *, query: Document | None = None, **how: Any
    ) -> None:
        self.url = f"ws://127.0.0.1:{gateway.port}/ws/transcribe?{urlencode(query or {})}"
        self.told: list[Document] = []
        self.code: int | None = None
        self._connection = ExitStack()
        self._how = how

    def __enter__(self) -> Self:
        connecting = connect(self.url, proxy=None, compression=None, close_timeout=5, **self._how)
        self.socket: ClientConnection = self._connection.enter_context(connecting)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def speak(self, pcm: bytes) -> None:
        for start in range(0, len(pcm), PIECE):
            self.socket.send(pcm[start : start + PIECE])

    def hear(self, wanted: Callable[[Document], bool]) -> Document:
        """The first message that is ``wanted``."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            text = self.socket.recv(timeout=max(0.1, deadline - time.monotonic()))
            self.told.append(json.loads(text))
            if wanted(self.told[-1]):
                return self.told[-1]

    def hear_all(self) -> list[Document]:
        """Until the gateway closes."""
        try:
            self.hear(lambda _: False)
        except ConnectionClosed as closed:
            self.code = None if closed.rcvd is None else closed.rcvd.code
        return self.told

    def finish(self) -> list[Document]:
        self.say(type="CloseStream")
        return self.hear_all()

    def of(self, kind: str) -> list[Document]:
        return [each for each in self.told if each["type"] == kind]

    @property
    def text(self) -> str:
        return " ".join(each["text"] for each in self.of("final"))


def final(message: Document) -> bool:
    return bool(message["is_final"])


def status(name: str) -> Callable[[Document], bool]:
    return lambda message: message.get("status") == name


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def is_about(text: str, said: str) -> bool:
    """Whether most of what was said is in it: the voice is a robot's."""
    wanted = words(said)
    return len(wanted & words(text)) >= 0.6 * len(wanted)


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def recognizers(gateway: GatewayProcess) -> list[psutil.Process]:
    """The processes that hear by Whisper; another engine may have some beside them."""
    assert gateway.process is not None
    return children(MODULE, gateway.process.pid, argument="faster-whisper")


def recognizer(gateway: GatewayProcess) -> psutil.Process:
    """The only one of them."""
    (found,) = recognizers(gateway)
    return found


def heard_now(gateway: GatewayProcess) -> int:
    """How many streams the gateway's recognizers hear."""
    models = gateway.http.get("/api/v1/models").json()["models"]
    return sum(each["live_streams"] or 0 for each in models)


def test_words_come_while_people_speak_and_are_judged_and_kept(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(model_id="base", language="en", recording_id="call 7", metadata={"a": [1]})
        talk.hear(status("ready"))
        pcm = sound(FOX, FOUL)
        for start in range(0, len(pcm), PIECE):
            talk.socket.send(pcm[start : start + PIECE])
            time.sleep(0.08)
        talk.finish()
    assert talk.code == 1000
    session = talk.of("status")[0]["session_id"]
    finals, partials = talk.of("final"), talk.of("partial")
    assert is_about(talk.text, f"{FOX} {FOUL}")
    assert partials
    assert partials[0]["seq"] < finals[0]["seq"]
    assert [each["seq"] for each in talk.told] == sorted({each["seq"] for each in talk.told})
    for each in talk.told:
        assert {"type", "seq", "start", "end", "text", "is_final"} <= each.keys()
        assert each["is_final"] is (each["type"] == "final")
    for each in finals:
        assert each["start"] <= each["words"][0]["start"] <= each["words"][-1]["end"]
        assert (each["engine"], each["model_id"], each["language"]) == (
            "faster-whisper",
            "base",
            "en",
        )
        assert each["latency_ms"] >= 0
    judged = talk.of("detections")
    assert [each["final_seq"] for each in judged] == [each["seq"] for each in finals]
    labels = [result["label"] for each in judged for result in each["results"]]
    assert labels[0] == "CLEAN"
    assert "OFFENSIVE" in labels
    kept = gateway.http.get(f"/api/v1/streams/{session}").json()
    assert kept["text"] == talk.text
    assert kept["recording_id"] == "call 7"
    assert kept["metadata"] == {"a": [1]}
    assert kept["outcome"] == "completed"
    (entry,) = (
        each
        for each in gateway.http.get("/api/v1/history").json()["history"]
        if each["session_id"] == session
    )
    assert entry["model_id"] == "base"
    assert talk.text.startswith(entry["content"][:20])


def test_a_first_sound_without_a_word_before_it_is_heard_as_the_settings_say(
    gateway: GatewayProcess,
) -> None:
    with Talk(gateway) as talk:
        talk.speak(sound(RICE))
        talk.finish()
    assert talk.code == 1000
    assert is_about(talk.text, RICE)


def test_options_may_be_in_the_address_and_the_first_message_goes_before_them(
    gateway: GatewayProcess,
) -> None:
    query = {"language": "vi", "model_id": "whisper", "moderation": "false"}
    with Talk(gateway, query=query) as talk:
        talk.say(language="en")
        talk.speak(sound(RICE))
        talk.finish()
    assert talk.of("final")[0]["language"] == "en"
    assert not talk.of("detections")


def test_all_at_once_is_heard_as_bit_by_bit(gateway: GatewayProcess) -> None:
    pcm = sound(FOX, RICE)
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.socket.send(pcm[:333])  # half a sample at the end
        talk.socket.send(pcm[333:])
        talk.finish()
    assert talk.code == 1000
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_sound_that_stops_in_the_middle_is_told_without_waiting_for_more(
    gateway: GatewayProcess,
) -> None:
    spoken = pcm16(speak(FOX))
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.speak(spoken[: len(spoken) * 3 // 4])
        told = talk.hear(final)
    assert is_about(told["text"], "The quick brown fox jumps")


def test_a_client_may_end_an_utterance(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        talk.speak(pcm16(speak(RICE)))
        talk.say(type="Finalize")
        told = talk.hear(final)
        assert is_about(told["text"], RICE)
        talk.speak(sound(FOX))
        talk.finish()
    assert is_about(talk.text, FOX)


def test_a_switch_keeps_the_connection_and_what_was_said(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        talk.speak(sound(FOX))
        talk.say(language="de")
        talk.speak(sound(RICE))
        talk.finish()
    assert talk.code == 1000
    languages = [each["language"] for each in talk.of("final")]
    assert languages == sorted(languages, reverse=True)
    assert set(languages) == {"en", "de"}
    english = " ".join(each["text"] for each in talk.of("final") if each["language"] == "en")
    assert is_about(english, FOX)


def test_a_switch_leads_to_another_engine_and_back(
    gateway: GatewayProcess, streaming_weights: Path
) -> None:
    rain = "Hôm nay trời mưa rất to."
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        talk.speak(sound(FOX))
        talk.say(model_id="zipformer")
        talk.speak(pcm16(np.concatenate([speak(rain, "vi"), silence(1.2)])))
        talk.hear(lambda it: it["is_final"] and it["engine"] == "zipformer")
        talk.say(model_id="base", language="en")
        talk.speak(sound(RICE))
        talk.finish()
    assert talk.code == 1000
    heard_by = [each["engine"] for each in talk.of("final")]
    assert heard_by[0] == heard_by[-1] == "faster-whisper"
    (model,) = {it["model_id"] for it in talk.of("final") if it["engine"] == "zipformer"}
    assert streaming_weights.name.endswith(model)
    english = [it["text"] for it in talk.of("final") if it["engine"] == "faster-whisper"]
    assert is_about(" ".join(english), f"{FOX} {RICE}")
    ready = [it["engine"] for it in talk.of("status") if it["status"] == "ready"]
    assert ready == ["faster-whisper", "zipformer", "faster-whisper"]


def test_a_wrong_switch_changes_nothing_and_is_named(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.speak(sound(FOX))
        talk.say(model_id="no-such")
        talk.say(endpointing=700)
        talk.say(language="auto")
        talk.say(languag="vi")
        talk.finish()
    assert talk.code == 1000
    errors = talk.of("error")
    assert [error["fatal"] for error in errors] == [False] * 4
    fields = [error["field"] for error in errors]
    assert fields == ["model_id", "endpointing", "language", "languag"]
    assert is_about(talk.text, FOX)


def test_nonsense_is_answered_and_ends_the_stream_in_the_end(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        for text in ("{", "[]", '"x"', '{"type": "Dance"}'):
            talk.socket.send(text)
        talk.speak(sound(RICE))
        talk.hear(final)
        assert [error["code"] for error in talk.of("error")] == ["malformed"] * 4
        for _ in range(7):
            talk.socket.send("garbage")
        talk.hear_all()
    assert talk.code == 4400
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
        talk.hear_all()
    assert talk.code == code
    (error,) = talk.told
    assert error["fatal"]
    assert error.get("field") == field


def test_a_file_that_is_no_bare_pcm_is_refused_by_its_kind(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.socket.send(b"\x1aE\xdf\xa3" + bytes(1000))
        talk.hear_all()
    assert talk.code == 4415
    assert "WebM" in talk.of("error")[0]["detail"]


def test_a_message_that_is_too_large_closes_the_connection(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.socket.send(bytes(1_000_001))
        talk.hear_all()
    assert talk.code == 1009


def test_who_says_nothing_is_closed_with_all_finals_told_and_a_sign_of_life_keeps_open(
    gateway: GatewayProcess,
) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        talk.speak(sound(RICE))
        for _ in range(6):  # longer than STREAM_IDLE
            time.sleep(1)
            talk.say(type="KeepAlive")
        talk.speak(sound(FOX))
        talk.hear_all()
    assert talk.code == 4408
    assert talk.of("error")[-1]["code"] == "idle"
    assert is_about(talk.text, f"{RICE} {FOX}")


def test_the_next_stream_is_refused_and_the_others_go_on(gateway: GatewayProcess) -> None:
    with Talk(gateway) as one, Talk(gateway) as two, Talk(gateway) as three:
        for talk in (one, two, three):
            talk.say(language="en")
            talk.hear(status("ready"))
        with Talk(gateway) as four:
            four.say(language="en")
            four.hear_all()
        assert four.code == 4503
        assert four.told[0]["code"] == "streams_full"
        assert "3 live streams" in four.told[0]["detail"]
        for talk in (one, two, three):
            talk.speak(sound(RICE))
        for talk in (one, two, three):
            talk.finish()
            assert is_about(talk.text, RICE)
    wait_for(lambda: heard_now(gateway) == 0)


def test_a_client_that_vanishes_leaves_its_text_and_nothing_else(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        session = talk.hear(status("ready"))["session_id"]
        talk.speak(sound(FOX))
        talk.socket.socket.shutdown(socket.SHUT_RDWR)
    kept = wait_for(
        lambda: (it := gateway.http.get(f"/api/v1/streams/{session}").json())["completed_at"] and it
    )
    assert is_about(kept["text"], FOX)
    assert kept["outcome"] == "client_left"
    assert heard_now(gateway) == 0


def test_a_connection_that_is_lost_while_the_gateway_sends_is_no_end_by_the_client(
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
        talk.say(language="en")
        talk.hear(status("ready"))
        spoken = sound(FOX, RICE)
        talk.speak(spoken[: len(spoken) // 3])
        talk.hear(lambda it: it["type"] == "partial")
        recognizer(gateway).kill()
        talk.hear(status("recognizer_lost"))
        talk.speak(spoken[len(spoken) // 3 :])
        talk.hear(status("recognizer_back"))
        talk.finish()
    assert talk.code == 1000
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_a_recognizer_that_hangs_is_replaced(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        talk.speak(sound(FOX))
        talk.hear(final)
        recognizer(gateway).suspend()
        talk.speak(sound(RICE))
        talk.say(type="KeepAlive")

        def keep_alive(message: Document) -> bool:
            return bool(message.get("status") == "recognizer_lost")

        alive = threading.Event()

        def signs() -> None:
            while not alive.wait(1):
                talk.say(type="KeepAlive")

        thread = threading.Thread(target=signs)
        thread.start()
        try:
            talk.hear(keep_alive)
        finally:
            alive.set()
            thread.join()
        talk.finish()
    assert is_about(talk.text, f"{FOX} {RICE}")


def test_a_deleted_stream_is_closed_and_nothing_of_it_stays(alone: Any) -> None:
    with alone() as gateway, Talk(gateway) as talk:
        talk.say(language="en")
        session = talk.hear(status("ready"))["session_id"]
        talk.speak(sound(FOX))
        talk.hear(lambda it: it["type"] == "detections")
        wait_for(lambda: gateway.http.get(f"/api/v1/streams/{session}").json()["text"])
        assert gateway.http.delete(f"/api/v1/streams/{session}").status_code == 204
        talk.speak(sound(RICE))
        talk.hear_all()
        assert talk.code == 4404
        assert gateway.http.get(f"/api/v1/streams/{session}").status_code == 404


def test_a_gateway_that_is_told_to_end_tells_the_last_words(alone: Any) -> None:
    with alone(STREAM_PRELOAD="true") as gateway, Talk(gateway) as talk:
        talk.say(language="en")
        session = talk.hear(status("ready"))["session_id"]
        talk.speak(pcm16(speak(FOX)))
        talk.hear(lambda it: it["type"] == "partial")
        gateway.process.send_signal(signal.SIGTERM)
        talk.hear_all()
        assert gateway.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
        assert talk.code == 1012
        assert is_about(talk.text, FOX)
        assert session


def test_a_stream_has_an_end(alone: Any) -> None:
    with alone(STREAM_MAX_HOURS=str(3 / 3600)) as gateway, Talk(gateway) as talk:
        talk.speak(sound(FOX, RICE))
        talk.hear_all()
    assert talk.code == 4413
    assert talk.of("error")[-1]["code"] == "too_long"


def test_who_sends_far_faster_than_it_is_heard_is_told_and_closed(
    alone: Any,
) -> None:
    hour = sound(FOX, RICE, pause_s=0.6) * 60
    with alone(STREAM_PATIENCE="1") as gateway, Talk(gateway) as talk:
        sending = threading.Thread(target=_send_all, args=(talk, hour), daemon=True)
        sending.start()
        talk.hear_all()
    assert talk.code == 4429
    assert talk.of("error")[-1]["code"] == "too_fast"
    assert any(each.get("status") == "behind" for each in talk.told)


def _send_all(talk: Talk, pcm: bytes) -> None:
    try:
        talk.speak(pcm)
    except ConnectionClosed:
        return


def test_weights_that_cannot_be_loaded_are_named_and_nobody_waits_for_them(
    alone: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (broken / name).write_text("{}")
    with alone(MODELS_DIR=str(tmp_path / "models")) as gateway:
        for _ in range(2):
            with Talk(gateway) as talk:
                talk.say(model_id="broken")
                talk.hear_all()
            assert talk.code == 4503
            error = talk.of("error")[-1]
            assert error["code"] == "recognizer_unusable"
            assert str(tmp_path) not in error["detail"]


def test_a_gateway_is_ready_once_it_has_what_it_is_to_load_at_the_start(
    alone: Any, tmp_path: Path
) -> None:
    def streams(path: str) -> str:
        return str(gateway.http.get(path).json()["parts"]["streams"])

    def is_ready() -> bool:
        return bool(gateway.http.get("/readyz").is_success)

    with alone(STREAM_PRELOAD="true") as gateway:
        wait_for(is_ready)
        assert streams("/readyz") == streams("/health") == "ok"
        before = recognizer(gateway)
        before.kill()  # while it has nobody to hear
        wait_for(lambda: recognizers(gateway) not in ([], [before]) and is_ready())
    with alone(STREAM_PRELOAD="true", MODELS_DIR=str(tmp_path)) as gateway:
        wait_for(lambda: "base" in streams("/readyz"))
        assert not is_ready()
        assert gateway.http.get("/health").json()["status"] == "degraded"


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_is_needed_where_one_is_needed_and_may_be_shown_in_three_ways(alone: Any) -> None:
    with alone(GATEWAY_API_KEY="a-key-of-the-test") as gateway:
        wrong: list[dict[str, Any]] = [{}, {"additional_headers": {"X-API-Key": "wrong"}}]
        for how in wrong:
            with pytest.raises(InvalidStatus) as refused, Talk(gateway, **how):
                pass
            answer = refused.value.response
            assert answer.status_code == 401
            assert json.loads(answer.body)["code"] == "unauthorised"
        for how in (
            {"additional_headers": {"Authorization": "Bearer a-key-of-the-test"}},
            {"additional_headers": {"X-API-Key": "a-key-of-the-test"}},
            {"subprotocols": ["token", "a-key-of-the-test"]},
        ):
            with Talk(gateway, **how) as talk:
                assert talk.socket.subprotocol == ("token" if "subprotocols" in how else None)


def test_a_key_has_so_many_streams_and_its_scopes(alone: Any) -> None:
    with alone(GATEWAY_API_KEY="a-key-of-the-test") as gateway:
        gateway.http.headers["X-API-Key"] = "a-key-of-the-test"

        def make(**key: Any) -> dict[str, Any]:
            made = gateway.http.post("/api/v1/keys", json={"name": "x", **key}).json()
            return {"additional_headers": {"X-API-Key": made["key"]}}

        one = make(scopes=["transcribe"], limits={"concurrent_streams": 1})
        with Talk(gateway, **one) as talk:
            talk.say(language="en")
            talk.hear(status("ready"))
            with Talk(gateway, **one) as second:
                second.say(language="en")
                second.hear_all()
            assert second.code == 4429
            assert second.told[0]["field"] == "concurrent_streams"
            talk.finish()
        with pytest.raises(InvalidStatus) as refused, Talk(gateway, **make(scopes=["read"])):
            pass
        assert refused.value.response.status_code == 403


def test_no_page_of_elsewhere_may_listen_on_an_open_gateway(gateway: GatewayProcess) -> None:
    with pytest.raises(InvalidStatus) as refused, Talk(gateway, origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403


def test_no_word_and_no_query_is_in_the_log(gateway: GatewayProcess) -> None:
    with Talk(gateway, query={"recording_id": "my-secret-name"}) as talk:
        talk.speak(sound(FOX))
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


def test_an_answer_begins_before_the_request_has_ended(gateway: GatewayProcess) -> None:
    with posting(gateway) as (line, answer):
        send_chunk(line, sound(FOX))
        told: list[Document] = []
        while not (told and told[-1]["is_final"]):
            text = answer.readline()
            if text.startswith(b"{"):
                told.append(json.loads(text))
        assert is_about(told[-1]["text"], FOX)
        send_chunk(line, sound(RICE))
        send_chunk(line, b"")
        rest = answer.read()
    told += [json.loads(text) for text in rest.splitlines() if text.startswith(b"{")]
    assert {each["type"] for each in told} >= {"status", "partial", "final", "detections"}
    assert is_about(" ".join(it["text"] for it in told if it["is_final"]), f"{FOX} {RICE}")
    assert told[-1]["status"] == "closed"


def test_what_an_answer_told_is_kept_by_its_end(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/asr/stream?language=en", content=pcm16(speak(FOX)))
    told = [json.loads(text) for text in answer.text.splitlines()]
    kept = gateway.http.get(f"/api/v1/streams/{told[0]['session_id']}").json()
    assert kept["outcome"] == "completed"
    assert [each["text"] for each in kept["finals"]] == [
        it["text"] for it in told if it["is_final"]
    ]
    assert kept["moderation"]["model"]
    history = gateway.http.get("/api/v1/history").json()["history"]
    assert history[0]["session_id"] == kept["session_id"]


def test_who_accepts_events_gets_events(gateway: GatewayProcess) -> None:
    answer = gateway.http.post(
        "/asr/stream?language=en&moderation=false",
        content=sound(RICE),
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
def test_a_wrong_option_of_a_request_is_named(
    gateway: GatewayProcess, query: str, field: str
) -> None:
    answer = gateway.http.post(f"/asr/stream?{query}", content=sound(RICE))
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert answer.json()["field"] == field


def test_a_request_that_stops_is_ended_with_what_was_said(gateway: GatewayProcess) -> None:
    with posting(gateway) as (line, answer):
        send_chunk(line, sound(FOX))
        told = [json.loads(text) for text in answer.read().splitlines() if text.startswith(b"{")]
    assert is_about(" ".join(it["text"] for it in told if it["is_final"]), FOX)
    assert [it["code"] for it in told if it["type"] == "error"] == ["idle"]


def test_who_waits_to_be_heard_is_not_idle(alone: Callable[..., GatewayProcess]) -> None:
    # Loading takes longer.
    with alone(STREAM_IDLE="0.3") as gateway, posting(gateway) as (_, answer):
        told = [json.loads(text) for text in answer.read().splitlines() if text.startswith(b"{")]
    states = [it["code"] if it["type"] == "error" else it["status"] for it in told]
    assert states == ["loading", "ready", "closing", "idle", "closed"]


def test_models_tell_what_can_hear_streams_and_what_is_in_memory(gateway: GatewayProcess) -> None:
    with Talk(gateway) as talk:
        talk.say(language="en")
        talk.hear(status("ready"))
        models = gateway.http.get("/api/v1/models").json()["models"]
    by_name = {(each["engine"], each["model"]): each for each in models}
    base = by_name["faster-whisper", "base"]
    assert (base["streams"], base["loaded"], base["live_streams"]) == (True, True, 1)
    other = by_name["whisper.cpp", "tiny"]
    assert (other["streams"], other["loaded"], other["live_streams"]) == (False, False, None)
