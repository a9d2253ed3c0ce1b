"""Streaming networks on sherpa-onnx: audio goes in as it arrives, and text only grows.

Transducers (zipformer and its predecessors) and CTC models (zipformer2's, WeNet's) are
distinguished by their files and metadata. They know what they were trained on: one language, often
no punctuation, often no case.

A network decodes chunks of some hundred milliseconds, keeps its state between them, and takes the
best token at each frame. It never changes earlier text, so each hypothesis begins with the one
before. Streams with a complete chunk are decoded together. That changes no text with WeNet's, which
sherpa-onnx decodes one by one, nor with 32-bit weights; with 8-bit weights the streams of a batch
share the scale of their activations, which may rarely change a token.

sherpa-onnx ends the process on many malformed files, after a line on stderr. So its requirements
are checked first, where that is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from sherpa_onnx import OnlineRecognizer

from common.asr.segments import split
from common.asr.streaming import RecognitionRequest
from common.domain.stream import Hypothesis
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Segment, Span, Word
from common.errors import EngineFailed, WeightsMissing
from common.weights.onnx_file import read_metadata
from common.weights.zipformer import Parts, find_parts

TAIL_MS = 800
"""Silence after an utterance: the last words are emitted only when more audio follows."""
LATE_MS = 400
"""How long after the end of a chunk its last piece may be emitted."""
FRAME_MS = 10
LEAD_MS = 250
"""From a word's start until its first piece is emitted. Measured with a Conformer-CTC on 30 clips
of VIVOS, from the start of the audio: half of them between 240 and 300 ms."""
LAST_MS = 70
"""From a word's last piece until its end, unless the next one begins before. On the same clips the
last piece was emitted between 40 ms before and 80 ms after the end of the audio."""
WENET_CHUNK, WENET_LEFT_CHUNKS = 16, 4
"""The export defaults of WeNet's models without metadata (sherpa-onnx, scripts/wenet)."""
BLANKS = frozenset({"<blk>", "<eps>", "<blank>"})
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Characters of scripts without spaces: each begins a word."""

_ZIPFORMER = ("encoder_dims", "num_encoder_layers", "cnn_module_kernels", "left_context_len")
_CHUNKED = ("T", "decode_chunk_len")
"""A network without these is not for streams."""
_ZIPFORMER2 = (*_ZIPFORMER, "query_head_dims", "value_head_dims", "num_heads", *_CHUNKED)
TRANSDUCERS: Mapping[str, tuple[str, ...]] = {
    "zipformer2": _ZIPFORMER2,
    "zipformer": (*_ZIPFORMER, "attention_dims", *_CHUNKED),
    "conformer": (
        *("num_encoder_layers", "left_context", "encoder_dim", "pad_length", "cnn_module_kernel"),
        *_CHUNKED,
    ),
    "lstm": ("num_encoder_layers", "rnn_hidden_size", "d_model", *_CHUNKED),
}
CTC: Mapping[str, tuple[str, ...]] = {
    "zipformer2": _ZIPFORMER2,
    "wenet_ctc": (
        *("head", "num_blocks", "output_size", "cnn_module_kernel"),
        *("right_context", "subsampling_factor", "vocab_size"),
    ),
}
"""The metadata that sherpa-onnx reads, by model type."""


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
        weights: A folder as `common.weights.zipformer` describes it.
        threads: Cores this process may use.

    Raises:
        WeightsMissing: The folder has no such weights.
        EngineFailed: They do not load, or are not for streams.
    """

    name = "zipformer"

    def __init__(self, weights: Path, *, threads: int = 1) -> None:
        parts = find_parts(weights)
        if parts is None:
            raise WeightsMissing(model=weights.name, engine=self.name)
        try:
            metadata = read_metadata(parts.networks[0])
            _check(parts, metadata)
            self._recognizer = _load(parts, metadata, threads)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(reason=error) from error
        tail_ms = max(TAIL_MS, _chunk_ms(metadata) + LATE_MS)
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
        words = _words(result, whole)
        mean_logprob = round(min(0.0, fmean(result.ys_probs)), 3) if result.ys_probs else 0.0
        return Hypothesis(tuple(_segment(group, mean_logprob) for group in split(words) if group))


def _segment(words: Sequence[Word], avg_logprob: float) -> Segment:
    span = Span(words[0].span.start_ms, words[-1].span.end_ms)
    text = "".join(word.text for word in words)
    return Segment(span, text, tuple(words), avg_logprob=avg_logprob)


