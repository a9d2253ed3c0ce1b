"""Probes uploads in processes that are kept warm, and replaced when a file kills or holds them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

from loguru import logger

from common.audio.probe import Probe
from common.errors import NotAudio

ROOT = Path(__file__).resolve().parent.parent

DYING_S = 1.0


class Prober:
    """Up to ``limit`` probes at the same time, each within ``patience_s`` seconds."""

    def __init__(self, *, limit: int = 2, patience_s: float = 20.0) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._patience_s = patience_s
        self._idle: list[Process] = []

    async def start(self) -> None:
        """Have a process warm for the first upload."""
        self._idle.append(await self._spawn())

    async def close(self) -> None:
        for process in self._idle:
            if process.stdin is not None:
                process.stdin.close()
        while self._idle:
            await _end(self._idle.pop())

    async def probe(self, path: Path) -> Probe:
        """What `common.audio.probe.probe` finds in the file at ``path``.

        Raises:
            NotAudio: it holds no sound that can be decoded, or opening it crashes or hangs.
        """
        async with self._slots:
            line, ended = await self._ask_idle(path)
            if not line and ended != -signal.SIGALRM:
                # It may have been dead before: only a fresh one's death is the file's fault.
                line, ended = await self._ask(await self._spawn(), path)
        if not line:
            logger.warning("the probe of {} ended with {}", path.name, ended)
            hung = ended == -signal.SIGALRM
            raise NotAudio(reason="it takes too long to open" if hung else "it cannot be opened")
        answer = json.loads(line)
        if "not_audio" in answer:
            raise NotAudio(reason=answer["not_audio"])
        return Probe(**answer["probe"])

    async def _ask_idle(self, path: Path) -> tuple[bytes, int | None]:
        return await self._ask(self._idle.pop(), path) if self._idle else (b"", None)

    async def _ask(self, process: Process, path: Path) -> tuple[bytes, int | None]:
        """The line ``process`` answers; none, and how it ended, when it dies over the question."""
        line = b""
        try:
            line = await _exchange(process, path)
        finally:
            if line:
                self._idle.append(process)
            else:
                await _end(process)
        return line, process.returncode

    async def _spawn(self) -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "api.probe_process", str(self._patience_s)),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # a Ctrl-C is the gateway's to handle
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


async def _exchange(process: Process, path: Path) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        await process.stdin.drain()
    return await process.stdout.readline()


async def _end(process: Process) -> None:
    """See it end, by force if it does not by itself.

    A process that has closed its output is dying. Signalling one that is dead already would lose
    how it died (github.com/python/cpython/issues/87744).
    """
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), DYING_S)
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
