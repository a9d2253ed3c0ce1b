"""Windows in which several languages are spoken: which part of a window is in which.

A window of 30 s often holds more than one: of 30 Vietnamese and 30 English clips, two of each in
turn with 0.5 s between them, 13 of 15 windows do, and with windows of 10 s 11 of 54. So the
language is detected for each piece of speech between two pauses. Neighbours of one language are
decoded together, a window of one language as a whole. Measured on these clips (Whisper base), the
speech whose language is right, by the length of the pieces:

===================  =====  =====  =====  =====
clips in turns of    2 s    3 s    4 s    6 s
===================  =====  =====  =====  =====
1                    98.5   97.6   97.0   89.3
2                    98.9   98.9   98.3   95.3
5                    99.0   99.0   99.0   98.1
===================  =====  =====  =====  =====

Detection takes 9 s of processor time for 390 s of audio, where decoding takes 30 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

from common.asr.engine import Samples, SpeechEngine
from common.asr.redecoding import pieces
from common.asr.segments import cut
from common.audio.silero import SileroNetwork
from common.audio.vad import voiced
from common.domain.detection import follow
from common.domain.values import SAMPLES_PER_MS, Span

PIECE_MS = 3_000
"""About the length of a piece; see above."""

LanguagePart = tuple[Span, str]
"""A part of a window and its language; times count from the window's start."""


def parts_by_language(
    windows: Sequence[Samples],
    detector: SpeechEngine,
    network: SileroNetwork,
    declared: Sequence[str],
    first: str,
) -> list[list[LanguagePart]]:
    """The parts of each window, in order, at least one; each has another language than the next.

    ``declared`` are the languages to choose from, ``first`` is that of the recording.

    Raises:
        common.errors.EngineFailed: the detector failed (transient).
    """
    spans = [pieces(voiced(network, it), whole(it).duration_ms, PIECE_MS) for it in windows]
    cuts = zip(windows, spans, strict=True)
    speech = [cut(window, span) for window, each in cuts for span in each]
    found = iter(detector.languages(speech, quick=True))
    # A window without speech says nothing about its language.
    probabilities = [[next(found) for _ in each] or [{}] for each in spans]
    languages = iter(follow(chain.from_iterable(probabilities), declared, first))
    return [
        _joined([(span, next(languages)) for span in each or [whole(window)]], window)
        for window, each in zip(windows, spans, strict=True)
    ]


def whole(window: Samples) -> Span:
    """All of a window."""
    return Span(0, len(window) // SAMPLES_PER_MS)


def _joined(parts: Sequence[LanguagePart], window: Samples) -> list[LanguagePart]:
    """Neighbours of one language as one part; a single one is the whole window."""
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part[1])]
    if len(groups) == 1:
        return [(whole(window), parts[0][1])]
    return [(Span(group[0][0].start_ms, group[-1][0].end_ms), group[0][1]) for group in groups]