def _words(result: Any, whole: Span) -> list[Word]:
    """The words of sherpa-onnx's result, inside ``whole``.

    It has the pieces and when each was emitted, in seconds; the start and end of a word are
    estimated.
    """
    emitted_ms = [round(time * 1000) for time in result.timestamps]
    probabilities = [min(1.0, exp(each)) for each in result.ys_probs] or [1.0] * len(emitted_ms)
    words = []
    for text, start, end in _texts(result):
        start_ms = max(0, emitted_ms[start] - LEAD_MS)
        end_ms = emitted_ms[end - 1] + LAST_MS
        if end < len(emitted_ms):
            end_ms = min(end_ms, emitted_ms[end] - LEAD_MS)
        span = Span(start_ms, max(start_ms, end_ms)).clipped(whole)
        words.append(Word(text, span, round(fmean(probabilities[start:end]), 3)))
    return words


def _texts(result: Any) -> list[tuple[str, int, int]]:
    """The text of each word, with its first piece and the one after its last.

    A piece with a leading space begins a word.
    """
    pieces = [piece.replace("\u2581", " ") for piece in result.tokens]
    first = [at for at, piece in enumerate(pieces) if at == 0 or _begins_word(piece)]
    spans = list(pairwise([*first, len(pieces)]))
    texts = ["".join(pieces[start:end]) for start, end in spans]
    if "".join(texts).strip() != result.text.strip():
        # Byte pieces, which are text only together.
        texts = [f" {text}" for text in result.text.split()]
        if len(texts) != len(spans):
            texts, spans = [f" {result.text.strip()}"], [(0, len(pieces))]
    found = zip(texts, spans, strict=True)
    return [(text, start, end) for text, (start, end) in found if text.strip()]


def _begins_word(piece: str) -> bool:
    return piece.startswith(" ") or UNSPACED.match(piece) is not None


def _check(parts: Parts, metadata: Mapping[str, str]) -> None:
    """Check what sherpa-onnx would end the process for.

    Raises:
        ValueError: something is missing; the text says what.
    """
    kind = metadata.get("model_type", "")
    kinds = TRANSDUCERS if parts.is_transducer else CTC
    name = parts.networks[0].name
    if kind not in kinds:
        raise ValueError(f"{name} is of type {kind or 'unknown'}, not {' or '.join(kinds)}")
    missing = [key for key in kinds[kind] if key not in metadata]
    if missing:
        raise ValueError(f"{name} is not for streams: its metadata lacks {', '.join(missing)}")
    size = metadata.get("vocab_size", "0")
    if parts.is_transducer:
        decoder = read_metadata(parts.networks[1])
        if not {"vocab_size", "context_size"} <= decoder.keys():
            raise ValueError(f"{parts.networks[1].name} lacks vocab_size or context_size")
        size = decoder["vocab_size"]
        read_metadata(parts.networks[2])
    tokens = _read_tokens(parts.tokens)
    if not parts.is_transducer and not BLANKS & tokens.keys():
        raise ValueError(f"{parts.tokens.name} has none of {', '.join(sorted(BLANKS))}")
    if len(tokens) < int(size):
        raise ValueError(f"{parts.tokens.name} has {len(tokens)} tokens, the network {size}")


def _read_tokens(path: Path) -> dict[str, int]:
    """Token and number of each line; a space token may be omitted.

    Raises:
        ValueError: a line is malformed.
    """
    tokens = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        match line.split():
            case [token, index] if index.isdecimal():
                tokens[token] = int(index)
            case [index] if index.isdecimal():
                tokens[" "] = int(index)
            case _:
                raise ValueError(f"{path.name}, line {number}: expected a token and a number")
    return tokens


def _load(parts: Parts, metadata: Mapping[str, str], threads: int) -> OnlineRecognizer:
    common = {"tokens": str(parts.tokens), "num_threads": threads}
    networks = [str(path) for path in parts.networks]
    if parts.is_transducer:
        encoder, decoder, joiner = networks
        return OnlineRecognizer.from_transducer(
            encoder=encoder,
            decoder=decoder,
            joiner=joiner,
            # Without it, the encoder would be loaded twice, to find out.
            model_type=metadata["model_type"],
            **common,
        )
    (model,) = networks
    if metadata["model_type"] == "wenet_ctc":
        chunk, left_chunks = _wenet_chunks(metadata)
        return OnlineRecognizer.from_wenet_ctc(
            model=model, chunk_size=chunk, num_left_chunks=left_chunks, **common
        )
    return OnlineRecognizer.from_zipformer2_ctc(model=model, **common)


def _wenet_chunks(metadata: Mapping[str, str]) -> tuple[int, int]:
    """Frames of the encoder in a chunk, and the number of chunks of left context."""
    chunk = int(metadata.get("chunk_size", WENET_CHUNK))
    return chunk, int(metadata.get("left_chunks", WENET_LEFT_CHUNKS))


def _chunk_ms(metadata: Mapping[str, str]) -> int:
    """The audio that a network needs for its first chunk."""
    if metadata["model_type"] == "wenet_ctc":
        subsampling, right = (int(metadata[key]) for key in ("subsampling_factor", "right_context"))
        return FRAME_MS * ((_wenet_chunks(metadata)[0] - 1) * subsampling + right + 1)
    return FRAME_MS * int(metadata["T"])
