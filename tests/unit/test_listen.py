"""`steno listen` against a real WebSocket server that does what gateways rarely do."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from click.testing import CliRunner, Result

from api.streams.options import StreamOptions
from common.audio.decode import MonoDecoder
from common.errors import GatewayLost, RequestRejected
from common.settings import ROOT
from scripts.bench.corpus import write_wav
from scripts.cli import streaming
from scripts.cli.cli import steno
from scripts.cli.listen import listen
from scripts.cli.streaming import AHEAD, StreamClient, address_of, in_thread, paced
from tests.support.scripted_stream import (
    CLOSED,
    READY,
    ScriptedStream,
    error,
    final,
    partial,
    status,
)
from tests.support.service import wait_until

RAW = np.random.default_rng(7).integers(-9_000, 9_000, 8_000, np.int16)
"""Half a second of noise."""


@pytest.fixture
def server() -> Iterator[ScriptedStream]:
    with ScriptedStream() as server:
        yield server


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", [RAW])


pytestmark = pytest.mark.usefixtures("signal_handlers")


def command(server: ScriptedStream, *arguments: str | Path) -> list[str]:
    return ["listen", "--server", server.address, *map(str, arguments)]


def run(server: ScriptedStream, *arguments: str | Path) -> Result:
    return CliRunner().invoke(steno, command(server, *arguments))


def start(server: ScriptedStream, *arguments: str | Path, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts", *command(server, *arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def write(process: subprocess.Popen[bytes], pcm: bytes) -> None:
    """Write to a process that goes on reading."""
    assert process.stdin is not None
    process.stdin.write(pcm)
    process.stdin.flush()


def read_line(pipe: IO[bytes] | None) -> bytes:
    assert pipe is not None
    return pipe.readline()


# --- what is shown ----------------------------------------------------------------------------


def test_stdout_has_the_finals_and_nothing_else(server: ScriptedStream, talk: Path) -> None:
    server.at_audio = [partial("Xin ch"), partial("Xin chào các", 8), final("Xin chào\n các bạn.")]
    server.at_end = [final("Hết."), final(""), CLOSED]
    done = run(server, talk)
    assert done.exit_code == 0, done.output
    assert done.stdout == "Xin chào các bạn.\nHết.\n"
    assert done.stderr == (
        "talk.wav: 1.5 s of audio, 5 words, language vi (the default; --language takes others), "
        "session 3fa85f64-5717-4562-b3fc-2c963f66afa6\n"
    )


def test_json_is_every_message_as_it_came(server: ScriptedStream, talk: Path) -> None:
    server.at_audio = [partial("Xin chào", 3), error("that is no option", fatal=False)]
    done = run(server, talk, "--format", "json")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [message["type"] for message in messages] == [
        *("status", "status", "partial", "error", "status")
    ]
    assert messages[2]["text"] == "Xin chào"
    assert '"Xin chào"' in done.stdout
    assert done.stderr == ""


def test_what_was_flagged_is_shown_beside_the_text(server: ScriptedStream, talk: Path) -> None:
    results = [{"start": 12.0, "label": "OFFENSIVE"}]
    server.at_audio = [final("a b"), {"type": "detections", "results": results}]
    done = run(server, talk)
    assert done.stdout == "a b\n"
    assert "talk.wav: 1 segment flagged: 0:12 OFFENSIVE\n" in done.stderr


def test_an_error_that_is_not_fatal_is_a_warning(server: ScriptedStream, talk: Path) -> None:
    server.at_audio = [error("no such thing", fatal=False), final("a")]
    done = run(server, talk)
    assert (done.exit_code, done.stdout) == (0, "a\n")
    assert "talk.wav: warning: no such thing\n" in done.stderr


def test_a_terminal_shows_the_utterance_and_keeps_finals(
    server: ScriptedStream, talk: Path
) -> None:
    server.at_start = [status("loading", model_id="base"), READY]
    server.at_audio = [partial("one t"), partial("one two thr", 7), final("one two three.")]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", *command(server, talk)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # how Linux reports that nobody has the other end any more
            break
    assert process.wait() == 0
    os.close(ours)
    assert b"Loading base ..." in shown
    assert b"one two\x1b[2m thr\x1b[0m" in shown
    assert b"\x1b[2K" in shown.split(b"thr", 1)[1].split(b"one two three.")[0]
    assert shown.count(b"one two three.\r\n") == 1


# --- audio ------------------------------------------------------------------------------------


def test_a_recording_arrives_decoded_and_whole(server: ScriptedStream, talk: Path) -> None:
    run(server, talk, "--speed", "0")
    assert bytes(server.audio) == RAW.tobytes()
    assert server.received == [{}, {"type": "CloseStream"}]


def test_any_format_is_played(server: ScriptedStream, tmp_path: Path) -> None:
    import av

    path = tmp_path / "talk.ogg"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48_000)
        frame = av.AudioFrame.from_ndarray(RAW[None, :], "s16", "mono")
        frame.rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    run(server, path, "--speed", "0")
    assert bytes(server.audio) == b"".join(block.tobytes() for block in MonoDecoder(path))


def test_audio_is_sent_no_earlier_than_it_would_have_been_spoken() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(streaming.PIECE_BYTES)

    async def times(speed: float) -> list[float]:
        began = time.monotonic()
        return [time.monotonic() - began async for _ in paced(pieces(), speed)]

    came = asyncio.run(times(speed=5))
    assert all(at >= 0.1 * number / 5 for number, at in enumerate(came, 1)), came


def test_a_pipe_arrives_as_it_is(server: ScriptedStream) -> None:
    sent = RAW.tobytes() + b"\x07"
    with start(server, "-") as process:
        out, err = process.communicate(sent)
    assert process.returncode == 0, err
    assert bytes(server.audio) == sent
    assert out == b""


def test_a_pipe_is_transcribed_before_it_ends(server: ScriptedStream) -> None:
    server.at_audio = [final("Hello.")]
    with start(server, "-") as process:
        write(process, RAW.tobytes())
        assert read_line(process.stdout) == b"Hello.\n"
        process.communicate()


def test_audio_is_read_only_so_far_ahead_as_it_is_taken() -> None:
    read: list[int] = []

    def source() -> Iterator[bytes]:
        for number in count():
            read.append(number)
            yield b"ab"

    async def take() -> None:
        async with in_thread(source()) as pieces:
            for taken in range(1, 200):
                await anext(pieces)
                assert len(read) <= taken + AHEAD + 1

    asyncio.run(take())


def set_up_alsa(config: Path, microphone: str) -> None:
    """Have a microphone that is ALSA's own: it plays `RAW` to whoever records from it."""
    played = config.with_name("played.pcm")
    played.write_bytes(RAW.tobytes())
    config.write_text(
        "pcm.nothing { type null }\n"
        f"pcm.{microphone} {{ type file slave.pcm nothing file /dev/null "
        f'infile "{played}" format raw }}\n'
    )


