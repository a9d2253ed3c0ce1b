"""Networks for recordings, of each kind that sherpa-onnx runs, small enough to make on the spot.

All of them do the same: for each stretch of `CHUNK_MS` that is loud they emit one token, `CYCLE`
from the beginning on, over and over, in the middle of the stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.streaming_networks import (
    CHUNK_MS,
    CYCLE,
    LOUD,
    MELS,
    TOKENS,
    write_decoder_and_joiner,
    write_network,
    write_tokens,
)

FIRST = TOKENS.index("\u2581một")
CERTAIN = 10.0
"""The score of the blank; a token's is this for each unit of loudness."""
OF_16_BITS = 20.8
"""By so much larger are the log energies of samples up to 32,768 than of those up to 1."""
LFR_WINDOW, LFR_SHIFT = 7, 6
"""SenseVoice's features: so many frames each, and so many apart."""
SENSE_VOICE_TOKENS = (*TOKENS, "<|vi|>", "<|NEUTRAL|>", "<|Speech|>", "<|withitn|>")
MOONSHINE_FRAME = 384
"""Samples in a frame of Moonshine's encoder."""

value = helper.make_tensor_value_info


class _Graph:
    """Nodes and constants of a network under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: object, kind: Any = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def node(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        to = to or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [to], **attributes))
        return to

    def scores(
        self,
        audio: str,
        size: int,
        loud: float,
        blank: int,
        *,
        factor: int = 4,
        frame_ms: int = 10,
        tokens: int = len(TOKENS),
    ) -> tuple[str, str]:
        """From (N, frames, ``size``) to (N, outputs, tokens) and the number of outputs, (1,).

        An output is of ``factor`` frames of ``frame_ms``.
        """
        shape = self.node("Shape", audio, start=1, end=2)
        outputs = self.node("Div", shape, self.constant([factor]))
        kept = self.node("Mul", outputs, self.constant([factor]))
        new = self.node("Slice", audio, self.constant([0]), kept, self.constant([1]))
        blocks = self.node("Reshape", new, self.constant([0, -1, factor * size]))
        level = self.node("ReduceMean", blocks, axes=[2], keepdims=1)
        above = self.node("Relu", self.node("Sub", level, self.constant(loud, np.float32)))
        above = self.node("Mul", above, self.constant(CERTAIN, np.float32))
        each = CHUNK_MS // (factor * frame_ms)
        numbers = self.node(
            "Range", self.constant(0), self.node("Squeeze", outputs), self.constant(1)
        )
        turn = self.node(
            "Mod", self.node("Div", numbers, self.constant(each)), self.constant(len(CYCLE))
        )
        token = self.node("Add", turn, self.constant(FIRST))
        middle = self.node(
            "Equal", self.node("Mod", numbers, self.constant(each)), self.constant(each // 2)
        )
        chosen = self.node("Where", middle, token, self.constant(blank))
        wanted = self.node(
            "OneHot", chosen, self.constant(tokens), self.constant([0.0, 1.0], np.float32)
        )
        loudness = self.node("Mul", self.node("Unsqueeze", wanted, self.constant([0])), above)
        bias = CERTAIN * np.eye(tokens, dtype=np.float32)[blank]
        return self.node("Add", loudness, self.constant(bias, np.float32)), outputs

    def lengths(self, given: str, outputs: str, to: str) -> None:
        """So many outputs for each of the ``given`` lengths."""
        zeros = self.node("Mul", given, self.constant([0]))
        self.node("Add", zeros, outputs, to=to)


def write_offline_zipformer2(
    folder: Path, export: str = "", *, unsure: tuple[str, str] | None = None
) -> None:
    """Write a transducer of icefall, with its tokens.

    ``unsure``: where it emits the first of two tokens, the second is nearly as probable.
    """
    graph = _Graph()
    scores, outputs = graph.scores("x", MELS, LOUD, blank=0)
    if unsure is not None:
        alike = np.eye(len(TOKENS), dtype=np.float32)
        alike[TOKENS.index(unsure[0]), TOKENS.index(unsure[1])] = 0.99
        scores = graph.node("MatMul", scores, graph.constant(alike, np.float32))
    graph.node("Identity", scores, to="encoder_out")
    graph.lengths("x_lens", outputs, "encoder_out_lens")
    size = len(TOKENS)
    write_network(
        folder / f"encoder{export}.onnx",
        graph.nodes,
        [_features("x"), value("x_lens", TensorProto.INT64, ["N"])],
        [
            value("encoder_out", TensorProto.FLOAT, ["N", "outputs", size]),
            value("encoder_out_lens", TensorProto.INT64, ["N"]),
        ],
        graph.constants,
        {"model_type": "zipformer2", "version": "1", "comment": "non-streaming zipformer2"},
    )
    write_decoder_and_joiner(folder, np.zeros((size, size), np.float32), export)


def write_offline_zipformer2_ctc(folder: Path) -> None:
    """Write a CTC model of icefall, with its tokens."""
    _write_ctc(folder, LOUD, {"model_type": "zipformer2_ctc", "version": "1"})


def write_offline_wenet_ctc(folder: Path) -> None:
    """Write a CTC model of WeNet, with its tokens."""
    metadata = {"model_type": "wenet_ctc", "subsampling_factor": 4, "vocab_size": len(TOKENS)}
    _write_ctc(folder, LOUD + OF_16_BITS, metadata)


def _write_ctc(folder: Path, loud: float, metadata: dict[str, object]) -> None:
    graph = _Graph()
    scores, outputs = graph.scores("x", MELS, loud, blank=0)
    graph.node("Identity", scores, to="log_probs")
    graph.lengths("x_lens", outputs, "log_probs_lens")
    write_network(
        folder / "model.onnx",
        graph.nodes,
        [_features("x"), value("x_lens", TensorProto.INT64, ["N"])],
        [
            value("log_probs", TensorProto.FLOAT, ["N", "outputs", len(TOKENS)]),
            value("log_probs_lens", TensorProto.INT64, ["N"]),
        ],
        graph.constants,
        metadata,
    )
    write_tokens(folder)


NEMO_TOKENS = (*TOKENS[1:], "<blk>")
"""With the blank as the last one."""


def write_nemo_ctc(folder: Path) -> None:
    """Write a CTC model of NeMo, with its tokens."""
    graph = _Graph()
    scores, _ = _nemo_scores(graph)
    graph.node("Identity", scores, to="logprobs")
    write_network(
        folder / "model.onnx",
        graph.nodes,
        _nemo_inputs(),
        [value("logprobs", TensorProto.FLOAT, ["N", "outputs", len(TOKENS)])],
        graph.constants,
        _NEMO | {"model_type": "EncDecCTCModelBPE"},
    )
    write_tokens(folder, NEMO_TOKENS)


def write_nemo_transducer(folder: Path, durations: int = 0) -> None:
    """Write a transducer of NeMo, with its tokens; with ``durations`` of tokens it is a TDT."""
    graph = _Graph()
    scores, outputs = _nemo_scores(graph)
    graph.node("Transpose", scores, to="outputs", perm=[0, 2, 1])
    graph.lengths("length", outputs, "encoded_lengths")
    size = len(TOKENS)
    write_network(
        folder / "encoder.onnx",
        graph.nodes,
        _nemo_inputs(),
        [
            value("outputs", TensorProto.FLOAT, ["N", size, "outputs"]),
            value("encoded_lengths", TensorProto.INT64, ["N"]),
        ],
        graph.constants,
        _NEMO
        | {"model_type": "EncDecRNNTBPEModel", "pred_rnn_layers": 1, "pred_hidden": 4}
        | {"feat_dim": MELS, "url": "a tdt model" if durations else ""},
    )
    states = [value(name, TensorProto.FLOAT, [1, "N", 4]) for name in ("states.1", "onnx::Slice_3")]
    nodes = [
        helper.make_node("Gather", ["table", "targets"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["outputs"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["target_length"], ["prednet_lengths"]),
        helper.make_node("Identity", ["states.1"], ["states"]),
        helper.make_node("Identity", ["onnx::Slice_3"], ["162"]),
    ]
    # No token is emitted twice in a frame.
    forbidding = np.diag([*[-1000.0] * (size - 1), 0.0]).astype(np.float32)
    constants = [numpy_helper.from_array(forbidding, "table")]
    write_network(
        folder / "decoder.onnx",
        nodes,
        [
            value("targets", TensorProto.INT32, ["N", 1]),
            value("target_length", TensorProto.INT32, ["N"]),
            *states,
        ],
        [
            value("outputs", TensorProto.FLOAT, ["N", size, 1]),
            value("prednet_lengths", TensorProto.INT32, ["N"]),
            value("states", TensorProto.FLOAT, [1, "N", 4]),
            value("162", TensorProto.FLOAT, [1, "N", 4]),
        ],
        constants,
        {},
    )
    joiner = _Graph()
    both = joiner.node("Add", "encoder_outputs", "decoder_outputs")
    scores = joiner.node("Reshape", both, joiner.constant([1, 1, 1, size]))
    if durations:
        one = np.eye(durations, dtype=np.float32)[1].reshape(1, 1, 1, durations)
        joiner.node("Concat", scores, joiner.constant(one, np.float32), to="logits", axis=3)
    else:
        joiner.node("Identity", scores, to="logits")
    write_network(
        folder / "joiner.onnx",
        joiner.nodes,
        [
            value(name, TensorProto.FLOAT, ["N", size, 1])
            for name in ("encoder_outputs", "decoder_outputs")
        ],
        [value("logits", TensorProto.FLOAT, [1, 1, 1, size + durations])],
        joiner.constants,
        {},
    )
    write_tokens(folder, NEMO_TOKENS)


def write_nemo_tdt(folder: Path) -> None:
    """Write a transducer of NeMo that predicts durations, as parakeet does."""
    write_nemo_transducer(folder, durations=5)


_NEMO: dict[str, object] = {
    "vocab_size": len(TOKENS) - 1,
    "subsampling_factor": 8,
    "normalize_type": "NA",
}


def _nemo_inputs() -> list[Any]:
    return [
        value("audio_signal", TensorProto.FLOAT, ["N", MELS, "frames"]),
        value("length", TensorProto.INT64, ["N"]),
    ]


def _nemo_scores(graph: _Graph) -> tuple[str, str]:
    audio = graph.node("Transpose", "audio_signal", perm=[0, 2, 1])
    # The first token is missing, as the blank is the last one.
    scores, outputs = graph.scores(audio, MELS, LOUD, blank=0, factor=8)
    order = [*range(1, len(TOKENS)), 0]
    return graph.node("Gather", scores, graph.constant(order), axis=2), outputs


def write_sense_voice(folder: Path) -> None:
    """Write a network like SenseVoice, with its tokens."""
    graph = _Graph()
    size = len(SENSE_VOICE_TOKENS)
    scores, _ = graph.scores(
        *("x", MELS * LFR_WINDOW, LOUD + OF_16_BITS),
        blank=0,
        factor=1,
        frame_ms=10 * LFR_SHIFT,
        tokens=size,
    )
    about: NDArray[np.float32] = 9 * np.eye(size, dtype=np.float32)[np.newaxis, len(TOKENS) :]
    graph.node("Concat", graph.constant(about, np.float32), scores, to="logits", axis=1)
    one_each = [
        value(name, TensorProto.INT32, ["N"]) for name in ("x_length", "language", "text_norm")
    ]
    languages = ("auto", "zh", "en", "yue", "ja", "ko")
    write_network(
        folder / "model.onnx",
        graph.nodes,
        [value("x", TensorProto.FLOAT, ["N", "frames", MELS * LFR_WINDOW]), *one_each],
        [value("logits", TensorProto.FLOAT, ["N", "outputs", size])],
        graph.constants,
        {
            "model_type": "sense_voice_ctc",
            "version": "1",
            "comment": "made for a test",
            "vocab_size": size,
            "lfr_window_size": LFR_WINDOW,
            "lfr_window_shift": LFR_SHIFT,
            "normalize_samples": 0,
            "with_itn": 14,
            "without_itn": 15,
            "neg_mean": ",".join(["0"] * MELS * LFR_WINDOW),
            "inv_stddev": ",".join(["1"] * MELS * LFR_WINDOW),
            **{f"lang_{each}": number for number, each in enumerate(languages)},
        },
    )
    write_tokens(folder, SENSE_VOICE_TOKENS)


def write_moonshine(folder: Path) -> None:
    """Write networks like Moonshine's, with their tokens. They give no times."""
    size = len(TOKENS)
    graph = _Graph()
    audio = graph.node("Unsqueeze", "audio", graph.constant([1]))
    loudness = graph.node("Abs", audio)
    pooled = graph.node(
        "AveragePool", loudness, kernel_shape=[MOONSHINE_FRAME], strides=[MOONSHINE_FRAME]
    )
    graph.node("Transpose", pooled, to="features", perm=[0, 2, 1])
    features = value("features", TensorProto.FLOAT, [1, "frames", 1])
    write_network(
        folder / "preprocess.onnx",
        graph.nodes,
        [value("audio", TensorProto.FLOAT, [1, "samples"])],
        [features],
        graph.constants,
        {},
    )
    encoded = value("encoded", TensorProto.FLOAT, [1, "frames", 1])
    write_network(
        folder / "encode.int8.onnx",
        [helper.make_node("Identity", ["features"], ["encoded"])],
        [features, value("features_length", TensorProto.INT32, [1])],
        [encoded],
        [],
        {},
    )
    for name, states in (("uncached_decode", False), ("cached_decode", True)):
        _write_moonshine_decoder(folder / f"{name}.int8.onnx", encoded, size, given=states)
    write_tokens(folder, ("<unk>", "<s>", "</s>", *TOKENS[3:]))


