"""Recordings as WAV files, decoded by processes of their own while they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.processes.child import ChildProcess, size_announced
from common.domain.values import Span
from common.errors import Busy

PIECE_BYTES = 64 << 10


class WavFiles:
    """Up to ``limit`` files that are sent at the same time.

    ``timeout_s`` is how long the process may write nothing, and the client read nothing.
    """

    def __init__(self, *, limit: int = 8, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self._limit = limit
        self._open = 0

    @asynccontextmanager
    async def open(
        self, recording_id: UUID, duration_ms: int, spans: Sequence[Span], track: int | None = None
    ) -> AsyncIterator[WavFile]:
        """The WAV of a stored recording, which a process writes; see `common.audio.redact`.

        Raises:
            Busy: too many are being sent.
            Conflict: the recording cannot be decoded, or decoding it crashes or hangs.
            NotFound, Unavailable: the storage does not have it, or is unavailable.
        """
        if self._open >= self._limit:
            raise Busy(what="Sending recordings")
        order = {
            "recording": str(recording_id),
            "track": track,
            "duration_ms": duration_ms,
            "spans": [(span.start_ms, span.end_ms) for span in spans],
        }
        self._open += 1
        try:
            child = await ChildProcess.spawn("api.processes.wav_process", line_bytes=PIECE_BYTES)
            try:
                size = await size_announced(child, order, self.timeout_s)
                yield WavFile(child, size, self.timeout_s)
            finally:
                await child.kill()
        finally:
            self._open -= 1


@dataclass(slots=True)
class WavFile:
    """A WAV file of ``size`` bytes that ``child`` writes; read it once."""

    child: ChildProcess
    size: int
    timeout_s: float

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The file in pieces.

        Raises:
            ConnectionAbortedError: the process fails; the response must not look complete.
        """
        left = self.size
        while left:
            try:
                async with asyncio.timeout(self.timeout_s):
                    piece = await self.child.read(PIECE_BYTES)
            except TimeoutError:
                piece = b""
            if not piece:
                raise ConnectionAbortedError("the process that decodes a recording stopped early")
            left -= len(piece)
            yield piece


class WavResponse(StreamingResponse):
    """Sends a file as fast as the client reads it; then closes its source."""

    def __init__(self, file: WavFile, source: AsyncExitStack, disposition: str) -> None:
        headers = {"Content-Length": str(file.size), "Content-Disposition": disposition}
        super().__init__(file, headers=headers, media_type="audio/wav")
        self._source = source
        self._timeout_s = file.timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._source:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async def send_soon(message: dict[str, object]) -> None:
            async with asyncio.timeout(self._timeout_s):
                await send(message)

        await super().stream_response(send_soon)  # type: ignore[arg-type]
