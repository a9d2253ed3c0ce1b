"""Words from the pieces that a network of sherpa-onnx emits, and the times when it emits them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from statistics import fmean
from typing import Self

from common.domain.values import Span, Word

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Characters of scripts without spaces: each begins a word."""


@dataclass(frozen=True, slots=True)
class Emission:
    """How long before a word's first piece it starts, and how long after its last one it ends."""

    lead_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """A result of sherpa-onnx: ``text`` is that of all ``tokens``, each emitted at its time.

    ``logprobs`` has the log probability of each token; it is empty where the network gives none.
    """

    text: str
    tokens: Sequence[str]
    emitted_ms: Sequence[int]
    logprobs: Sequence[float] = ()

    @property
    def avg_logprob(self) -> float:
        """The mean log probability, at most 0; 0 where the network gives none."""
        return min(0.0, fmean(self.logprobs)) if self.logprobs else 0.0

    def in_lower_case(self) -> Self:
        """The same, with the text in lower case."""
        tokens = [token.lower() for token in self.tokens]
        return replace(self, text=self.text.lower(), tokens=tokens)

    def words(self, emission: Emission, whole: Span) -> list[Word]:
        """The words, inside ``whole``; their start and end are estimated, as ``emission`` says.

        Their probability is 1.0 where the network gives none.
        """
        probabilities = [min(1.0, exp(each)) for each in self.logprobs] or [1.0] * len(self.tokens)
        words = []
        for text, start, end in self._texts():
            start_ms = max(0, self.emitted_ms[start] - emission.lead_ms)
            end_ms = self.emitted_ms[end - 1] + emission.last_ms
            if end < len(self.emitted_ms):
                end_ms = min(end_ms, self.emitted_ms[end] - emission.lead_ms)
            span = Span(start_ms, max(start_ms, end_ms)).clipped(whole)
            words.append(Word(text, span, round(fmean(probabilities[start:end]), 3)))
        return words

    def _texts(self) -> list[tuple[str, int, int]]:
        """The text of each word, with its first piece and the one after its last.

        A piece with a leading space begins a word.
        """
        pieces = [piece.replace("\u2581", " ") for piece in self.tokens]
        first = [at for at, piece in enumerate(pieces) if at == 0 or begins_word(piece)]
        spans = list(pairwise([*first, len(pieces)]))
        texts = ["".join(pieces[start:end]) for start, end in spans]
        if "".join(texts).strip() != self.text.strip():
            # Byte pieces, which are text only together.
            texts = [f" {text}" for text in self.text.split()]
            if len(texts) != len(spans):
                texts, spans = [f" {self.text.strip()}"], [(0, len(pieces))]
        found = zip(texts, spans, strict=True)
        return [(text, start, end) for text, (start, end) in found if text.strip()]


def begins_word(piece: str) -> bool:
    """Whether a word begins with ``piece``."""
    return piece.startswith(" ") or _UNSPACED.match(piece) is not None
