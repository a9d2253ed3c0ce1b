"""The files of a folder that are the weights of a streaming recognizer of sherpa-onnx.

Published folders have the same network in several versions, as in
``encoder-epoch-99-avg-1-chunk-16-left-128.int8.onnx`` beside ``... .onnx`` and ``...-left-64...``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOKENS = "tokens.txt"
_NETWORKS = ("encoder", "decoder", "joiner")
_CTC = ("model", "ctc")
"""Names of the one network of a CTC model."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files to load: three networks of a transducer, or the one of a CTC model, and tokens.

    The first of ``networks`` is the encoder, or the model: the one that identifies the weights.
    """

    networks: tuple[Path, ...]
    tokens: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return *self.networks, self.tokens

    @property
    def is_transducer(self) -> bool:
        return len(self.networks) == len(_NETWORKS)


def find_parts(folder: Path) -> Parts | None:
    """The weights in ``folder``; None where it has none.

    Of several versions, 8-bit weights are preferred, then the first name in the alphabet; of a
    transducer's decoders and joiners, those exported with its encoder, as far as names show it.
    """
    tokens = folder / TOKENS
    if not tokens.is_file():
        return None
    found = [path for path in folder.glob("*.onnx") if path.is_file()]
    encoder = _choose(_called("encoder", found))
    if encoder is not None:
        others = [_choose(_called(name, found), like=encoder) for name in _NETWORKS[1:]]
        networks = [encoder, *(each for each in others if each is not None)]
        if len(networks) == len(_NETWORKS):
            return Parts(tuple(networks), tokens)
    model = _choose([path for name in _CTC for path in _called(name, found)])
    return None if model is None else Parts((model,), tokens)


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
