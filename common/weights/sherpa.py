"""The files of a folder that are a speech network of sherpa-onnx, and what kind of network it is.

Published folders have the same network in several versions, as in
``encoder-epoch-99-avg-1-chunk-16-left-128.int8.onnx`` beside ``... .onnx`` and ``...-left-64...``.

The kind is in the metadata of the network. sherpa-onnx ends the process on many malformed files,
after a line on stderr: so `network_in` checks its requirements first, where that is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.weights.onnx_file import read_metadata, read_output_sizes

TOKENS = "tokens.txt"
BLANKS = frozenset({"<blk>", "<eps>", "<blank>"})

TRANSDUCER = ("encoder", "decoder", "joiner")
MOONSHINE = ("encode", "preprocess", "uncached_decode", "cached_decode")
SINGLE = ("model",), ("ctc",)
LAYOUTS = (TRANSDUCER, MOONSHINE, *SINGLE)
"""The networks that belong together, by the beginning of their files' names. The hash of the first
identifies the weights."""
_SUFFIX = ".onnx"
_SPECIAL = re.compile(r"<.+>")
"""Tokens that are no text, such as the blank."""


class Kind(StrEnum):
    """The kinds of networks that sherpa-onnx runs for us."""

    STREAMING_TRANSDUCER = "streaming transducer"
    STREAMING_ZIPFORMER_CTC = "streaming zipformer CTC"
    STREAMING_WENET_CTC = "streaming WeNet CTC"
    TRANSDUCER = "transducer"
    NEMO_TRANSDUCER = "NeMo transducer"
    ZIPFORMER_CTC = "zipformer CTC"
    WENET_CTC = "WeNet CTC"
    NEMO_CTC = "NeMo CTC"
    SENSE_VOICE = "SenseVoice"
    MOONSHINE = "Moonshine"

    @property
    def is_streaming(self) -> bool:
        """Whether it is for live streams, or for recordings."""
        return self.value.startswith("streaming")

    @property
    def has_hotwords(self) -> bool:
        """Whether it can prefer given phrases."""
        return self in (Kind.TRANSDUCER, Kind.NEMO_TRANSDUCER)


@dataclass(frozen=True, slots=True)
class Parts:
    """The files to load: the networks of one of `LAYOUTS`, in its order, and the tokens."""

    layout: tuple[str, ...]
    networks: tuple[Path, ...]
    tokens: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return *self.networks, self.tokens

    def network(self, name: str) -> Path:
        """The network of this name in the layout."""
        return self.networks[self.layout.index(name)]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that sherpa-onnx can load; ``metadata`` is that of its first file."""

    kind: Kind
    parts: Parts
    metadata: Mapping[str, str]

    def letters(self) -> str:
        """What its tokens write, in one string; special ones, such as the blank, write nothing."""
        tokens = read_tokens(self.parts.tokens)
        return "".join(token for token in tokens if not _SPECIAL.fullmatch(token))


def networks_in(folder: Path) -> list[Path]:
    """The files in ``folder`` that are, or could be, networks of a speech model for sherpa-onnx.

    Without a file of tokens, only those named as in a layout of several networks.
    """
    found = [each for each in folder.iterdir() if each.suffix == _SUFFIX and each.is_file()]
    if (folder / TOKENS).is_file():
        return found
    names = {name for layout in LAYOUTS if layout not in SINGLE for name in layout}
    return [path for name in names for path in _called(name, found)]


def find_parts(folder: Path) -> Parts | None:
    """The network in ``folder``; None where it has none, or not all of one.

    Of several versions, 8-bit weights are preferred, then the first name in the alphabet; of a
    layout's other networks, those exported with its first, as far as names show it.
    """
    tokens = folder / TOKENS
    if not tokens.is_file():
        return None
    found = networks_in(folder)
    for layout in LAYOUTS:
        first = _choose(_called(layout[0], found))
        if first is None:
            continue
        others = [_choose(_called(name, found), like=first) for name in layout[1:]]
        networks = (first, *(each for each in others if each is not None))
        if len(networks) == len(layout):
            return Parts(layout, networks, tokens)
    return None


