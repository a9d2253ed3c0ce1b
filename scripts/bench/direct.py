"""Engines used directly, without this project, and planning alone, each in a process of its own.

`steno bench` runs ``python -m scripts.bench.direct REQUEST ANSWER`` (both JSON files), so that one
way's threads and memory do not affect another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import psutil

from common.errors import SetupProblem
from common.settings import ROOT, import_from_checkout
from scripts.stack.processes import spawn, terminate


class Way(StrEnum):
    """How a program may use an engine."""

    SEQUENTIAL = "faster-whisper, sequential"
    BATCHED = "faster-whisper, batched"
    WHISPER_CPP = "whisper.cpp (pywhispercpp)"


WARM_UP_S = 30
"""How much of the first file is transcribed before the clock starts."""

SAMPLE_RATE = 16_000

PACKET_S = 0.1
"""How much shorter a looped recording may be: no packet starts at its very end."""


@dataclass(frozen=True, slots=True)
class DirectEngine:
    """One way to run weights: a CTranslate2 folder, or a ggml file for whisper.cpp."""

    way: Way
    weights: Path
    threads: int
    device: str = "cpu"
    compute_type: str = "int8"


@dataclass(frozen=True, slots=True)
class DirectText:
    """The result of one file: wall time from file to text, and segments as (start s, text)."""

    seconds: float
    segments: list[tuple[float, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(text.strip() for _, text in self.segments)


@dataclass(frozen=True, slots=True)
class Planned:
    """The cost of planning a recording; ``peak_mb`` is the process's peak resident size."""

    seconds: float
    peak_mb: float
    chunks: int
    duration_s: float


# --- the caller's side ------------------------------------------------------------------------


def transcribe(
    engine: DirectEngine,
    files: Sequence[Path],
    language: str,
    folder: Path,
    *,
    warm_up: bool = True,
) -> list[DirectText]:
    """Transcribe the files one after the other with the engine's own defaults.

    Loading the weights is not counted, decoding a file is. ``folder`` takes scratch files.

    Raises:
        SetupProblem: the process failed; its log is named.
    """
    answer = _call(
        {
            "do": "transcribe",
            "engine": {**asdict(engine), "weights": str(engine.weights)},
            "files": [str(file) for file in files],
            "language": language,
            "warm_up": warm_up,
        },
        folder,
    )
    return [
        DirectText(one["seconds"], [(start, text) for start, text in one["segments"]])
        for one in answer
    ]


def plan(recording: Path, folder: Path) -> Planned:
    """Decode a recording and cut it into chunks on disk, as a worker's plan step does."""
    return Planned(**_call({"do": "plan", "file": str(recording), "folder": str(folder)}, folder))


def _call(request: dict[str, Any], folder: Path) -> Any:
    question, answer = folder / "request.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    question.write_text(json.dumps(request))
    log_file = folder / "direct.log"
    with log_file.open("ab") as log:
        process = spawn(
            [sys.executable, "-m", "scripts.bench.direct", question, answer],
            log=log,
            env={**os.environ, **import_from_checkout()},
            cwd=ROOT,
        )
        try:
            code = process.wait()
        except BaseException:
            terminate(process, (), 0)
            raise
    if code != 0 or not answer.exists():
        raise SetupProblem(
            problem=f"{request['do']} ended with code {code}: {_last_line(log_file)}",
            remedy=f"Its log was {log_file}",
        )
    return json.loads(answer.read_text())


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def loop(recording: Path, seconds: float, target: Path) -> Path:
    """Repeat the recording's packets, without re-encoding, until it lasts ``seconds``."""
    with av.open(str(target), "w", format="matroska") as written:
        out = None
        shift_s = 0.0
        while shift_s + PACKET_S < seconds:
            with av.open(str(recording)) as source:
                stream = source.streams.audio[0]
                out = out or written.add_stream_from_template(stream)
                base = stream.time_base or Fraction(1, SAMPLE_RATE)
                shift, end = round(shift_s / base), 0
                for packet in source.demux(stream):
                    if packet.pts is None or packet.size == 0:
                        continue
                    if (packet.pts + shift) * base >= seconds:
                        break
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += shift
                    packet.dts = packet.pts
                    packet.stream = out
                    written.mux(packet)  # which changes its clock to the container's
                if end == 0:
                    raise SetupProblem(
                        problem=f"{recording} has no timestamps", remedy="Convert it"
                    )
                shift_s += float(end * base)
    return target


