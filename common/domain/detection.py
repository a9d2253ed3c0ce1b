"""The languages of a recording, from an engine's probabilities for parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf, log

from common.domain.values import Segment

LANGUAGE_MISMATCH = "language_mismatch"
"""The flag of a segment in another language than the requested one; also its job's warning."""
MIXED_LANGUAGES = "mixed_languages"
"""The warning that a recording with a detected language has others as well."""
LANGUAGE_UNCERTAIN = "language_uncertain"
"""The warning that no window's language could be detected with confidence."""

SURE = 0.7
"""The least probability of a window that counts. Music, hums and noise have one of 0.2 to 0.7
(Whisper tiny and base), clear speech one of 0.9."""
MIXED_SHARE = 0.1
"""So much of the speech in another language makes a recording mixed."""

MOST_ASKED = 7
"""At most so many windows are used to detect the language before the first text."""
AGREEING = 3
"""So many confident windows that agree are enough."""
SMALLEST = 0.005
"""Less probable languages are not reported."""

SWITCH_COST = 0.5
"""What each change of the language costs, in nats: a piece between two of another language needs a
probability of 0.73. Measured (base; 30 Vietnamese and 30 English clips): of clips that alternate,
0.5 finds 97.6 % of the speech in its language, 1 finds 96.2 %, 3 finds 81.9 %; of clips in turns
of two, each up to 2 finds 98.9 %."""
LEAST = 0.001
"""No language of a piece counts as less probable."""


class Detection:
    """The language of a recording, from that of some of its windows.

    Each is weighted by its speech. If any window is confident, the others do not count: they are
    mostly music.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[int, Mapping[str, float]]] = []

    def add(self, speech_ms: int, languages: Mapping[str, float]) -> None:
        """Add a window with so much speech and these probabilities."""
        self._asked.append((max(1, speech_ms), languages))

    @property
    def is_settled(self) -> bool:
        """Whether more windows are unlikely to change the language."""
        sure = self._sure()
        return len(sure) >= AGREEING and len({_first(each) for _, each in sure}) == 1

    @property
    def probabilities(self) -> dict[str, float]:
        """The mean of the windows that count, most probable language first; empty without any."""
        return _means(self._sure() or self._asked)

    @property
    def warnings(self) -> list[str]:
        """Warnings that the windows disagree, or that none is confident."""
        if not self._asked:
            return []
        sure = self._sure()
        if not sure:
            return [LANGUAGE_UNCERTAIN]
        spoken_ms: dict[str, int] = {}
        for speech_ms, each in sure:
            spoken_ms[_first(each)] = spoken_ms.get(_first(each), 0) + speech_ms
        others = sum(spoken_ms.values()) - max(spoken_ms.values())
        return [MIXED_LANGUAGES] if others >= MIXED_SHARE * sum(spoken_ms.values()) else []

    def _sure(self) -> list[tuple[int, Mapping[str, float]]]:
        return [asked for asked in self._asked if max(asked[1].values()) >= SURE]


def spread(speech_ms: Sequence[int]) -> list[int]:
    """The windows in which to detect the language, in order, by the speech of each.

    They are spread over the recording, and so are the first few: each has the most speech in its
    part of the recording.
    """
    count = len(speech_ms)
    stretches = min(count, MOST_ASKED)
    edges = [count * edge // stretches for edge in range(stretches + 1)] if count else []
    chosen = [
        max(range(start, end), key=lambda at: (speech_ms[at], -at))
        for start, end in pairwise(edges)
    ]
    return [*chosen[::AGREEING], *chosen[1::AGREEING], *chosen[2::AGREEING]]


def among(languages: Mapping[str, float], declared: Iterable[str]) -> dict[str, float]:
    """The probabilities of the declared languages; they sum to at most 1."""
    return {code: languages.get(code, 0.0) for code in declared}


def follow(pieces: Iterable[Mapping[str, float]], declared: Sequence[str], first: str) -> list[str]:
    """The language of each piece of speech, in order: one of ``declared``.

    The most probable path (Viterbi): each change costs `SWITCH_COST`, and before the first piece
    the language is ``first``. A piece counts by the probability that the declared languages have
    together: the less they have, the more it follows its neighbours.
    """
    costs = {code: 0.0 if code == first else inf for code in declared}
    ways: list[dict[str, str]] = []
    for piece in pieces:
        ways.append({code: _cheapest(costs, code) for code in declared})
        known = sum(among(piece, declared).values())
        costs = {
            code: costs[before]
            + SWITCH_COST * (before != code)
            + (-known * log(max(LEAST, piece.get(code, 0.0) / known)) if known else 0.0)
            for code, before in ways[-1].items()
        }
    path = [min(declared, key=costs.__getitem__)] if ways else []
    for way in ways[:0:-1]:
        path.append(way[path[-1]])
    return path[::-1]


def _cheapest(costs: Mapping[str, float], code: str) -> str:
    """From which language it costs least to come to this one; itself, of equals."""

    def cost(before: str) -> tuple[float, bool]:
        return costs[before] + SWITCH_COST * (before != code), before != code

    return min(costs, key=cost)


def mismatched(segments: Iterable[Segment]) -> dict[str, float]:
    """The detected languages of segments that are not in the requested one, most probable first.

    Their probabilities are means over the time of all these segments: they sum to at most 1.
    """
    found = [
        (
            max(1, segment.span.duration_ms),
            {segment.detected.language: segment.detected.probability},
        )
        for segment in segments
        if segment.detected is not None
    ]
    return _means(found)


def _means(found: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """The mean probability of each language, weighted by milliseconds."""
    total = sum(weight for weight, _ in found)
    means = {
        code: sum(weight * each.get(code, 0.0) for weight, each in found) / total
        for code in {code for _, each in found for code in each}
    }
    ranked = sorted(means.items(), key=lambda item: (-item[1], item[0]))
    return {code: round(mean, 3) for code, mean in ranked if mean >= SMALLEST}


def _first(languages: Mapping[str, float]) -> str:
    return max(languages, key=lambda code: languages[code])
