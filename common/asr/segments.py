"""From a decoded window to its public segments: guard, split to subtitle size, judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from common.asr.engine import Samples
from common.asr.guards import (
    Decoding,
    Evidence,
    collapse_repeats,
    doubts,
    is_hallucination,
    is_silence,
)
from common.domain.values import SAMPLES_PER_MS, Segment, Span, Word

# Subtitles of at most two lines of 42 letters on screen for at most 7 s (BBC and Netflix guides).
MAX_LETTERS = 84
MAX_SEGMENT_MS = 7_000
PAUSE_MS = 600
"""A silence between words that ends a segment wherever it falls."""
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")  # noqa: RUF001 - the full-width marks are meant
CLAUSE_ENDS = (",", ";", ":", "，", "、", "；", "：")  # noqa: RUF001
MIN_SENTENCE_LETTERS = 15
"""A shorter sentence ("Yes.") stays together with the next one."""


def segments_of(
    decoding: Decoding, words: Sequence[Word], samples: Samples, *, keep_words: bool
) -> tuple[Segment, ...]:
    """The segments of one window; times count from its start and stay inside it.

    The numbers on a segment are those of its window's decoding, as in openai/whisper. What
    `common.asr.guards` takes for an invention on silence is left out.
    """
    if is_silence(decoding):
        return ()
    whole = Span(0, len(samples) // SAMPLES_PER_MS)
    kept, collapsed = collapse_repeats(words)
    segments = []
    for group in split(kept):
        text = "".join(word.text for word in group)
        span = Span(group[0].span.start_ms, group[-1].span.end_ms).clipped(whole)
        evidence = Evidence(
            decoding.no_speech_prob, decoding.avg_logprob, loudness_dbfs(samples, span)
        )
        if not text.strip() or is_hallucination(text, evidence):
            continue
        probability = sum(word.probability for word in group) / len(group)
        segments.append(
            Segment(
                span=span,
                text=text,
                words=tuple(group) if keep_words else (),
                avg_logprob=min(0.0, decoding.avg_logprob),
                compression_ratio=decoding.compression_ratio,
                no_speech_prob=decoding.no_speech_prob,
                temperature=decoding.temperature,
                flags=doubts(decoding, text, probability, collapsed=collapsed),
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


def loudness_dbfs(samples: Samples, span: Span) -> float:
    """The RMS level of a stretch, relative to full scale; -120 for digital silence or nothing."""
    heard = samples[span.start_ms * SAMPLES_PER_MS : span.end_ms * SAMPLES_PER_MS]
    power = float(np.mean(np.square(heard, dtype=np.float64))) if len(heard) else 0.0
    return 10 * float(np.log10(max(power, 1e-12)))


def _ends_after(group: Sequence[Word], following: Word) -> bool:
    last = group[-1]
    if following.span.start_ms - last.span.end_ms >= PAUSE_MS:
        return True
    said = last.text.rstrip("\"'”’)»")  # noqa: RUF001
    return said.endswith(SENTENCE_ENDS) and _letters(group) >= MIN_SENTENCE_LETTERS


def _fitting(group: list[Word]) -> list[list[Word]]:
    duration = group[-1].span.end_ms - group[0].span.start_ms
    if len(group) < 2 or (_letters(group) <= MAX_LETTERS and duration <= MAX_SEGMENT_MS):
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
