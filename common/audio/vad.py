"""Where somebody speaks: Silero voice activity, fed in a stream."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from common.domain.cutting import Curve, CutOptions, Speech, cut_long
from common.domain.values import SAMPLES_PER_MS, Span

FRAME = 512
"""Samples that the network judges at once (32 ms), each with the 64 samples before it."""

FRAME_MS = FRAME // SAMPLES_PER_MS
CONTEXT = 64


class Network(Protocol):
    """A loaded network, as `onnxruntime.InferenceSession` runs it."""

    def run(self, outputs: None, feeds: dict[str, Any]) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class VadOptions:
    """When speech begins and ends; the numbers are Silero's own where it has some.

    Args:
        threshold: speech begins at a frame with at least this probability, in (0, 1).
        hysteresis: speech ends below ``threshold - hysteresis``.
        min_silence_ms: shorter silences are part of the speech around them.
        min_speech_ms: shorter speech is taken for noise.
    """

    threshold: float = 0.5
    hysteresis: float = 0.15
    min_silence_ms: int = 160
    min_speech_ms: int = 96

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {self.threshold}")


def load_network() -> Network:
    """Silero v6 as it comes with faster-whisper, on one thread (3 ms)."""
    path = Path(str(files("faster_whisper"))) / "assets" / "silero_vad_v6.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    network: Network = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return network


class VoiceActivity:
    """The probability of speech for each 32 ms of one recording."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._rest = np.zeros(0, np.int16)
        self._context = np.zeros(CONTEXT, np.float32)
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)

    def feed(self, block: NDArray[np.int16]) -> NDArray[np.float32]:
        """The probabilities of the frames that ``block`` completes, shape (frames,)."""
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:]
        return self._judge(samples[:whole])

    def finish(self) -> NDArray[np.float32]:
        """The probability of the last, incomplete frame, if there is one."""
        if not len(self._rest):
            return np.zeros(0, np.float32)
        padding = np.zeros(FRAME - len(self._rest), np.int16)
        return self.feed(padding)

    def _judge(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        if not len(samples):
            return np.zeros(0, np.float32)
        frames = samples.reshape(-1, FRAME).astype(np.float32) / np.float32(32768)
        before = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:]
        feeds = {"input": np.hstack([before, frames]), "h": self._h, "c": self._c}
        probabilities: NDArray[np.float32]
        probabilities, self._h, self._c = self._network.run(None, feeds)
        return probabilities


class VadFinder:
    """Finds speech by voice activity."""

    def __init__(self, network: Network, options: VadOptions, cut: CutOptions) -> None:
        self._activity = VoiceActivity(network)
        self._options = options
        self._cut = cut
        self._curve = Curve(FRAME_MS)
        self._samples = 0
        self._frames = 0
        self._start: int | None = None
        self._opened = True
        self._quiet_since: int | None = None

    @property
    def settled_ms(self) -> int:
        """No speech that is still to be reported starts before this."""
        return self._frames * FRAME_MS if self._start is None else self._start

    def feed(self, block: NDArray[np.int16]) -> list[Speech]:
        """Take the next samples and give the speech that is over."""
        self._samples += len(block)
        return self._follow(self._activity.feed(block).tolist())

    def finish(self) -> list[Speech]:
        """Give the speech that lasts until the recording's end."""
        found = self._follow(self._activity.finish().tolist())
        if self._start is not None:
            end = self._samples // SAMPLES_PER_MS
            found += self._close(
                self._start, end if self._quiet_since is None else self._quiet_since
            )
        return found

    def _follow(self, probabilities: list[float]) -> list[Speech]:
        found = []
        self._curve.extend(probabilities)
        release = self._options.threshold - self._options.hysteresis
        for probability in probabilities:
            now = self._frames * FRAME_MS
            self._frames += 1
            if probability >= self._options.threshold:
                self._quiet_since = None
                if self._start is None:
                    self._start = now
            elif self._start is not None and probability < release:
                if self._quiet_since is None:
                    self._quiet_since = now
                if now + FRAME_MS - self._quiet_since >= self._options.min_silence_ms:
                    found += self._close(self._start, self._quiet_since)
        if self._start is not None:
            now = min(self._frames * FRAME_MS, self._samples // SAMPLES_PER_MS)
            found += self._cut_off(self._start, self._quiet_since or now)[0]
        self._curve.forget(self.settled_ms)
        return found

    def _close(self, start: int, end: int) -> list[Speech]:
        pieces, rest = self._cut_off(start, end)
        if not rest.opened or rest.span.duration_ms >= self._options.min_speech_ms:
            pieces.append(rest)
        self._start, self._opened, self._quiet_since = None, True, None
        return pieces

    def _cut_off(self, start: int, end: int) -> tuple[list[Speech], Speech]:
        span = Span(start, end)
        pieces, rest = cut_long(self._cut, self._curve, Speech(span, opened=self._opened))
        self._start, self._opened = rest.span.start_ms, rest.opened
        return pieces, rest
