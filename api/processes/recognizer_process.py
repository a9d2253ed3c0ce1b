"""Recognizes speech of live streams in a process of its own.

``python -m api.processes.recognizer_process GATEWAY ORDER``

Its first line says whether the weights could be loaded. Then it reads messages and answers them, a
JSON object a line each, and ends with its input. One thread reads, and reports at once where there
is speech; the other one recognizes, several streams together where the engine can.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from api.processes.inside import load, log_where, pipe_to_gateway, write_line
from common.asr.loading import load_recognizer, style_of
from common.asr.streaming import PrecedingAudio, RecognitionRequest
from common.audio.silero import CONTEXT, FRAME, SILENCE, SileroNetwork
from common.domain.transcript import segments_to_json
from common.domain.values import BYTES_PER_MS
from common.errors import EngineFailed
from common.process.logs import set_up_logging
from common.settings import LogSettings

if TYPE_CHECKING:
    from common.asr.streaming import Recognizer

TOGETHER = 8
"""Utterances in a batch, at most."""
FULL_SCALE = 32_768


class StreamAudio:
    """The buffered audio of one stream, with voice activity detection."""

    def __init__(self, network: SileroNetwork) -> None:
        self._network = network
        self._state = SILENCE
        self._context = np.zeros(CONTEXT, np.int16)
        self._pcm = bytearray()
        self._from = 0

    def add(self, start_ms: int, pcm: bytes) -> list[float]:
        """Add whole frames; returns the probability of speech in each."""
        start = start_ms * BYTES_PER_MS
        if start != self._from + len(self._pcm):  # there is a gap: drop what was before
            self._pcm, self._from = bytearray(), start
        self._pcm += pcm
        samples = np.concatenate([self._context, np.frombuffer(pcm, "<i2")])
        if len(samples) < CONTEXT + FRAME:
            return []
        probabilities, self._state = self._network.speech_probabilities(samples, self._state)
        self._context = samples[-CONTEXT:]
        return [round(float(each), 3) for each in probabilities]

    def forget(self, before_ms: int) -> None:
        before = before_ms * BYTES_PER_MS
        if before > self._from:
            del self._pcm[: before - self._from]
            self._from = before

    def piece(self, start_ms: int, end_ms: int) -> NDArray[np.float32]:
        """The samples of a span, in [-1, 1]."""
        start, end = (max(0, ms * BYTES_PER_MS - self._from) for ms in (start_ms, end_ms))
        samples = np.frombuffer(bytes(self._pcm[start:end]), "<i2").astype(np.float32)
        samples /= FULL_SCALE
        return samples


class RequestQueue:
    """Requests that are not answered yet, shared by the two threads."""

    def __init__(self, network: SileroNetwork, answers: BinaryIO) -> None:
        self._network = network
        self._answers = answers
        self._lock = threading.Condition()
        self._writing = threading.Lock()
        self._audio: dict[str, StreamAudio] = {}
        self._asked: list[dict[str, Any]] = []
        self._detached: list[str] = []
        self._ended = False

    def answer(self, document: dict[str, Any]) -> None:
        with self._writing:
            write_line(self._answers, document)

    def read(self) -> None:
        """Take the gateway's messages until its pipe closes."""
        try:
            for line in sys.stdin:
                self._take(json.loads(line))
        except Exception:
            logger.exception("the gateway's messages cannot be read")
        with self._lock:
            self._ended = True
            self._lock.notify()

    def _take(self, message: dict[str, Any]) -> None:
        stream: str = message["stream"]
        match message["do"]:
            case "feed":
                started, start_ms = time.monotonic(), message["start_ms"]
                with self._lock:
                    audio = self._audio.setdefault(stream, StreamAudio(self._network))
                    speech = audio.add(start_ms, b64decode(message["pcm"]))
                took_ms = _ms_since(started)
                self.answer(
                    {"stream": stream, "speech": speech, "start_ms": start_ms, "took_ms": took_ms}
                )
            case "forget":
                with self._lock:
                    self._audio[stream].forget(message["before_ms"])
            case "recognize":
                with self._lock:
                    self._asked.append(message)
                    self._lock.notify()
            case "detach":
                with self._lock:
                    self._audio.pop(stream, None)
                    self._asked = [each for each in self._asked if each["stream"] != stream]
                    self._detached.append(stream)
                    self._lock.notify()

    def next(self) -> tuple[list[dict[str, Any]], list[RecognitionRequest], list[str]] | None:
        """The next batch to recognize, and detached streams; None: the gateway's pipe is closed.

        Ends of utterances go first: people wait for them.
        """
        with self._lock:
            while not (self._asked or self._detached or self._ended):
                self._lock.wait()
            if self._ended:
                return None
            self._asked.sort(key=lambda each: (not each["final"], not each["full"]))
            chosen = self._asked[:TOGETHER]
            if any(each["alone"] for each in chosen):
                chosen = chosen[:1] if chosen[0]["alone"] else [e for e in chosen if not e["alone"]]
            self._asked = [each for each in self._asked if each not in chosen]
            detached, self._detached = self._detached, []
            return chosen, [self._utterance(each) for each in chosen], detached

    def _utterance(self, asked: dict[str, Any]) -> RecognitionRequest:
        audio, context = self._audio[asked["stream"]], asked["context"]
        start_ms, end_ms = asked["span"]["start_ms"], asked["span"]["end_ms"]
        before = context and PrecedingAudio(
            audio.piece(context["start_ms"], start_ms), context["text"]
        )
        return RecognitionRequest(
            stream=asked["stream"],
            utterance=asked["utterance"],
            samples=audio.piece(start_ms, end_ms),
            language=asked["language"],
            before=before,
            full=asked["full"],
            final=asked["final"],
        )


