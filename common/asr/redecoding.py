"""Windows whose decoding left speech out are decoded again.

Whisper may stop in the middle of a window, or skip the speech between two pauses, and still be
confident: none of its own numbers shows it. So the words' times are compared with the speech that
the voice activity network finds. Where much speech has no words, the window is decoded again in
pieces, cut in silence. Measured (base, utterances of LibriSpeech test-other with pauses
between them, 7 to 8 minutes each; 20 minutes of an interview):

=======================  =======================  =============  ============
audio                    windows decoded again    word errors    and without
=======================  =======================  =============  ============
pauses of 0.8 to 1.5 s   3 of 18                  12.0 %         20.8 %
others of them           2 of 18                  12.2 %         16.8 %
pauses of 0.3 to 0.6 s   2 of 17                  12.2 %         17.4 %
the interview            0 of 48
=======================  =======================  =============  ============

The comparison takes 3 ms a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples, SpeechEngine
from common.asr.segments import cut
from common.audio.silero import SileroNetwork
from common.audio.vad import FRAME_MS, voiced
from common.domain.cutting import CutOptions
from common.domain.detection import LANGUAGE_MISMATCH
from common.domain.values import SAMPLES_PER_MS, Detected, Segment, Span, Word, join_spans

LEFT_OUT_MS = 2_000
"""This much speech without a word in it is decoded again."""
WORD_MS = 800
"""A longer word spans a pause, or skipped speech: only its last part counts as recognized."""
MARGIN_MS = 200
"""Tolerance of a word's times."""

PIECE_MS = 6_000
"""About the length of a piece; in 10 s, Whisper may skip speech again."""
GAP_MS = 300
"""No cut in a shorter pause."""
PAD_MS = CutOptions().pad_ms
"""Silence kept at each side of a piece, as in windows."""

Frames = NDArray[np.bool_]
"""A flag for each frame of 32 ms; shape (frames,)."""


class Redecoding:
    """An engine that decodes again where it left speech out; see `common.asr.engine.SpeechEngine`.

    The new segments carry the flag ``retried``.
    """

    def __init__(self, engine: SpeechEngine, network: SileroNetwork) -> None:
        self.name = engine.name
        self.encoder = engine.encoder
        self._engine = engine
        self._network = network

    def languages(
        self, windows: Sequence[Samples], *, quick: bool = False
    ) -> list[Mapping[str, float]]:
        """See `SpeechEngine.languages`."""
        return self._engine.languages(windows, quick=quick)

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """See `SpeechEngine.transcribe`."""
        timed = replace(options, word_timestamps=True)
        decoded = self._engine.transcribe(windows, timed)
        for index, window in enumerate(windows):
            if any(segment.detected for segment in decoded[index]):
                continue  # in the wrong language, pieces decode no better
            speech = voiced(self._network, window)
            if (
                longest_run(speech, covered_frames(decoded[index], len(speech))) * FRAME_MS
                < LEFT_OUT_MS
            ):
                continue
            (languages,) = self._engine.languages([window])
            if detected := guards.mismatch(options.language, languages):
                decoded[index] = tuple(_with_detected(each, detected) for each in decoded[index])
            else:
                decoded[index] = self._in_pieces(window, speech, decoded[index], timed)
        if options.word_timestamps:
            return decoded
        return [tuple(replace(each, words=()) for each in segments) for segments in decoded]

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],
        options: DecodingOptions,
    ) -> list[tuple[Word, ...] | None]:
        """See `SpeechEngine.align`."""
        return self._engine.align(windows, texts, options)

    def _in_pieces(
        self,
        window: Samples,
        speech: Frames,
        before: tuple[Segment, ...],
        options: DecodingOptions,
    ) -> tuple[Segment, ...]:
        """The window's segments: ``before``, or those of its pieces where they leave out less."""
        spans = pieces(speech, len(window) // SAMPLES_PER_MS)
        if len(spans) < 2:
            return before
        decoded = self._engine.transcribe([cut(window, span) for span in spans], options)
        after = tuple(
            replace(segment.shifted(span.start_ms), flags=_with_retried(segment.flags))
            for span, segments in zip(spans, decoded, strict=True)
            for segment in segments
        )
        return min(before, after, key=lambda segments: left_out(speech, segments))


def covered_frames(segments: Sequence[Segment], frames: int) -> Frames:
    """Which of ``frames`` frames have a word of the segments."""
    covered = np.zeros(frames, np.bool_)
    for segment in segments:
        for word in segment.words:
            start_ms = max(word.span.start_ms, word.span.end_ms - WORD_MS) - MARGIN_MS
            end_ms = word.span.end_ms + MARGIN_MS
            covered[max(0, start_ms // FRAME_MS) : -(-end_ms // FRAME_MS)] = True
    return covered


def longest_run(speech: Frames, covered: Frames) -> int:
    """The most frames of speech between two covered frames."""
    missing = np.cumsum(speech & ~covered)
    marks = np.concatenate([[0], missing[covered], missing[-1:]])
    return int(np.diff(marks).max(initial=0))


def left_out(speech: Frames, segments: Sequence[Segment]) -> int:
    """How many frames of speech have no words, or doubtful ones."""
    sure = [segment for segment in segments if guards.DOUBTFUL.isdisjoint(segment.flags)]
    return int(np.count_nonzero(speech & ~covered_frames(sure, len(speech))))


def pieces(speech: Frames, duration_ms: int, piece_ms: int = PIECE_MS) -> list[Span]:
    """Where to cut a window: pieces of up to ``piece_ms``, longer where there is no pause.

    They are in order and do not overlap; only silence lies between them.
    """
    phrases = join_spans(_runs(speech), lambda before, run: run.start_ms - before.end_ms < GAP_MS)
    groups = join_spans(phrases, lambda before, run: run.end_ms - before.start_ms <= piece_ms)
    cuts = [(left.end_ms + right.start_ms) // 2 for left, right in pairwise(groups)]
    return [
        Span(max(start, group.start_ms - PAD_MS), min(end, group.end_ms + PAD_MS))
        for group, start, end in zip(groups, [0, *cuts], [*cuts, duration_ms], strict=False)
    ]


def _runs(speech: Frames) -> list[Span]:
    edges = np.flatnonzero(np.diff(speech.astype(np.int8), prepend=0, append=0)) * FRAME_MS
    return [Span(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _with_detected(segment: Segment, detected: Detected) -> Segment:
    flags = (*segment.flags, LANGUAGE_MISMATCH)
    return replace(segment, flags=flags, detected=detected)


def _with_retried(flags: tuple[str, ...]) -> tuple[str, ...]:
    return flags if guards.RETRIED in flags else (guards.RETRIED, *flags)