def network_in(folder: Path, *, streaming: bool | None = None) -> Network:
    """The network in ``folder``, with its kind: for ``streaming``, for recordings, or for either.

    Raises:
        ValueError: it is incomplete, malformed, or of another kind; the text says what is wrong.
        OSError: it cannot be read.
    """
    parts = find_parts(folder)
    if parts is None:
        raise ValueError(_incomplete(folder))
    metadata = read_metadata(parts.networks[0])
    kind = _kind(parts, metadata)
    if streaming not in (None, kind.is_streaming):
        use = "recordings" if streaming else "live streams"
        raise ValueError(f"a {kind} network is for {use} only")
    _check_tokens(kind, parts, metadata)
    return Network(kind, parts, metadata)


def read_tokens(path: Path) -> dict[str, int]:
    """Token and number of each line; a space token may be omitted.

    Raises:
        ValueError: a line is malformed.
    """
    tokens = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        match line.split():
            case [token, index] if index.isdecimal():
                tokens[token] = int(index)
            case [index] if index.isdecimal():
                tokens[" "] = int(index)
            case _:
                raise ValueError(f"{path.name}, line {number}: expected a token and a number")
    return tokens


def has_only_capitals(letters: str) -> bool:
    """Whether a network with these letters writes capitals where others write all letters."""
    return letters == letters.upper() != letters.lower()


# --- kinds ------------------------------------------------------------------------------------

_OF_STREAMS = ("T", "decode_chunk_len")
"""Only a network for streams has these; WeNet's have the following ones instead."""
_OF_WENET_STREAMS = ("head", "num_blocks", "output_size", "cnn_module_kernel", "right_context")
_ZIPFORMER = ("encoder_dims", "num_encoder_layers", "cnn_module_kernels", "left_context_len")
_ZIPFORMER2 = (*_ZIPFORMER, "query_head_dims", "value_head_dims", "num_heads", *_OF_STREAMS)
_CONFORMER = ("num_encoder_layers", "left_context", "encoder_dim", "pad_length")
_NEMO = ("vocab_size", "subsampling_factor", "normalize_type")
_SENSE_VOICE = (
    *("vocab_size", "lfr_window_size", "lfr_window_shift", "normalize_samples", "with_itn"),
    *("without_itn", "lang_auto", "lang_zh", "lang_en", "lang_ja", "lang_ko", "lang_yue"),
    *("neg_mean", "inv_stddev"),
)
_Types = Mapping[str, tuple[Kind, tuple[str, ...]]]
"""The kind of each type of network, and the metadata that sherpa-onnx reads from its first file."""
_STREAMING_TRANSDUCERS: _Types = {
    "zipformer2": (Kind.STREAMING_TRANSDUCER, _ZIPFORMER2),
    "zipformer": (Kind.STREAMING_TRANSDUCER, (*_ZIPFORMER, "attention_dims", *_OF_STREAMS)),
    "conformer": (
        Kind.STREAMING_TRANSDUCER,
        (*_CONFORMER, "cnn_module_kernel", *_OF_STREAMS),
    ),
    "lstm": (
        Kind.STREAMING_TRANSDUCER,
        ("num_encoder_layers", "rnn_hidden_size", "d_model", *_OF_STREAMS),
    ),
}
_STREAMING_CTC: _Types = {
    "zipformer2": (Kind.STREAMING_ZIPFORMER_CTC, _ZIPFORMER2),
    "wenet_ctc": (
        Kind.STREAMING_WENET_CTC,
        (*_OF_WENET_STREAMS, "subsampling_factor", "vocab_size"),
    ),
}
_TRANSDUCERS: _Types = {
    **dict.fromkeys(("zipformer2", "zipformer", "conformer"), (Kind.TRANSDUCER, ())),
    **dict.fromkeys(
        ("EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel"),
        (Kind.NEMO_TRANSDUCER, (*_NEMO, "pred_rnn_layers", "pred_hidden")),
    ),
}
_CTC: _Types = {
    "zipformer2_ctc": (Kind.ZIPFORMER_CTC, ()),
    "wenet_ctc": (Kind.WENET_CTC, ("subsampling_factor", "vocab_size")),
    "sense_voice_ctc": (Kind.SENSE_VOICE, _SENSE_VOICE),
    **dict.fromkeys(
        ("EncDecCTCModelBPE", "EncDecCTCModel", "EncDecHybridRNNTCTCBPEModel"),
        (Kind.NEMO_CTC, _NEMO),
    ),
}