def record(server: ScriptedStream, device: str, config: Path) -> subprocess.Popen[bytes]:
    return start(server, "--microphone", "--device", device, ALSA_CONFIG_PATH=str(config))


def test_a_microphone_is_transcribed_until_ctrl_c(server: ScriptedStream, tmp_path: Path) -> None:
    set_up_alsa(tmp_path / "asound.conf", "played")
    server.at_end = [final("That is all."), CLOSED]
    with record(server, "played", tmp_path / "asound.conf") as process:
        wait_until(lambda: len(server.audio) >= 2 * len(RAW), "audio")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert bytes(server.audio[: 2 * len(RAW)]) == RAW.tobytes()
    assert out == b"That is all.\n"
    assert err.startswith(b"Listening. Ctrl-C ends it.\n")


def test_a_microphone_is_looked_for_where_the_system_has_its_own(tmp_path: Path) -> None:
    set_up_alsa(tmp_path / "alsa.conf", "default")
    script = (
        "import pathlib, sys; from scripts.cli import streaming; "
        "streaming.ALSA = pathlib.Path(sys.argv[1]); "
        "sys.stdout.buffer.write(next(streaming.of_microphone()))"
    )
    recorded = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    assert recorded == RAW.tobytes()[: len(recorded)] != b""


def test_a_missing_microphone_is_named(server: ScriptedStream, tmp_path: Path) -> None:
    (tmp_path / "asound.conf").write_text("")
    with record(server, "nobody", tmp_path / "asound.conf") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(b"steno: The microphone nobody cannot be used: ")


# --- options ----------------------------------------------------------------------------------


def test_the_options_are_those_of_streams() -> None:
    ours = {"file", "microphone", "device", "speed", "form", "server", "key", "data_dir"}
    options = {parameter.name for parameter in listen.params} - ours
    assert options == set(StreamOptions.model_fields) - {"metadata"}


def test_only_options_that_were_given_are_sent(server: ScriptedStream, talk: Path) -> None:
    words = "-l en -m base --engine faster-whisper --no-moderation --endpointing 800"
    done = run(server, talk, *words.split(), "--recording-id", "call 17")
    assert server.path == "/ws/transcribe"
    assert server.received[0] == {
        "language": "en",
        "model_id": "base",
        "engine": "faster-whisper",
        "moderation": False,
        "endpointing": 800,
        "recording_id": "call 17",
    }
    assert "the default" not in done.stderr


def test_the_key_is_sent(server: ScriptedStream, talk: Path) -> None:
    run(server, talk, "--key", "abc ")
    assert server.headers["Authorization"] == "Bearer abc"


def test_a_gateway_with_tls_is_reached_with_tls() -> None:
    assert address_of("https://a.example/b/") == "wss://a.example/b/ws/transcribe"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.wav", "--microphone"],
        ["a.wav", "--device", "x"],
        ["--microphone", "--speed", "2"],
        ["a.wav", "--speed", "-1"],
    ],
)
def test_conflicting_options_are_rejected(server: ScriptedStream, arguments: list[str]) -> None:
    assert run(server, *arguments).exit_code == 2


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("lost.wav", None, "No such file or directory"),
        ("empty.wav", b"", "the file is empty"),
        ("letter.mp3", b"Dear reader, " * 99, "not a recording in a known format"),
    ],
)
def test_what_is_no_recording_is_named_before_anything_is_sent(
    server: ScriptedStream, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run(server, tmp_path / name)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"steno: {tmp_path / name}: ")
    assert reason in done.stderr
    assert server.received == []


