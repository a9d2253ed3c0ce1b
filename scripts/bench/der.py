"""The diarization error rate (DER), as pyannote.metrics computes it.

Missed speech, false alarms and confused speakers, over all speech of the reference; speech of two
people at once counts twice. Speakers are mapped one to one so that they agree as long as possible.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from common.domain.values import Span

Turns = Sequence[tuple[Span, str]]
"""Who speaks when; turns of unlike speakers may overlap."""


@dataclass(frozen=True, slots=True)
class Errors:
    """The parts of the DER, in ms. ``total`` is the speech of the reference."""

    missed: int
    false_alarm: int
    confused: int
    total: int

    @property
    def rate(self) -> float:
        """The DER in [0, ...); 1 for a false alarm where the reference has no speech."""
        wrong = self.missed + self.false_alarm + self.confused
        return wrong / self.total if self.total else float(wrong > 0)

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confused + other.confused,
            self.total + other.total,
        )


def score(reference: Turns, found: Turns, *, collar_ms: int = 0) -> Errors:
    """Compare the turns ``found`` with those of the reference.

    ``collar_ms``, half of it on each side, is left out around every edge of the reference's turns:
    pyannote.metrics' meaning. md-eval's collar of 0.25 s is 500 here.
    """
    stretches = list(_stretches(reference, found, _collars(reference, collar_ms)))
    mapping = map_speakers(stretches)
    errors = Errors(0, 0, 0, 0)
    for length, said, hypothesis in stretches:
        agreed = sum(mapping.get(speaker) in hypothesis for speaker in said)
        errors += Errors(
            missed=max(0, len(said) - len(hypothesis)) * length,
            false_alarm=max(0, len(hypothesis) - len(said)) * length,
            confused=(min(len(said), len(hypothesis)) - agreed) * length,
            total=len(said) * length,
        )
    return errors


Stretch = tuple[int, frozenset[str], frozenset[str]]
"""A length in which nothing changes, and who speaks in it: in the reference, and as found."""


def _collars(reference: Turns, collar_ms: int) -> list[Span]:
    half = collar_ms // 2
    edges = {edge for span, _ in reference for edge in (span.start_ms, span.end_ms)}
    return [Span(max(0, edge - half), edge + half) for edge in edges if half]


def _stretches(reference: Turns, found: Turns, left_out: Sequence[Span]) -> Iterator[Stretch]:
    changes: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    sides = (reference, found, [(span, "") for span in left_out])
    for side, turns in enumerate(sides):
        for span, speaker in turns:
            changes[span.start_ms].append((side, 1, speaker))
            changes[span.end_ms].append((side, -1, speaker))
    open_turns: list[dict[str, int]] = [defaultdict(int) for _ in sides]
    for start, end in pairwise(sorted(changes)):
        for side, step, speaker in changes[start]:
            open_turns[side][speaker] += step
        said, hypothesis, skipped = (
            frozenset(speaker for speaker, count in turns.items() if count) for turns in open_turns
        )
        if not skipped:
            yield end - start, said, hypothesis


def map_speakers(stretches: Iterable[Stretch]) -> Mapping[str, str]:
    """The speaker found for each of the reference's, so that they agree as long as possible."""
    together: dict[tuple[str, str], int] = defaultdict(int)
    for length, said, hypothesis in stretches:
        for speaker in said:
            for other in hypothesis:
                together[speaker, other] += length
    ours = sorted({speaker for speaker, _ in together})
    theirs = sorted({other for _, other in together})
    few, many = (ours, theirs) if len(ours) <= len(theirs) else (theirs, ours)

    @cache
    def best(at: int, left: int) -> tuple[int, tuple[tuple[str, str], ...]]:
        """The longest agreement of ``many[at:]`` with the set of bits ``left`` of ``few``."""
        if at == len(many) or not left:
            return 0, ()
        found = [best(at + 1, left)]
        for bit, speaker in enumerate(few):
            if left >> bit & 1:
                pair = (speaker, many[at]) if few is ours else (many[at], speaker)
                length, pairs = best(at + 1, left & ~(1 << bit))
                found.append((length + together.get(pair, 0), (pair, *pairs)))
        return max(found)

    return dict(best(0, (1 << len(few)) - 1)[1])
