"""Streaming networks on sherpa-onnx: audio goes in as it arrives, and text only grows.

Transducers (zipformer and its predecessors) and CTC models (zipformer2's, WeNet's) are
distinguished by their files and metadata. They know what they were trained on: one language, often
no punctuation, often no case: the text of one that has only capitals is in lower case.

A network decodes chunks of some hundred milliseconds, keeps its state between them, and takes the
best token at each frame. It never changes earlier text, so each hypothesis begins with the one
before. Streams with a complete chunk are decoded together. That changes no text with WeNet's, which
sherpa-onnx decodes one by one, nor with 32-bit weights; with 8-bit weights the streams of a batch
share the scale of their activations, which may rarely change a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sherpa_onnx import OnlineRecognizer

from common.asr.pieces import Emission, Pieces
from common.asr.segments import split
from common.asr.streaming import RecognitionRequest
from common.domain.stream import Hypothesis
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Segment, Span, Word
from common.errors import EngineFailed, WeightsMissing, WeightsUnusable
from common.weights.sherpa import Kind, Network, has_only_capitals, network_in

TAIL_MS = 800
"""Silence after an utterance: the last words are emitted only when more audio follows."""
LATE_MS = 400
"""How long after the end of a chunk its last piece may be emitted."""
FRAME_MS = 10
EMISSION = Emission(lead_ms=250, last_ms=70)
"""Measured with a Conformer-CTC on 30 clips of VIVOS: half of them emitted the first piece between
240 and 300 ms after the start of the audio, and the last one between 40 ms before and 80 ms after
its end."""
WENET_CHUNK, WENET_LEFT_CHUNKS = 16, 4
"""The export defaults of WeNet's models without metadata (sherpa-onnx, scripts/wenet)."""


@dataclass(slots=True)
class _Utterance:
    """One utterance's state in the network, and the number of samples fed."""

    stream: Any
    fed: int = 0


class Zipformer:
    """The engine ``zipformer``, a `common.asr.streaming.Recognizer`.

    Every hypothesis is at full quality, and has words. Their probabilities are those of a
    transducer's tokens; CTC models give none, so theirs are 1.0.

    Args:
        weights: A folder as `common.weights.sherpa` describes it.
        threads: Cores this process may use.

    Raises:
        WeightsMissing: There is no such folder.
        WeightsUnusable: Its network is incomplete, malformed, or not for streams.
        EngineFailed: The network does not load.
    """

    name = "zipformer"

    def __init__(self, weights: Path, *, threads: int = 1) -> None:
        if not weights.is_dir():
            raise WeightsMissing(model=weights.name, engine=self.name)
        try:
            network = network_in(weights, streaming=True)
        except (ValueError, OSError) as error:
            raise WeightsUnusable(model=weights.name, engine=self.name, reason=error) from error
        try:
            self._recognizer = _load(network, threads)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(reason=error) from error
        self._has_only_capitals = has_only_capitals(network.letters())
        tail_ms = max(TAIL_MS, _chunk_ms(network) + LATE_MS)
        self._tail = np.zeros(tail_ms * SAMPLES_PER_MS, np.float32)
        self._utterances: dict[tuple[str, int], _Utterance] = {}

    def recognize(self, wanted: Sequence[RecognitionRequest]) -> list[Hypothesis]:
        """See `Recognizer.recognize`."""
        try:
            utterances = [self._feed(each) for each in wanted]
            self._decode(utterances)
            return [
                self._hypothesis(each, utterance)
                for each, utterance in zip(wanted, utterances, strict=True)
            ]
        except (RuntimeError, ValueError, IndexError) as error:
            # Their state is undefined: the next call begins with their first sample.
            for each in wanted:
                self._utterances.pop((each.stream, each.utterance), None)
            raise EngineFailed(reason=error) from error

    def forget(self, stream: str) -> None:
        """See `Recognizer.forget`."""
        for key in [key for key in self._utterances if key[0] == stream]:
            del self._utterances[key]

    def _feed(self, request: RecognitionRequest) -> _Utterance:
        """Feed the network with the new samples."""
        key = request.stream, request.utterance
        utterance = self._utterances.get(key)
        if utterance is None:
            self.forget(request.stream)  # earlier utterances have ended, explicitly or not
            utterance = self._utterances[key] = _Utterance(self._recognizer.create_stream())
        new = request.samples[utterance.fed :]
        if len(new):
            utterance.stream.accept_waveform(SAMPLE_RATE, new)
            utterance.fed += len(new)
        if request.final:
            utterance.stream.accept_waveform(SAMPLE_RATE, self._tail)
            utterance.stream.input_finished()
            del self._utterances[key]
        return utterance

    def _decode(self, utterances: Sequence[_Utterance]) -> None:
        """Decode all complete chunks, one of every stream at a time."""
        streams = list({id(each): each.stream for each in utterances}.values())
        while ready := [stream for stream in streams if self._recognizer.is_ready(stream)]:
            self._recognizer.decode_streams(ready)

    def _hypothesis(self, request: RecognitionRequest, utterance: _Utterance) -> Hypothesis:
        whole = Span(0, len(request.samples) // SAMPLES_PER_MS)
        result = self._recognizer.get_result_all(utterance.stream)
        pieces = Pieces(
            result.text,
            result.tokens,
            [round(time * 1000) for time in result.timestamps],
            result.ys_probs,
        )
        if self._has_only_capitals:
            pieces = pieces.in_lower_case()
        mean_logprob = round(pieces.avg_logprob, 3)
        groups = split(pieces.words(EMISSION, whole))
        return Hypothesis(tuple(_segment(group, mean_logprob) for group in groups if group))


def _segment(words: Sequence[Word], avg_logprob: float) -> Segment:
    span = Span(words[0].span.start_ms, words[-1].span.end_ms)
    text = "".join(word.text for word in words)
    return Segment(span, text, tuple(words), avg_logprob=avg_logprob)


def _load(network: Network, threads: int) -> OnlineRecognizer:
    parts = network.parts
    common = {"tokens": str(parts.tokens), "num_threads": threads}
    if network.kind is Kind.STREAMING_TRANSDUCER:
        encoder, decoder, joiner = map(str, parts.networks)
        return OnlineRecognizer.from_transducer(
            encoder=encoder,
            decoder=decoder,
            joiner=joiner,
            # Without it, the encoder would be loaded twice, to find out.
            model_type=network.metadata["model_type"],
            **common,
        )
    model = str(parts.networks[0])
    if network.kind is Kind.STREAMING_WENET_CTC:
        chunk, left_chunks = _wenet_chunks(network)
        return OnlineRecognizer.from_wenet_ctc(
            model=model, chunk_size=chunk, num_left_chunks=left_chunks, **common
        )
    return OnlineRecognizer.from_zipformer2_ctc(model=model, **common)


def _wenet_chunks(network: Network) -> tuple[int, int]:
    """Frames of the encoder in a chunk, and the number of chunks of left context."""
    chunk = int(network.metadata.get("chunk_size", WENET_CHUNK))
    return chunk, int(network.metadata.get("left_chunks", WENET_LEFT_CHUNKS))


def _chunk_ms(network: Network) -> int:
    """The audio that a network needs for its first chunk."""
    if network.kind is Kind.STREAMING_WENET_CTC:
        keys = ("subsampling_factor", "right_context")
        subsampling, right = (int(network.metadata[key]) for key in keys)
        return FRAME_MS * ((_wenet_chunks(network)[0] - 1) * subsampling + right + 1)
    return FRAME_MS * int(network.metadata["T"])
