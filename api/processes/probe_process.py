"""Probes files in a process of its own.

``python -m api.processes.probe_process GATEWAY TIMEOUT_S``

Reads one path a line, answers one JSON object a line, and ends with its input, so that it never
outlives the gateway. A hostile file can only harm this process.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from api.processes.inside import confine, pipe_to_gateway, write_line
from common.audio.probe import probe
from common.errors import NotAudio


def main(parent: str, timeout_s: str) -> None:
    """Answer until the input ends; a probe that takes too long kills the process."""
    answers = pipe_to_gateway(parent)
    confine()
    for line in sys.stdin:
        # SIGALRM is left to the kernel: a handler of Python's would wait for native code to return.
        signal.setitimer(signal.ITIMER_REAL, float(timeout_s))
        reply = answer(Path(json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_line(answers, reply)


def answer(path: Path) -> dict[str, object]:
    """What `api.processes.prober.Prober` makes a probe, or an error, of."""
    try:
        return {"probe": asdict(probe(path))}
    except NotAudio as error:
        return {"not_audio": error.details["reason"]}
    except MemoryError:
        return {"not_audio": "it takes too much memory to open"}


if __name__ == "__main__":
    main(*sys.argv[1:])
