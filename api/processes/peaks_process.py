"""Finds a recording's peaks in a process of its own: ``python -m api.processes.peaks_process``.

Its argument is the gateway's process id. Reads one line, which names the recording; answers one
JSON object with the number of bytes, and then the peaks (`common.audio.peaks`). A hostile recording
can only harm this process.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from uuid import UUID

from api.processes.inside import confine, pipe_to_gateway, readable, write_all, write_line
from common.audio.decode import MonoDecoder
from common.audio.peaks import PeakFinder
from common.settings import Settings
from common.storage.opening import open_storage


def main(parent: str) -> None:
    """Find the peaks of one recording."""
    pipe = pipe_to_gateway(parent)
    confine()
    order = json.loads(sys.stdin.readline())

    def find() -> bytes:
        finder = PeakFinder()
        storage = open_storage(Settings().storage)
        with storage.open_recording(UUID(order["recording"])) as recording:
            for block in MonoDecoder(recording, track=order["track"]):
                finder.feed(block)
        return finder.finish()

    peaks = readable(pipe, find)
    if peaks is not None:
        with suppress(BrokenPipeError):  # the gateway is ending
            write_line(pipe, {"size": len(peaks)})
            write_all(pipe, peaks)


if __name__ == "__main__":
    main(*sys.argv[1:])
