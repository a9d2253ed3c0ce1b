"""Turns a decoded window into its public segments: guards, splits to subtitle size, flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.asr.engine import Samples
from common.asr.guards import (
    DecodingResult,
    collapse_repeats,
    doubts,
    is_hallucination,
    is_silence,
    is_too_fast,
)
from common.domain.clauses import CLAUSE_ENDS, SENTENCE_ENDS, ends_sentence
from common.domain.subtitles import SCREEN_LETTERS, SCREEN_MS
from common.domain.values import SAMPLES_PER_MS, Segment, Span, Word

PAUSE_MS = 600
LONG_PAUSE_MS = 2_000
"""A pause ends a segment with enough text, a long one ends any."""
MIN_LETTERS = 15
"""Shorter text ("Yes.", "And") stays together with what follows."""

FRAME_MS = 20
MIN_PAUSE_MS = 300
"""A shorter silence may be a plosive's closure or an alignment error."""
MIN_CONTRAST_DB = 15.0
"""With less contrast the level cannot separate speech from noise."""
PAUSE_LEVEL = 0.35
"""A level up to this share between quiet and loud (in dB) counts as a pause."""


def segments_of(
    decoding: DecodingResult, words: Sequence[Word], samples: Samples, *, keep_words: bool
) -> tuple[Segment, ...]:
    """The segments of one window; times count from its start and stay inside it.

    A segment has the numbers of its window's decoding, as in openai/whisper. Hallucinations on
    silence (`common.asr.guards`) are left out.
    """
    if is_silence(decoding):
        return ()
    whole = Span(0, len(samples) // SAMPLES_PER_MS)
    inside = [
        Word(word.text, word.span.clipped(whole), round(word.probability, 3)) for word in words
    ]
    kept, collapsed = collapse_repeats(without_pauses(inside, samples))
    if is_too_fast("".join(word.text for word in kept), whole.duration_ms):
        return ()
    segments = []
    for group in split(kept):
        text = "".join(word.text for word in group)
        span = Span(group[0].span.start_ms, group[-1].span.end_ms)
        loudness = loudness_dbfs(samples, span)
        if not text.strip() or is_hallucination(text, decoding, loudness):
            continue
        probability = sum(word.probability for word in group) / len(group)
        segments.append(
            Segment(
                span=span,
                text=text,
                words=tuple(group) if keep_words else (),
                avg_logprob=round(min(0.0, decoding.avg_logprob), 3),
                compression_ratio=round(decoding.compression_ratio, 3),
                no_speech_prob=round(decoding.no_speech_prob, 3),
                temperature=decoding.temperature,
                flags=doubts(decoding, text, probability, collapsed=collapsed),
                detected=decoding.detected,
            )
        )
    return tuple(segments)


def split(words: Sequence[Word]) -> list[list[Word]]:
    """The words in subtitle-sized groups: cut at pauses, after sentences, and where too long.

    Every word lands in exactly one group, in order. A group that is too long is cut at its most
    natural place (a clause's end, else the longest pause near the middle) until all parts fit.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and not _ends_after(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [part for group in groups for part in _fitting(group)]


def without_pauses(words: Sequence[Word], samples: Samples) -> list[Word]:
    """The words without the silence that the alignment put at their beginning or end.

    Cross-attention finds where a word ends but starts it where the previous one ended, so a pause
    becomes part of the word after it (up to seconds: whisperX issue 1220). A word with a clear
    silence inside keeps only the louder side, of equals the later.
    """
    loud = _loud_frames(samples)
    return [replace(word, span=_loud_part(word.span, loud)) for word in words]


def loud_span(samples: Samples) -> Span:
    """From the first loud frame to the last; all of the audio where its level does not vary."""
    loud = np.flatnonzero(_loud_frames(samples))
    if not len(loud):
        return Span(0, len(samples) // SAMPLES_PER_MS)
    return Span(int(loud[0]) * FRAME_MS, (int(loud[-1]) + 1) * FRAME_MS)


def _loud_frames(samples: Samples) -> NDArray[np.bool_]:
    """Whether each frame of 20 ms is louder than a pause; all False where the level is even."""
    levels = _levels(samples)
    if not len(levels):
        return np.zeros(0, np.bool_)
    floor, voice = np.percentile(levels, (10, 90))
    if voice - floor < MIN_CONTRAST_DB:
        return np.zeros(len(levels), np.bool_)
    loud: NDArray[np.bool_] = levels > floor + PAUSE_LEVEL * (voice - floor)
    return loud


def _levels(samples: Samples) -> NDArray[np.float64]:
    """The level of every whole frame of 20 ms, in dB relative to full scale."""
    size = FRAME_MS * SAMPLES_PER_MS
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-12))
    return levels


def _loud_part(span: Span, loud: NDArray[np.bool_]) -> Span:
    first = span.start_ms // FRAME_MS
    within = np.flatnonzero(loud[first : -(-span.end_ms // FRAME_MS)]) + first
    if len(within) == 0:
        return span
    breaks = np.flatnonzero(np.diff(within) * FRAME_MS > MIN_PAUSE_MS) + 1
    runs = np.split(within, breaks)
    chosen = max(reversed(runs), key=len)
    start, end = int(chosen[0]) * FRAME_MS, (int(chosen[-1]) + 1) * FRAME_MS
    return Span(
        start if start - span.start_ms > MIN_PAUSE_MS else span.start_ms,
        end if span.end_ms - end > MIN_PAUSE_MS else span.end_ms,
    )


def cut(window: Samples, span: Span) -> Samples:
    """A part of a window."""
    return window[span.start_ms * SAMPLES_PER_MS : span.end_ms * SAMPLES_PER_MS]


def loudness_dbfs(samples: Samples, span: Span) -> float:
    """The RMS level of a stretch, relative to full scale; -120 for digital silence or nothing."""
    audio = cut(samples, span)
    power = float(np.mean(np.square(audio, dtype=np.float64))) if len(audio) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def _ends_after(group: Sequence[Word], following: Word) -> bool:
    last = group[-1]
    pause = following.span.start_ms - last.span.end_ms
    if last.span.end_ms == group[0].span.start_ms:  # it would be shown for no time
        return False
    if _letters(group) < MIN_LETTERS:
        return pause >= LONG_PAUSE_MS
    return ends_sentence(last.text) or pause >= PAUSE_MS


def _fitting(group: list[Word]) -> list[list[Word]]:
    duration = group[-1].span.end_ms - group[0].span.start_ms
    if len(group) < 2 or (_letters(group) <= SCREEN_LETTERS and duration <= SCREEN_MS):
        return [group]
    cut = _best_cut(group)
    return [*_fitting(group[:cut]), *_fitting(group[cut:])]


def _best_cut(group: Sequence[Word]) -> int:
    """Where to cut in two: near the middle, better after a comma, better in a pause."""
    total = _letters(group)
    reached = 0
    best, best_score = 1, float("-inf")
    for index, (before, after) in enumerate(pairwise(group), start=1):
        reached += len(before.text)
        score = -abs(2 * reached / total - 1)
        score += 0.5 * before.text.endswith((*CLAUSE_ENDS, *SENTENCE_ENDS))
        score += min(0.5, (after.span.start_ms - before.span.end_ms) / PAUSE_MS)
        if score > best_score:
            best, best_score = index, score
    return best


def _letters(words: Sequence[Word]) -> int:
    return sum(len(word.text) for word in words)
