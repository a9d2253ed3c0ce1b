"""Word segmentation of Vietnamese text, in the form that PhoBERT was trained on.

The segmenter is underthesea's (a conditional random field, Apache-2.0), used through its native
core alone: importing underthesea itself would load all its other tasks, and PyTorch where that is
installed. Syllables are passed in lower case, as comments and transcripts have arbitrary case: word
features of ViHSD then classify better (macro-F1 0.635 in five folds, against 0.627
with their case and 0.639 with pyvi, which takes 120 MB of libraries and 2 s to import).
"""

from __future__ import annotations

import pickle
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

PIECE = 256
"""Tokens that are segmented together; bounds the memory."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+|\.{2,}|[^\w\s]|(?<![^\W_])_|_(?![^\W_])")
"""A number, a syllable, an ellipsis, or any other sign except ``_`` between syllables."""


def segment_words(text: str) -> str:
    """The words of a text, one space between them, and the syllables of each joined by ``_``.

    Signs are words of their own. Joined syllables are split first, so that a segmented text stays
    the same. The text is composed (NFC), its letters keep their case. Thread-safe; the first call
    reads 6 MB.
    """
    tokens = (match.group() for match in _TOKEN.finditer(unicodedata.normalize("NFC", text)))
    pieces = iter(lambda: list(islice(tokens, PIECE)), [])
    return " ".join(word for piece in pieces for word in _words(piece))


def _words(tokens: list[str]) -> Iterator[str]:
    featurizer, tagger = _segmenter()
    tags = tagger.tag(featurizer.process([[[token.lower()] for token in tokens]])[0])
    word = ""
    for token, tag in zip(tokens, tags, strict=True):
        if tag == "I-W" and word[-1:].isalnum() and token[0].isalnum():
            word = f"{word}_{token}"
        else:
            if word:
                yield word
            word = token
    yield word


@cache
def _segmenter() -> tuple[Any, Any]:
    """The featurizer and the tagger, both stateless."""
    from underthesea_core import CRFFeaturizer, CRFTagger

    folder = _package_folder("underthesea") / "pipeline" / "word_tokenize" / "models"
    model = next(folder.glob("ws_crf_*"))
    tagger = CRFTagger()
    tagger.load(str(model / "models.bin"))
    # Pickles, but trusted as much as the installed package's code.
    features = pickle.loads((model / "features.bin").read_bytes())  # noqa: S301
    dictionary = pickle.loads((model / "dictionary.bin").read_bytes())  # noqa: S301
    return CRFFeaturizer(features, dictionary), tagger


def _package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return Path(spec.submodule_search_locations[0])
