"""Probes uploads in warm processes, which are replaced when a file makes them die or hang."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from loguru import logger

from api.processes.child import ChildProcess
from common.audio.probe import Probe
from common.domain.tracks import Track
from common.errors import NotAudio


class Prober:
    """Up to ``limit`` probes at the same time, each within ``timeout_s`` seconds."""

    def __init__(self, *, limit: int = 2, timeout_s: float = 20.0) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._timeout_s = timeout_s
        self._idle: list[ChildProcess] = []

    async def start(self) -> None:
        """Start a process for the first upload."""
        self._idle.append(await self._spawn())

    async def close(self) -> None:
        for child in self._idle:
            child.close_input()
        while self._idle:
            await self._idle.pop().end()

    async def probe(self, path: Path) -> Probe:
        """What `common.audio.probe.probe` finds in the file at ``path``.

        Raises:
            NotAudio: it has no audio that can be decoded, or opening it crashes or hangs.
        """
        async with self._slots:
            line, ended = b"", None
            if self._idle:
                line, ended = await self._ask(self._idle.pop(), path)
            if not line and ended != -signal.SIGALRM:
                # It may have died before: only the death of a fresh one is caused by the file.
                line, ended = await self._ask(await self._spawn(), path)
        if not line:
            logger.warning("the probe of {} ended with {}", path.name, ended)
            hung = ended == -signal.SIGALRM
            raise NotAudio(reason="it takes too long to open" if hung else "it cannot be opened")
        answer = json.loads(line)
        if "not_audio" in answer:
            raise NotAudio(reason=answer["not_audio"])
        found = answer["probe"]
        tracks = tuple(map(Track.from_json, found.pop("tracks")))
        return Probe(**found, tracks=tracks)

    async def _ask(self, child: ChildProcess, path: Path) -> tuple[bytes, int | None]:
        """The line that ``child`` answers; empty, with its exit code, where it dies."""
        line = b""
        try:
            line = await child.ask(str(path))
        finally:
            if line:
                self._idle.append(child)
            else:
                await child.end()
        return line, child.exit_code

    async def _spawn(self) -> ChildProcess:
        return await ChildProcess.spawn("api.processes.probe_process", str(self._timeout_s))
