"""Which language a recording is in, from what an engine says of some of its windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from common.domain.values import Segment

LANGUAGE_MISMATCH = "language_mismatch"
"""The flag of a segment in another language than the one asked for, and the warning of its job."""
MIXED_LANGUAGES = "mixed_languages"
"""The warning that the recording, whose language was detected, has others as well."""
LANGUAGE_UNCERTAIN = "language_uncertain"
"""The warning that no window's language could be detected with confidence."""

SURE = 0.7
"""The least probability of a window that counts. Music, hums and noise have one of 0.2 to 0.7
(Whisper tiny and base), clear speech one of 0.9."""
MIXED_SHARE = 0.1
"""So much of the speech in another language makes a recording mixed."""

MOST_ASKED = 7
"""In so many windows at most the language is detected before the first text."""
AGREEING = 3
"""So many windows that are sure and agree are enough."""
SMALLEST = 0.005
"""Less probable languages are not reported."""


class Detection:
    """The language of a recording, from that of some of its windows.

    Each counts by how much speech it holds. One that is not sure does not count where any other is
    sure: it is mostly music.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[int, Mapping[str, float]]] = []

    def add(self, speech_ms: int, languages: Mapping[str, float]) -> None:
        """Count a window that has so much speech, and these probabilities."""
        self._asked.append((max(1, speech_ms), languages))

    @property
    def is_settled(self) -> bool:
        """Whether more windows would hardly change the language."""
        sure = self._sure()
        return len(sure) >= AGREEING and len({_first(each) for _, each in sure}) == 1

    @property
    def probabilities(self) -> dict[str, float]:
        """The mean of those that count, the most probable first; empty without any."""
        return _means(self._sure() or self._asked)

    @property
    def warnings(self) -> list[str]:
        """Whether the windows disagree, or none is sure."""
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
    """In which of these windows to detect the language, by how much speech each has, in order.

    They are spread over all of them, and so are the first few: each has the most speech of its
    stretch.
    """
    count = len(speech_ms)
    stretches = min(count, MOST_ASKED)
    edges = [count * edge // stretches for edge in range(stretches + 1)] if count else []
    chosen = [
        max(range(start, end), key=lambda at: (speech_ms[at], -at))
        for start, end in pairwise(edges)
    ]
    return [*chosen[::AGREEING], *chosen[1::AGREEING], *chosen[2::AGREEING]]


def mismatched(segments: Iterable[Segment]) -> dict[str, float]:
    """The languages found where the one asked for failed, the most probable first.

    Their probabilities are means over all that time, so that they add up to 1 at most.
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
    """The mean probability of each language over what counts by its milliseconds."""
    total = sum(weight for weight, _ in found)
    means = {
        code: sum(weight * each.get(code, 0.0) for weight, each in found) / total
        for code in {code for _, each in found for code in each}
    }
    ranked = sorted(means.items(), key=lambda item: (-item[1], item[0]))
    return {code: round(mean, 3) for code, mean in ranked if mean >= SMALLEST}


def _first(languages: Mapping[str, float]) -> str:
    return max(languages, key=lambda code: languages[code])
