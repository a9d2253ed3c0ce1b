"""The tokenizer of a model: from PhoBERT's own two files, or from any model's `tokenizer.json`.

PhoBERT's are a fastBPE vocabulary (``vocab.txt``: a token and its count a line, ``@@`` after a
token that does not end its word) and merges (``bpe.codes``). transformers reads them with Python
code alone; here they are turned into the BPE of the tokenizers library, which gives the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

VOCABULARY = "vocab.txt"
MERGES = "bpe.codes"
ANY_TOKENIZER = "tokenizer.json"

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""PhoBERT's special tokens by their ids, before those of the vocabulary."""
_UNKNOWN = _SPECIAL.index("<unk>")
_END = "</w>"
"""Suffix of a symbol that ends its word, in ``bpe.codes``."""
_GOES_ON = "@@"
"""Suffix of a token that does not, in ``vocab.txt``."""
_NONE = np.zeros(0, np.int64)
_WORD = re.compile(r"\S+\n?")
"""Words as in transformers: a line break belongs to the word before it."""


class Tokenizer(NamedTuple):
    """Converts texts to ids. Stateless, thread-safe, on one thread."""

    encode: Callable[[str], Ids]
    """The ids of a text, without special ones: ``</s>`` in a text is plain text."""
    first: int
    """The id that opens every input."""
    last: int
    """The id that closes every input."""
    size: int
    """The number of ids, special tokens included."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read PhoBERT's files, or else ``tokenizer.json``.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: they are malformed; the text says how.
    """
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        return _phobert(_read_vocabulary(folder / VOCABULARY), _read_merges(folder / MERGES))
    if (folder / ANY_TOKENIZER).is_file():
        return _any(folder / ANY_TOKENIZER)
    raise FileNotFoundError(f"it has neither {VOCABULARY} with {MERGES} nor {ANY_TOKENIZER}")


def _phobert(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    # The library needs an id for every symbol of a merge, also for those that the vocabulary lacks.
    # So symbols get ids of their own here, which are mapped to the vocabulary's afterwards.
    single = [symbol for symbol in map(_symbol, ids) if len(symbol.removesuffix(_END)) == 1]
    merged = [symbol for one, other in merges for symbol in (one, other, one + other)]
    symbols = [_SPECIAL[_UNKNOWN], *dict.fromkeys([*single, *merged])]
    published = np.array([ids.get(_token(symbol), _UNKNOWN) for symbol in symbols])
    published[0] = _UNKNOWN
    bpe = BPE(
        {symbol: number for number, symbol in enumerate(symbols)},
        merges,
        unk_token=_SPECIAL[_UNKNOWN],
        end_of_word_suffix=_END,
    )
    backend = Backend(bpe)

    def encode(text: str) -> Ids:
        words = _WORD.findall(text)
        return published[backend.encode(words, is_pretokenized=True).ids] if words else _NONE

    return Tokenizer(encode, _SPECIAL.index("<s>"), _SPECIAL.index("</s>"), len(ids) + 1)


def _any(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    opening_and_closing = backend.encode("").ids
    if len(opening_and_closing) != 2:
        raise ValueError(f"{path.name} does not put one token before a text and one after it")
    backend.encode_special_tokens = True

    def encode(text: str) -> Ids:
        return np.array(backend.encode(text, add_special_tokens=False).ids, np.int64)

    first, last = opening_and_closing
    return Tokenizer(encode, first, last, backend.get_vocab_size())


def _symbol(token: str) -> str:
    """A token of the vocabulary as the merges write it."""
    return token.removesuffix(_GOES_ON) if token.endswith(_GOES_ON) else token + _END


def _token(symbol: str) -> str:
    """A symbol of the merges as the vocabulary writes it."""
    return symbol.removesuffix(_END) if symbol.endswith(_END) else symbol + _GOES_ON


def _read_vocabulary(path: Path) -> dict[str, int]:
    ids = {token: number for number, token in enumerate(_SPECIAL)}
    for number, line in enumerate(_read(path).removesuffix("\n").split("\n"), start=1):
        token, space, _ = line.strip().rpartition(" ")
        if not space:
            raise ValueError(
                f"{path.name}, line {number}: expected a token and a count, got {line[:40]!r}"
            )
        ids[token] = len(ids)
    return ids


def _read_merges(path: Path) -> list[tuple[str, str]]:
    ranks: dict[tuple[str, str], int] = {}
    for rank, line in enumerate(_read(path).split("\n")):
        parts = line.split()[:-1]  # a pair and its count; PhoBERT has a few lines of other kinds
        if len(parts) == 2:
            ranks[parts[0], parts[1]] = rank
    if not ranks:
        raise ValueError(f"{path.name} has no merges")
    return sorted(ranks, key=ranks.__getitem__)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start})") from error
