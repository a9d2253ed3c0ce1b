"""Speech that a decoding left out is heard again.

Whisper may stop in the middle of a window, or jump over what is said between two pauses, and be
sure of the text that it has: no number of its own tells. So the words' times are laid over what the
voice activity network takes for speech. Where much of it has no words the window is heard again in
pieces, cut where nobody speaks. Measured (base, utterances of LibriSpeech test-other with pauses
between them, 7 to 8 minutes each; 20 minutes of an interview):

=======================  =======================  =============  ============
sound                    windows heard again      word errors    and without
=======================  =======================  =============  ============
pauses of 0.8 to 1.5 s   3 of 18                  12.0 %         20.8 %
others of them           2 of 18                  12.2 %         16.8 %
pauses of 0.3 to 0.6 s   2 of 17                  12.2 %         17.4 %
the interview            0 of 48
=======================  =======================  =============  ============

Looking takes 3 ms a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples, SpeechEngine
from common.audio.silero import SileroNetwork
from common.audio.vad import FRAME_MS, voiced
from common.domain.cutting import CutOptions
from common.domain.detection import LANGUAGE_MISMATCH
from common.domain.values import SAMPLES_PER_MS, Detected, Segment, Span

LEFT_OUT_MS = 2_000
"""So much speech without a word between it is too much."""
WORD_MS = 800
"""A longer word has a pause in it, or what is left out: its last part is what was heard."""
MARGIN_MS = 200
"""By how much a word's times may be wrong."""

PIECE_MS = 6_000
"""Pieces are about as long; of 10 s, Whisper may leave something out again."""
GAP_MS = 300
"""Shorter pauses are no place to cut."""
PAD_MS = CutOptions().pad_ms
"""Silence that a piece keeps at each side, as windows do."""

Frames = NDArray[np.bool_]
"""Something that is so, or not, in each frame of 32 ms; shape (frames,)."""


class Thorough:
    """An engine that hears again what it has left out; see `common.asr.engine.SpeechEngine`.

    What is heard again carries the flag ``retried``.
    """

    def __init__(self, engine: SpeechEngine, network: SileroNetwork) -> None:
        self.name = engine.name
        self._engine = engine
        self._network = network

    def languages(self, windows: Sequence[Samples]) -> list[Mapping[str, float]]:
        """See `SpeechEngine.languages`."""
        return self._engine.languages(windows)

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """See `SpeechEngine.transcribe`."""
        timed = replace(options, word_timestamps=True)
        heard = self._engine.transcribe(windows, timed)
        for index, window in enumerate(windows):
            if any(segment.detected for segment in heard[index]):
                continue  # in the wrong language no piece has a better text
            speech = voiced(self._network, window)
            if longest_run(speech, told(heard[index], len(speech))) * FRAME_MS < LEFT_OUT_MS:
                continue
            (languages,) = self._engine.languages([window])
            if detected := guards.mismatch(options.language, languages):
                heard[index] = tuple(_with_detected(each, detected) for each in heard[index])
            else:
                heard[index] = self._again(window, speech, heard[index], timed)
        if options.word_timestamps:
            return heard
        return [tuple(replace(each, words=()) for each in segments) for segments in heard]

    def _again(
        self,
        window: Samples,
        speech: Frames,
        before: tuple[Segment, ...],
        options: DecodingOptions,
    ) -> tuple[Segment, ...]:
        """The window's segments, of the two hearings of that which leaves out less."""
        spans = pieces(speech, len(window) // SAMPLES_PER_MS)
        if len(spans) < 2:
            return before
        heard = self._engine.transcribe(
            [
                window[span.start_ms * SAMPLES_PER_MS : span.end_ms * SAMPLES_PER_MS]
                for span in spans
            ],
            options,
        )
        after = tuple(
            replace(segment.shifted(span.start_ms), flags=_with_retried(segment.flags))
            for span, segments in zip(spans, heard, strict=True)
            for segment in segments
        )
        return min(before, after, key=lambda segments: left_out(speech, segments))


def told(segments: Sequence[Segment], frames: int) -> Frames:
    """In which of so many frames the segments have a word."""
    covered = np.zeros(frames, np.bool_)
    for segment in segments:
        for word in segment.words:
            start_ms = max(word.span.start_ms, word.span.end_ms - WORD_MS) - MARGIN_MS
            end_ms = word.span.end_ms + MARGIN_MS
            covered[max(0, start_ms // FRAME_MS) : -(-end_ms // FRAME_MS)] = True
    return covered


def longest_run(speech: Frames, covered: Frames) -> int:
    """The most frames of speech between two frames that are covered."""
    missing = np.cumsum(speech & ~covered)
    marks = np.concatenate([[0], missing[covered], missing[-1:]])
    return int(np.diff(marks).max(initial=0))


def left_out(speech: Frames, segments: Sequence[Segment]) -> int:
    """How many frames of speech have no words that can be relied on."""
    sure = [segment for segment in segments if guards.DOUBTFUL.isdisjoint(segment.flags)]
    return int(np.count_nonzero(speech & ~told(sure, len(speech))))


def pieces(speech: Frames, duration_ms: int) -> list[Span]:
    """Where to cut a window: stretches of about `PIECE_MS`, longer where there is no pause.

    They are in order and do not overlap; between them there is silence alone.
    """
    phrases = _joined(_runs(speech), lambda before, run: run.start_ms - before.end_ms < GAP_MS)
    groups = _joined(phrases, lambda before, run: run.end_ms - before.start_ms <= PIECE_MS)
    cuts = [(left.end_ms + right.start_ms) // 2 for left, right in pairwise(groups)]
    return [
        Span(max(start, group.start_ms - PAD_MS), min(end, group.end_ms + PAD_MS))
        for group, start, end in zip(groups, [0, *cuts], [*cuts, duration_ms], strict=False)
    ]


def _runs(speech: Frames) -> list[Span]:
    edges = np.flatnonzero(np.diff(speech.astype(np.int8), prepend=0, append=0)) * FRAME_MS
    return [Span(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _joined(spans: Iterable[Span], belongs: Callable[[Span, Span], bool]) -> list[Span]:
    """Each span joined to the one before it where it belongs to that."""
    groups: list[Span] = []
    for span in spans:
        if groups and belongs(groups[-1], span):
            groups[-1] = Span(groups[-1].start_ms, span.end_ms)
        else:
            groups.append(span)
    return groups


def _with_detected(segment: Segment, detected: Detected) -> Segment:
    flags = (*segment.flags, LANGUAGE_MISMATCH)
    return replace(segment, flags=flags, detected=detected)


def _with_retried(flags: tuple[str, ...]) -> tuple[str, ...]:
    return flags if guards.RETRIED in flags else (guards.RETRIED, *flags)
