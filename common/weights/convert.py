"""Whisper weights from one engine's format to the other's, with numpy alone.

The common form is `common.weights.whisper.Whisper`: tensors under OpenAI's names and the
vocabulary as byte-level BPE strings. Readers map files into memory and writers stream tensor by
tensor, so that large weights convert in little memory.

Results equal the published files byte for byte wherever that can be checked: ggml-base made from
faster-whisper base, faster-whisper tiny made from ggml-tiny, and both q8_0 files.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from common.weights.checkpoint import read_transformers
from common.weights.ct2 import read_ct2, read_vocabulary, write_ct2
from common.weights.ggml import read_ggml, write_ggml
from common.weights.whisper import HEAD_SIZE, NotConvertible, Tick, Whisper

_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
"""The tokens of languages; other special tokens have longer names."""

_ALIGNMENT_HEADS = {
    (4, 4): [[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]],
    (6, 6): [[3, 1], [4, 2], [4, 3], [4, 7], [5, 1], [5, 2], [5, 4], [5, 6]],
    (12, 12): [[5, 3], [5, 9], [8, 0], [8, 4], [8, 7], [8, 8], [9, 0], [9, 7], [9, 9], [10, 5]],
    (24, 24): [[13, 15], [15, 4], [15, 15], [16, 1], [20, 0], [23, 4]],
}
"""Heads that follow the audio, for word times, by layers (openai/whisper, `__init__.py`)."""


def ct2_to_ggml(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the faster-whisper folder ``source`` to the ggml file ``target`` (f16)."""
    write_ggml(read_ct2(source), target, tick=tick)


def quantize_ggml(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the f16 ggml file ``source`` to q8_0 at ``target``."""
    write_ggml(read_ggml(source), target, q8_0=True, tick=tick)


def ggml_to_ct2(
    source: Path, target: Path, companion: Path, *, tick: Tick = lambda _: None
) -> None:
    """Convert the ggml file ``source`` to faster-whisper's files in the folder ``target``.

    ``companion`` is any faster-whisper folder with the same vocabulary: its tokenizer files are
    copied, and its config with the alignment heads of this size.
    """
    whisper = read_ggml(source)
    vocabulary = read_vocabulary(companion)
    if len(vocabulary) != whisper.tensors["decoder.token_embedding.weight"].shape[0]:
        raise NotConvertible(f"{companion.name} and {source.name} have different vocabularies")
    write_ct2(whisper, target / "model.bin", tick=tick)
    for name in ("tokenizer.json", "vocabulary.txt", "vocabulary.json", "preprocessor_config.json"):
        if (companion / name).is_file():
            shutil.copyfile(companion / name, target / name)
    config = json.loads((companion / "config.json").read_text("utf-8"))
    config["alignment_heads"] = _alignment_heads(whisper)
    _write_json(target / "config.json", config)


def transformers_to_ct2(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the transformers checkpoint in ``source`` to faster-whisper's files in ``target``.

    Reads `pytorch_model.bin`, `tokenizer.json` and `generation_config.json`.
    """
    whisper = read_transformers(source)
    write_ct2(whisper, target / "model.bin", tick=tick)
    generation = json.loads((source / "generation_config.json").read_text("utf-8"))
    config = {
        "alignment_heads": generation.get("alignment_heads") or _alignment_heads(whisper),
        "lang_ids": [i for i, text in enumerate(whisper.vocabulary) if _LANGUAGE.fullmatch(text)],
        "suppress_ids": generation.get("suppress_tokens") or [],
        "suppress_ids_begin": generation.get("begin_suppress_tokens") or [],
    }
    _write_json(target / "config.json", config)
    _write_json(target / "vocabulary.json", list(whisper.vocabulary))
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")


def _alignment_heads(whisper: Whisper) -> list[list[int]]:
    """The known heads of this size, else all heads of the upper half of the layers."""
    layers = whisper.text_layers
    heads = whisper.tensors["decoder.ln.weight"].shape[0] // HEAD_SIZE
    upper = [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]
    return _ALIGNMENT_HEADS.get((whisper.audio_layers, layers), upper)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