def _write_moonshine_decoder(path: Path, encoded: Any, size: int, *, given: bool) -> None:
    graph = _Graph()
    loud = graph.node("Greater", "encoded", graph.constant(0.01, np.float32))
    count = graph.node("ReduceSum", _cast(graph, loud, TensorProto.FLOAT), keepdims=0)
    frames = graph.constant(CHUNK_MS * 16 / MOONSHINE_FRAME, np.float32)
    chunks = graph.node("Floor", graph.node("Div", count, frames))
    done = _cast(graph, "sequence_length", TensorProto.INT64)
    before = graph.node("Sub", graph.node("Squeeze", done), graph.constant(1))
    more = graph.node("Less", before, _cast(graph, chunks, TensorProto.INT64))
    turn = graph.node("Mod", before, graph.constant(len(CYCLE)))
    token = graph.node(
        "Where", more, graph.node("Add", turn, graph.constant(FIRST)), graph.constant(2)
    )
    scores = graph.node(
        "OneHot",
        graph.node("Reshape", token, graph.constant([1])),
        graph.constant(size),
        graph.constant([0.0, 9.0], np.float32),
    )
    graph.node("Reshape", scores, graph.constant([1, 1, size]), to="logits")
    graph.node("Identity", "state" if given else "encoded", to="new_state")
    state = value("state", TensorProto.FLOAT, [1, "frames", 1])
    write_network(
        path,
        graph.nodes,
        [
            value("token", TensorProto.INT32, [1, 1]),
            encoded,
            value("sequence_length", TensorProto.INT32, [1]),
            *([state] if given else []),
        ],
        [
            value("logits", TensorProto.FLOAT, [1, 1, size]),
            value("new_state", TensorProto.FLOAT, [1, "frames", 1]),
        ],
        graph.constants,
        {},
    )


def _cast(graph: _Graph, name: str, kind: int) -> str:
    output = f"value_{len(graph.nodes)}"
    graph.nodes.append(helper.make_node("Cast", [name], [output], to=kind))
    return output


def _features(name: str) -> Any:
    return value(name, TensorProto.FLOAT, ["N", "frames", MELS])


def expected_text(chunks: Sequence[int]) -> str:
    """What these networks write where the chunks of these numbers are loud."""
    return "".join(CYCLE[number % len(CYCLE)] for number in chunks).strip()
