"""The gateway's guards against hostile files and idle clients."""

from __future__ import annotations

import asyncio
import os
import wave
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from api.http.bodies import Body
from api.processes.child import ChildProcess
from api.processes.prober import Prober
from api.processes.wav import WavFiles, WavResponse
from common.errors import Conflict, NotAudio, NotFound, Stalled
from common.settings import StorageSettings
from common.storage.opening import open_storage
from tests.support.gateway import children

PROBE = "api.processes.probe_process"


def wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    return path


def test_a_file_that_holds_the_probe_is_refused_and_the_next_is_served(tmp_path: Path) -> None:
    recording = wav(tmp_path / "a.wav")

    async def run() -> None:
        prober = Prober(limit=1, timeout_s=0.000_001)  # any file takes longer
        with pytest.raises(NotAudio, match="too long"):
            await prober.probe(recording)
        prober._timeout_s = 20
        assert (await prober.probe(recording)).duration_ms == 1_000
        await prober.close()

    asyncio.run(run())
    assert children(PROBE) == []


def test_a_file_that_kills_the_probe_is_refused_and_the_next_is_served(tmp_path: Path) -> None:
    recording = wav(tmp_path / "a.wav")

    async def run() -> None:
        prober = Prober(limit=1)
        probing = asyncio.create_task(prober.probe(recording))
        while not children(PROBE):
            await asyncio.sleep(0)
        children(PROBE)[0].kill()
        with pytest.raises(NotAudio, match="cannot be opened"):
            await probing
        assert (await prober.probe(recording)).container == "wav"
        await prober.close()

    asyncio.run(run())
    assert children(PROBE) == []


def test_a_probe_that_died_while_idle_is_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        prober = Prober()
        await prober.start()
        victim = psutil.Process(prober._idle[0].pid)
        victim.kill()
        while children(PROBE):
            await asyncio.sleep(0.01)
        assert (await prober.probe(wav(tmp_path / "a.wav"))).container == "wav"
        await prober.close()

    asyncio.run(run())


def test_a_cancelled_probe_leaves_no_process_that_answers_the_next_question(
    tmp_path: Path,
) -> None:
    recording = wav(tmp_path / "a.wav")

    async def run() -> None:
        prober = Prober(limit=1)
        await prober.start()
        victim = psutil.Process(prober._idle[0].pid)
        victim.suspend()
        probing = asyncio.create_task(prober.probe(recording))
        await asyncio.sleep(0)
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing
        assert children(PROBE) == []
        assert (await prober.probe(recording)).container == "wav"
        await prober.close()

    asyncio.run(run())


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the storage of the child processes keeps recordings, under their ids."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    open_storage(StorageSettings())
    return tmp_path / "uploads" / "recordings"


def test_a_recording_that_holds_the_decoder_is_given_up_and_the_next_is_sent(
    recordings: Path,
) -> None:
    endless, whole = uuid4(), uuid4()
    os.mkfifo(recordings / str(endless))  # opening it waits for somebody who writes
    wav(recordings / str(whole))

    async def run() -> None:
        files = WavFiles(limit=1, timeout_s=0.5)
        with pytest.raises(Conflict, match="cannot be read"):
            await AsyncExitStack().enter_async_context(files.open(endless, 1_000, []))
        assert children("api.processes.wav_process") == []
        files.timeout_s = 60
        async with files.open(whole, 1_000, []) as file:
            assert sum([len(piece) async for piece in file]) == file.size == 32_044

    asyncio.run(run())
    assert children("api.processes.wav_process") == []


def test_a_recording_that_is_not_there_is_not_found(recordings: Path) -> None:
    async def run() -> None:
        with pytest.raises(NotFound):
            await AsyncExitStack().enter_async_context(WavFiles().open(uuid4(), 1_000, []))

    asyncio.run(run())
    assert list(recordings.iterdir()) == []


def test_a_client_that_takes_nothing_more_is_not_waited_for_for_ever(recordings: Path) -> None:
    recording = uuid4()
    wav(recordings / str(recording))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def run() -> None:
        source = AsyncExitStack()
        file = await source.enter_async_context(WavFiles().open(recording, 1_000, []))
        file.timeout_s = 0.05
        with pytest.raises(TimeoutError):
            await WavResponse(file, source, "attachment")({"type": "http"}, receive, send)
        assert children("api.processes.wav_process") == []

    asyncio.run(run())


def test_a_client_that_sends_nothing_more_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.http.bodies.TIMEOUT_S", 0.05)

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        body = Body(Request({"type": "http"}, silent))
        with pytest.raises(Stalled):
            await anext(aiter(body))
        assert not body.ended

    asyncio.run(run())


def test_a_client_that_left_is_noticed() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def run() -> None:
        with pytest.raises(ClientDisconnect):
            await anext(aiter(Body(Request({"type": "http"}, gone))))

    asyncio.run(run())


def test_a_child_imports_what_its_gateway_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("import api.processes.inside; print('from beside')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def run() -> bytes:
        child = await ChildProcess.spawn("beside")
        line = await child.receive()
        await child.end()
        return line

    assert asyncio.run(run()) == b"from beside\n"
