"""The gateway's guards against hostile files and idle clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
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
from tests.support.audio_files import make_wav
from tests.support.gateway import children

pytestmark = pytest.mark.anyio

WAV = make_wav(bytes(32_000))
PROBE, DECODE = "api.processes.probe_process", "api.processes.wav_process"


async def stalled() -> Message:
    """What a client sends that sends nothing more."""
    await asyncio.Event().wait()
    raise AssertionError


# --- probes ---------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    return path


@pytest.fixture
async def prober(recording: Path) -> AsyncIterator[Prober]:
    """One for a file at a time, which is fit for the next one after the test."""
    prober = Prober(limit=1)
    yield prober
    assert (await prober.probe(recording)).duration_ms == 1_000
    await prober.close()
    assert children(PROBE) == []


async def test_a_file_that_holds_the_probe_is_refused_and_the_next_is_served(
    prober: Prober, recording: Path
) -> None:
    limit_s, prober._timeout_s = prober._timeout_s, 0.000_001  # any file takes longer
    with pytest.raises(NotAudio, match="too long"):
        await prober.probe(recording)
    prober._timeout_s = limit_s


async def test_a_file_that_kills_the_probe_is_refused_and_the_next_is_served(
    prober: Prober, recording: Path
) -> None:
    probing = asyncio.create_task(prober.probe(recording))
    while not children(PROBE):
        await asyncio.sleep(0)
    children(PROBE)[0].kill()
    with pytest.raises(NotAudio, match="cannot be opened"):
        await probing


async def test_a_probe_that_died_while_idle_is_replaced(prober: Prober) -> None:
    await prober.start()
    psutil.Process(prober._idle[0].pid).kill()
    while children(PROBE):
        await asyncio.sleep(0.01)


async def test_a_cancelled_probe_leaves_no_process_that_answers_the_next_request(
    prober: Prober, recording: Path
) -> None:
    await prober.start()
    psutil.Process(prober._idle[0].pid).suspend()
    probing = asyncio.create_task(prober.probe(recording))
    await asyncio.sleep(0)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    assert children(PROBE) == []


# --- decoded recordings ---------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the storage of the child processes keeps recordings, under their ids."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    open_storage(StorageSettings())
    return tmp_path / "uploads" / "recordings"


async def test_a_recording_that_holds_the_decoder_is_given_up_and_the_next_is_sent(
    recordings: Path,
) -> None:
    endless, whole = uuid4(), uuid4()
    os.mkfifo(recordings / str(endless))  # opening it waits for somebody who writes
    (recordings / str(whole)).write_bytes(WAV)
    files = WavFiles(limit=1, timeout_s=0.5)
    with pytest.raises(Conflict, match="cannot be read"):
        await AsyncExitStack().enter_async_context(files.open(endless, 1_000, []))
    assert children(DECODE) == []
    files.timeout_s = 60
    async with files.open(whole, 1_000, []) as file:
        assert sum([len(piece) async for piece in file]) == file.size == 32_044
    assert children(DECODE) == []


async def test_a_missing_recording_is_not_found(recordings: Path) -> None:
    with pytest.raises(NotFound):
        await AsyncExitStack().enter_async_context(WavFiles().open(uuid4(), 1_000, []))
    assert list(recordings.iterdir()) == []


async def test_a_client_that_receives_nothing_more_runs_into_a_timeout(recordings: Path) -> None:
    recording = uuid4()
    (recordings / str(recording)).write_bytes(WAV)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await stalled()

    source = AsyncExitStack()
    file = await source.enter_async_context(WavFiles(timeout_s=60).open(recording, 1_000, []))
    file.timeout_s = 0.05
    with pytest.raises(TimeoutError):
        await WavResponse(file, source, "attachment")({"type": "http"}, stalled, send)
    assert children(DECODE) == []


# --- bodies ---------------------------------------------------------------------------------------


async def test_a_client_that_sends_nothing_more_runs_into_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.http.bodies.TIMEOUT_S", 0.05)
    body = Body(Request({"type": "http"}, stalled))
    with pytest.raises(Stalled):
        await anext(aiter(body))
    assert not body.ended


async def test_a_client_that_disconnected_is_noticed() -> None:
    async def disconnected() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await anext(aiter(Body(Request({"type": "http"}, disconnected))))


async def test_a_child_imports_what_its_gateway_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside.py").write_text("import api.processes.inside; print('from beside')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = await ChildProcess.spawn("beside")
    assert await child.receive() == b"from beside\n"
    await child.end()
