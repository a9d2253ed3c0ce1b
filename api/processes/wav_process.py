"""Writes one WAV file in a process of its own: ``python -m api.processes.wav_process GATEWAY``.

Reads one line, which describes the file; answers one JSON object with its size, and then the file
itself. A hostile recording can only harm this process.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from uuid import UUID

from api.processes.inside import confine, pipe_to_gateway, readable, write_all, write_line
from common.audio.redact import RedactedWav
from common.domain.values import Span
from common.settings import Settings
from common.storage.opening import open_storage


def main(parent: str) -> None:
    """Write the file, as fast as it is read."""
    pipe = pipe_to_gateway(parent)
    confine()
    order = json.loads(sys.stdin.readline())
    spans = [Span(start_ms, end_ms) for start_ms, end_ms in order["spans"]]

    def begin() -> RedactedWav:
        recording = open_storage(Settings().storage).open_recording(UUID(order["recording"]))
        return RedactedWav(recording, order["duration_ms"], spans, order["track"])

    wav = readable(pipe, begin)
    if wav is not None:
        with suppress(BrokenPipeError):  # the client has disconnected
            write_line(pipe, {"size": wav.size})
            for piece in wav:
                write_all(pipe, piece)


if __name__ == "__main__":
    main(*sys.argv[1:])
