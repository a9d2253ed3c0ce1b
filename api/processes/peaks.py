"""Finds the peaks of recordings that have none stored, in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from api.processes.child import ChildProcess, size_announced
from common.errors import Busy, Conflict, PeaksPending

PIECE_BYTES = 1 << 20


class PeakProcesses:
    """Up to ``limit`` recordings are read at once, each once for all that ask for its peaks.

    Reading one may take ``timeout_s``, and a request waits up to ``wait_s`` for it: the reading
    goes on, and a later request finds the result.
    """

    def __init__(self, *, limit: int = 2, timeout_s: float = 600.0, wait_s: float = 30.0) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._reading: dict[UUID, asyncio.Task[bytes]] = {}

    async def close(self) -> None:
        """End what is being read."""
        for task in list(self._reading.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def find(
        self, recording_id: UUID, track: int | None, store: Callable[[bytes], None]
    ) -> bytes:
        """The peaks of a stored recording (`common.audio.peaks`); ``store`` keeps them, and blocks.

        Raises:
            Busy: too many are being read.
            PeaksPending: it takes longer.
            Conflict: the recording cannot be decoded, or decoding it crashes or hangs.
            NotFound, Unavailable: the storage does not have it, or is unavailable.
        """
        reading = self._reading.get(recording_id)
        if reading is None:
            if len(self._reading) >= self._limit:
                raise Busy(what="Reading recordings")
            reading = asyncio.create_task(self._find(recording_id, track, store))
            self._reading[recording_id] = reading
            reading.add_done_callback(lambda done: self._done(recording_id, done))
        await asyncio.wait([reading], timeout=self._wait_s)
        if not reading.done():
            raise PeaksPending
        return reading.result()

    def _done(self, recording_id: UUID, reading: asyncio.Task[bytes]) -> None:
        del self._reading[recording_id]
        if not reading.cancelled():
            reading.exception()  # which nobody may be waiting for any more

    async def _find(
        self, recording_id: UUID, track: int | None, store: Callable[[bytes], None]
    ) -> bytes:
        order: dict[str, Any] = {"recording": str(recording_id), "track": track}
        child = await ChildProcess.spawn("api.processes.peaks_process", line_bytes=PIECE_BYTES)
        try:
            peaks = bytearray()
            size = await size_announced(child, order, self._timeout_s)
            while piece := await child.read(PIECE_BYTES):
                peaks += piece
        finally:
            await child.kill()
        if len(peaks) != size:
            raise Conflict(reason="The recording cannot be read: its process stopped early")
        await asyncio.to_thread(store, bytes(peaks))
        return bytes(peaks)
