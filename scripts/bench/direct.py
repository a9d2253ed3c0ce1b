"""Engines used directly, without this project, and planning alone.

Each runs in a process of its own, so that one way's threads and memory do not affect another's.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from common.audio.decode import MonoDecoder
from common.audio.planning import PlannedChunk, Planner, PlanOptions
from common.audio.silero import SileroNetwork
from common.domain.values import SAMPLE_RATE
from common.storage.local import LocalStorage

T = TypeVar("T")
P = ParamSpec("P")


class Way(StrEnum):
    """How a program may use an engine."""

    SEQUENTIAL = "faster-whisper, sequential"
    BATCHED = "faster-whisper, batched"
    WHISPER_CPP = "whisper.cpp (pywhispercpp)"


WARM_UP_S = 30
"""How much of the first file is transcribed before the clock starts."""


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


# --- the caller's side ------------------------------------------------------------------------


def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in a new process, which is killed where the wait is interrupted."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(work, *args, **kwargs).result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def transcribe(
    engine: DirectEngine, files: Sequence[Path], language: str, *, warm_up: bool = True
) -> list[DirectText]:
    """Transcribe the files one after the other with the engine's own defaults.

    Loading the weights is not counted, decoding a file is.
    """
    return apart(_transcribe, engine, files, language, warm_up=warm_up)


def plan(recording: Path, folder: Path) -> Planned:
    """Decode a recording and cut it into chunks on disk, as a worker's plan step does."""
    return apart(_plan, recording, folder)


# --- in the process ---------------------------------------------------------------------------

Transcriber = Callable[[Any], list[tuple[float, str]]]
"""From a path or samples to segments."""


def _transcriber(engine: DirectEngine, language: str) -> Transcriber:
    if engine.way is Way.WHISPER_CPP:
        from pywhispercpp.model import Model

        ggml = Model(
            str(engine.weights),
            n_threads=engine.threads,
            redirect_whispercpp_logs_to=None,
            print_progress=False,
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


def _transcribe(
    engine: DirectEngine, files: Sequence[Path], language: str, *, warm_up: bool
) -> list[DirectText]:
    recognize = _transcriber(engine, language)
    if warm_up:
        recognize(_samples(str(files[0]))[: WARM_UP_S * SAMPLE_RATE])
    texts = []
    for file in files:
        started = time.monotonic()
        segments = recognize(str(file))
        texts.append(DirectText(time.monotonic() - started, segments))
    return texts


def _plan(recording: Path, folder: Path) -> Planned:
    started = time.monotonic()
    storage = LocalStorage(folder / "planned", folder / "planned" / "incoming", folder / "results")
    storage.prepare()
    job_id = uuid.uuid4()
    storage.begin("chunks", job_id)
    chunks = 0
    for planned in planned_chunks(recording):
        storage.write_chunk(job_id, planned.chunk.index, planned.pcm)
        chunks += 1
    storage.drop_chunks(job_id)
    return Planned(time.monotonic() - started, peak_mb(os.getpid()), chunks)


def planned_chunks(recording: Path, until_s: float = math.inf) -> Iterator[PlannedChunk]:
    """The chunks of a recording, or of its first seconds, as a worker's plan step makes them."""
    planner = Planner(PlanOptions(), SileroNetwork())
    decoding = MonoDecoder(recording)
    for block in decoding:
        yield from planner.feed(block)
        if decoding.duration_ms >= until_s * 1000:
            break
    yield from planner.finish()


# --- memory -----------------------------------------------------------------------------------


def peak_mb(pid: int) -> float:
    """A process's largest resident size so far, in MB (1,000,000 bytes), as the kernel counts it.

    Not `resource.getrusage`: that keeps, over exec, the size of the process that forked.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def peaks_mb(pids: Sequence[int]) -> dict[int, float]:
    """The `peak_mb` of each process; those that have just ended are left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            found[pid] = peak_mb(pid)
    return found


def reset_peak(pid: int) -> float:
    """Have `peak_mb` count from now on, and return what it is now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mb(pid)