def main(parent: str, order: str) -> None:
    """Load the weights and answer until the input ends."""
    answers = pipe_to_gateway(parent)
    set_up_logging(LogSettings(), "recognizer")
    wanted = json.loads(order)

    def load_both() -> tuple[Recognizer, RequestQueue]:
        recognizer = load_recognizer(
            wanted["engine"],
            Path(wanted["path"]),
            threads=wanted["threads"],
            device=wanted["device"],
            compute_type=wanted["compute_type"],
        )
        return recognizer, RequestQueue(SileroNetwork(), answers)

    recognizer, requests = load(answers, "the recognizer", load_both)
    requests.answer({"style": asdict(style_of(wanted["engine"]))})
    threading.Thread(target=requests.read, name="reader", daemon=True).start()
    serve(requests, recognizer)


def serve(requests: RequestQueue, recognizer: Recognizer) -> None:
    """Answer requests until the gateway's pipe closes."""
    while (work := requests.next()) is not None:
        asked, wanted, detached = work
        for stream in detached:
            recognizer.forget(stream)
        if asked:
            _recognize(requests, recognizer, asked, wanted)


def _recognize(
    requests: RequestQueue,
    recognizer: Recognizer,
    asked: Sequence[dict[str, Any]],
    wanted: Sequence[RecognitionRequest],
) -> None:
    started = time.monotonic()
    try:
        hypotheses = recognizer.recognize(wanted)
    except Exception as error:
        reason = "an unexpected error; the log says where"
        if isinstance(error, EngineFailed):
            reason = error.message
        else:
            log_where("recognition failed", error)
        for each in asked:
            requests.answer({"stream": each["stream"], "ticket": each["ticket"], "failed": reason})
        return
    took_ms = _ms_since(started) / len(asked)
    for each, hypothesis in zip(asked, hypotheses, strict=True):
        requests.answer(
            {
                "stream": each["stream"],
                "ticket": each["ticket"],
                "segments": segments_to_json(hypothesis.segments),
                "doubtful": hypothesis.doubtful,
                "took_ms": took_ms,
            }
        )


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
