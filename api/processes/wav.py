"""Recordings as WAV files, decoded by processes of their own while they are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from loguru import logger
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.processes.child import ChildProcess
from common.domain.values import Span
from common.errors import Busy, Conflict, NotFound, Unavailable

PIECE_BYTES = 64 << 10


class WavFiles:
    """Up to ``limit`` files that are sent at the same time.

    ``timeout_s`` is how long the process may write nothing, and the client read nothing.
    """

    def __init__(self, *, limit: int = 8, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self._limit = limit
        self._open = 0

    async def open(
        self,
        recording_id: UUID,
        duration_ms: int,
        spans: Sequence[Span],
        track: int | None = None,
    ) -> WavFile:
        """Begin to write the WAV of a stored recording; see `common.audio.redact`.

        Raises:
            Busy: too many are being sent.
            Conflict: the recording cannot be decoded, or decoding it crashes or hangs.
            NotFound, Unavailable: the storage does not have it, or is unavailable.
        """
        if self._open >= self._limit:
            raise Busy(what="Sending recordings")
        self._open += 1
        file = WavFile(self)
        try:
            await file.begin(recording_id, duration_ms, spans, track)
        except BaseException:
            await file.close()
            raise
        return file

    def closed(self) -> None:
        """A file is no longer being sent."""
        self._open -= 1


class WavFile:
    """A WAV file of ``size`` bytes that is being written; read it once, and always close it."""

    def __init__(self, files: WavFiles) -> None:
        self.timeout_s = files.timeout_s
        self._files: WavFiles | None = files
        self._child: ChildProcess | None = None
        self.size = 0

    async def begin(
        self, recording_id: UUID, duration_ms: int, spans: Sequence[Span], track: int | None
    ) -> None:
        """Start the process, which reports the size.

        Raises:
            Conflict: the recording cannot be decoded, or decoding it crashes or hangs.
            NotFound, Unavailable: the storage does not have it, or is unavailable.
        """
        self._child = await ChildProcess.spawn("api.processes.wav_process", line_bytes=PIECE_BYTES)
        order = {
            "recording": str(recording_id),
            "track": track,
            "duration_ms": duration_ms,
            "spans": [(span.start_ms, span.end_ms) for span in spans],
        }
        line = b""
        try:
            async with asyncio.timeout(self.timeout_s):
                line = await self._child.ask(order)
        except TimeoutError:
            logger.warning("decoding {} hangs", recording_id)
        answer: dict[str, Any] = json.loads(line or '{"unreadable": "decoding it fails"}')
        if "missing" in answer:
            raise NotFound(what="stored recording", value=recording_id)
        if "unavailable" in answer:
            raise Unavailable(what="The storage")
        if "unreadable" in answer:
            raise Conflict(reason=f"The recording cannot be read: {answer['unreadable']}")
        self.size = answer["size"]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The file in pieces.

        Raises:
            ConnectionAbortedError: the process fails; the response must not look complete.
        """
        left = self.size
        while left and self._child is not None:
            try:
                async with asyncio.timeout(self.timeout_s):
                    piece = await self._child.read(PIECE_BYTES)
            except TimeoutError:
                piece = b""
            if not piece:
                raise ConnectionAbortedError("the process that decodes a recording stopped early")
            left -= len(piece)
            yield piece

    async def close(self) -> None:
        """End the process."""
        files, self._files = self._files, None
        if files is not None:
            files.closed()
        if self._child is not None:
            await self._child.kill()


class WavResponse(StreamingResponse):
    """Sends a file as fast as the client reads it."""

    def __init__(self, file: WavFile, disposition: str) -> None:
        headers = {"Content-Length": str(file.size), "Content-Disposition": disposition}
        super().__init__(file, headers=headers, media_type="audio/wav")
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._file.close()

    async def stream_response(self, send: Send) -> None:
        async def send_soon(message: dict[str, object]) -> None:
            async with asyncio.timeout(self._file.timeout_s):
                await send(message)

        await super().stream_response(send_soon)  # type: ignore[arg-type]
