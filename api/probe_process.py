"""Probes files in a process of its own: ``python -m api.probe_process PATIENCE_S``.

Reads one path a line, answers one JSON object a line, and ends with its input, so that it never
outlives the gateway. What a hostile file can do to FFmpeg, it does here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from common.audio.probe import probe
from common.errors import NotAudio

MAX_MEMORY = 4 << 30
"""Of address space, in bytes; most of what is mapped is libraries."""


def main(patience_s: str) -> None:
    """Answer until there is no more to read; be killed by a probe that takes too long."""
    # Libraries may write to standard output, and it carries the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        # SIGALRM is left to the kernel: a handler of Python's would wait for native code to return.
        signal.setitimer(signal.ITIMER_REAL, float(patience_s))
        reply = answer(Path(json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(reply) + "\n")


def answer(path: Path) -> dict[str, object]:
    """What `api.prober.Prober` makes a probe, or an error, of."""
    try:
        return {"probe": asdict(probe(path))}
    except NotAudio as error:
        return {"not_audio": error.details["reason"]}
    except MemoryError:
        return {"not_audio": "it takes too much memory to open"}


if __name__ == "__main__":
    main(*sys.argv[1:])