def _kind(parts: Parts, metadata: Mapping[str, str]) -> Kind:
    if parts.layout == MOONSHINE:
        return Kind.MOONSHINE
    is_transducer = parts.layout == TRANSDUCER
    streaming = _STREAMING_TRANSDUCERS if is_transducer else _STREAMING_CTC
    recordings = _TRANSDUCERS if is_transducer else _CTC
    type_ = metadata.get("model_type", "")
    for_streams = metadata.keys() & {*_OF_STREAMS, *_OF_WENET_STREAMS}
    kinds = streaming if for_streams or type_ not in recordings else recordings
    if type_ not in kinds:
        known = " or ".join({**recordings, **streaming})
        raise ValueError(f"{parts.networks[0].name} is of type {type_ or 'unknown'}, not {known}")
    kind, required = kinds[type_]
    _require(parts.networks[0], metadata, required)
    return kind


def _require(network: Path, metadata: Mapping[str, str], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in metadata]
    if missing:
        raise ValueError(f"the metadata of {network.name} lacks {', '.join(missing)}")


def _check_tokens(kind: Kind, parts: Parts, metadata: Mapping[str, str]) -> None:
    tokens = read_tokens(parts.tokens)
    size = int(metadata.get("vocab_size", 0))
    if kind in (Kind.STREAMING_TRANSDUCER, Kind.TRANSDUCER):
        decoder = parts.network("decoder")
        of_decoder = read_metadata(decoder)
        _require(decoder, of_decoder, ("vocab_size", "context_size"))
        size = int(of_decoder["vocab_size"])
        read_metadata(parts.network("joiner"))
    elif kind is Kind.NEMO_TRANSDUCER:
        size += 1  # NeMo does not count the blank token, which is the last
        if tokens.get("<blk>") != size - 1 or len(tokens) != size:
            raise ValueError(
                f"{parts.tokens.name} has {len(tokens)} tokens and <blk> as number "
                f"{tokens.get('<blk>')}; the network has {size}, of which <blk> is the last"
            )
        read_metadata(parts.network("decoder"))
        outputs = read_output_sizes(parts.network("joiner"))[0]
        if outputs not in (0, size) and "tdt" not in metadata.get("url", ""):
            raise ValueError(
                f"{parts.network('joiner').name} has {outputs} outputs for {size} tokens, and "
                f"the url in the metadata of {parts.networks[0].name} does not contain tdt"
            )
    elif kind is Kind.MOONSHINE:
        for network in parts.networks[1:]:
            read_metadata(network)
    else:
        if kind is not Kind.SENSE_VOICE and not BLANKS & tokens.keys():
            raise ValueError(f"{parts.tokens.name} has none of {', '.join(sorted(BLANKS))}")
        size = max(size, *read_output_sizes(parts.networks[0])[:1], 0)
    if len(tokens) < size:
        raise ValueError(f"{parts.tokens.name} has {len(tokens)} tokens, the network {size}")


# --- files ------------------------------------------------------------------------------------


def _incomplete(folder: Path) -> str:
    """What ``folder`` lacks of the layout that it has most of."""
    here = networks_in(folder)

    def lacks(layout: Sequence[str]) -> list[str]:
        return [name for name in layout if not _called(name, here)]

    begun = [layout for layout in LAYOUTS if len(lacks(layout)) < len(layout)]
    closest = min(begun or [("model",)], key=lambda layout: len(lacks(layout)))
    missing = [f"{name}.onnx" for name in lacks(closest)]
    if not (folder / TOKENS).is_file():
        missing.append(TOKENS)
    return f"{folder.name} lacks {', '.join(missing)}"


def _called(name: str, paths: Iterable[Path]) -> list[Path]:
    """``name.onnx``, ``name.int8.onnx``, ``name-epoch-99.onnx``; not ``names.onnx``."""
    return [path for path in paths if path.name.startswith((f"{name}.", f"{name}-"))]


def _choose(paths: Sequence[Path], *, like: Path | None = None) -> Path | None:
    def order(path: Path) -> tuple[bool, int, str]:
        is_other = like is not None and _export(path) != _export(like)
        return is_other, _rank(path), path.name

    return min(paths, key=order, default=None)


def _rank(path: Path) -> int:
    """8 bits before 32; 16 last, as the CPU has to convert them."""
    return 0 if ".int8." in path.name else 2 if ".fp16." in path.name else 1


def _export(path: Path) -> str:
    """The export that a network is from: its file name without role and format."""
    _, _, rest = path.name.partition("-")
    return rest.split(".")[0]