# --- in the process ---------------------------------------------------------------------------

Transcriber = Callable[[Any], list[tuple[float, str]]]
"""From a path or samples to segments."""


def _transcriber(engine: DirectEngine, language: str) -> Transcriber:
    if engine.way is Way.WHISPER_CPP:
        from pywhispercpp.model import Model

        ggml = Model(
            str(engine.weights), n_threads=engine.threads, redirect_whispercpp_logs_to=None
        )
        # its times are in 10 ms
        return lambda audio: [
            (segment.t0 / 100, segment.text)
            for segment in ggml.transcribe(_samples(audio), language=language)
        ]
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(
        str(engine.weights),
        device=engine.device,
        compute_type=engine.compute_type,
        cpu_threads=engine.threads,
        local_files_only=True,
    )
    batched = BatchedInferencePipeline(model) if engine.way is Way.BATCHED else None

    def recognize(audio: Any) -> list[tuple[float, str]]:
        segments, _ = (batched or model).transcribe(audio, language=language)
        return [(segment.start, segment.text) for segment in segments]

    return recognize


def _samples(audio: Any) -> Any:
    from faster_whisper import decode_audio

    return decode_audio(audio) if isinstance(audio, str) else audio


def _transcribe(request: dict[str, Any]) -> list[dict[str, Any]]:
    given = request["engine"]
    recognize = _transcriber(
        DirectEngine(**{**given, "way": Way(given["way"]), "weights": Path(given["weights"])}),
        request["language"],
    )
    if request["warm_up"]:
        recognize(_samples(request["files"][0])[: WARM_UP_S * SAMPLE_RATE])
    answers = []
    for file in request["files"]:
        started = time.monotonic()
        segments = recognize(file)
        answers.append({"seconds": time.monotonic() - started, "segments": segments})
    return answers


def _plan(request: dict[str, Any]) -> dict[str, Any]:
    import uuid

    from common.audio.decode import MonoDecoder
    from common.audio.planning import Planner, PlanOptions
    from common.audio.silero import SileroNetwork
    from common.storage.local import LocalStorage

    started = time.monotonic()
    folder = Path(request["folder"])
    storage = LocalStorage(folder / "planned", folder / "planned" / "incoming", folder / "results")
    storage.prepare()
    job_id = uuid.uuid4()
    storage.begin("chunks", job_id)
    planner = Planner(PlanOptions(), SileroNetwork())
    chunks = 0
    for block in MonoDecoder(Path(request["file"])):
        for chunk in planner.feed(block):
            storage.write_chunk(job_id, chunk.chunk.index, chunk.pcm)
            chunks += 1
    for chunk in planner.finish():
        storage.write_chunk(job_id, chunk.chunk.index, chunk.pcm)
        chunks += 1
    storage.drop_chunks(job_id)
    return asdict(
        Planned(
            seconds=time.monotonic() - started,
            peak_mb=peak_mb(os.getpid()),
            chunks=chunks,
            duration_s=planner.duration_ms / 1000,
        )
    )


# --- memory -----------------------------------------------------------------------------------


def peak_mb(pid: int) -> float:
    """A process's largest resident size so far, in MB (1,000,000 bytes), as the kernel counts it.

    Not `resource.getrusage`: that keeps, over exec, the size of the process that forked.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


class Watch:
    """Records the peak of every process of ``pids`` while entered, also of those that end.

    ``peaks_mb`` maps process to its largest resident size in MB.
    """

    def __init__(self, pids: Callable[[], Sequence[int]], every_s: float = 0.5) -> None:
        self.peaks_mb: dict[int, float] = {}
        self._pids = pids
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        # a process may end at any moment; its last peak is kept
        with contextlib.suppress(psutil.NoSuchProcess):
            for pid in self._pids():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
                    self.peaks_mb[pid] = peak_mb(pid)


def reset_peak(pid: int) -> float:
    """Have `peak_mb` count from now on, and return what it is now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mb(pid)


def main() -> None:
    """Answer one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    answer = _plan(request) if request["do"] == "plan" else _transcribe(request)
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