GET_A_KEY = "pass one with --key or STENO_API_KEY (steno keys create makes one)"


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (401, b'{"detail": "A key is needed"}', f"A key is needed; {GET_A_KEY}"),
        (404, b"<html>", "The gateway answered 404 Not Found"),
    ],
)
def test_a_rejected_handshake_is_one_line(
    server: ScriptedStream, talk: Path, code: int, body: bytes, message: str
) -> None:
    server.reject = (code, body)
    done = run(server, talk)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"steno: {message}\n"


def test_a_rejected_stream_is_one_line(server: ScriptedStream, talk: Path) -> None:
    server.at_start = [error("language must be vi; got 'en'", fatal=True), CLOSED]
    server.close_early, server.code = True, 4422
    done = run(server, talk)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "steno: language must be vi; got 'en'\n"


def test_an_early_end_is_an_error_and_keeps_the_text(server: ScriptedStream, talk: Path) -> None:
    server.at_audio = [final("So far.")]
    server.at_end = [error("This gateway is about to end", fatal=True), CLOSED]
    server.code = 1012
    done = run(server, talk)
    assert (done.exit_code, done.stdout) == (1, "So far.\n")
    assert done.stderr == "steno: This gateway is about to end\n"


def test_a_connection_that_breaks_is_named(server: ScriptedStream, talk: Path) -> None:
    server.break_off = True
    done = run(server, talk)
    assert done.exit_code == 1
    lost = f"steno: The gateway at {server.address} cannot be reached: the connection broke\n"
    assert done.stderr == lost


def test_an_address_without_a_server_is_named(talk: Path) -> None:
    done = CliRunner().invoke(steno, ["listen", str(talk), "--server", "http://127.0.0.1:1"])
    assert done.exit_code == 1
    assert done.stderr.startswith("steno: The gateway at http://127.0.0.1:1 cannot be reached: ")
    assert len(done.stderr.splitlines()) == 1


# --- Ctrl-C -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_waits_for_last_words(server: ScriptedStream, number: signal.Signals) -> None:
    server.at_end = [final("The last words."), CLOSED]
    with start(server, "-") as process:
        write(process, RAW.tobytes())
        wait_until(lambda: server.audio, "audio")
        process.send_signal(number)
        assert process.wait(30) == 0
        assert read_line(process.stdout) == b"The last words.\n"
        assert read_line(process.stdout) == b""
    assert server.received[-1] == {"type": "CloseStream"}


def test_a_second_interrupt_ends_at_once(server: ScriptedStream) -> None:
    server.may_end.clear()
    with start(server, "-") as process:
        write(process, RAW.tobytes())
        wait_until(lambda: server.audio, "audio")
        process.send_signal(signal.SIGINT)
        assert read_line(process.stderr).startswith(b"Stopping after ")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.communicate()[1].endswith(b"steno: stopped\n")


def test_a_second_interrupt_ends_though_the_gateway_reads_nothing(server: ScriptedStream) -> None:
    server.may_read.clear()
    with start(server, "-") as process:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        full = 0
        while full < 50:  # for half a second nobody has taken any more
            try:
                written = os.write(process.stdin.fileno(), bytes(65_536))
            except BlockingIOError:
                written = 0
            full = 0 if written or not server.received else full + 1
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert read_line(process.stderr).startswith(b"Stopping after ")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


# --- the client -------------------------------------------------------------------------------


def test_silence_sends_keep_alives(server: ScriptedStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)

    async def wait() -> None:
        async with StreamClient(server.address):
            while {"type": "KeepAlive"} not in server.received:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_messages_come_with_their_times_and_the_end_with_its_reason(server: ScriptedStream) -> None:
    server.at_end = [error("too long", fatal=True), CLOSED]
    server.code = 4413

    async def talk() -> list[str]:
        async with StreamClient(server.address) as stream:
            began = time.monotonic()
            await stream.finish()
            messages = [message async for message in stream.messages()]
            assert all(began <= message.at <= time.monotonic() for message in messages)
            assert stream.ready.is_set()
            assert stream.code == 4413
            assert not await stream.send(b"ab")
            with pytest.raises(RequestRejected, match="too long") as caught:
                stream.check()
            assert caught.value.details["status"] == 413
            return [message.type for message in messages]

    assert asyncio.run(talk()) == ["status", "status", "error", "status"]


def test_a_client_may_break_the_connection(server: ScriptedStream) -> None:
    async def disconnect() -> None:
        async with StreamClient(server.address) as stream:
            stream.vanish()
            with pytest.raises(GatewayLost):
                _ = [message async for message in stream.messages()]

    asyncio.run(disconnect())
