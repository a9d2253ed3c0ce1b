from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.cutting import ChunkGrouper, Curve, CutOptions, Speech, WindowCutter, cut_long
from common.domain.merging import (
    ChunkSegments,
    IncrementalMerge,
    merge,
    speech_without_text,
)
from common.domain.values import Chunk, Segment, Span, Window, Word

MOST_JITTER_MS = 150

Spoken = list[tuple[Span, list[Word]]]
"""Stretches of speech with the words in them, in order."""


def words_of(segments: Iterable[Segment]) -> list[Word]:
    return [word for segment in segments for word in segment.words]


@st.composite
def speeches(draw: st.DrawFn) -> tuple[Spoken, int]:
    """Speech with some stretches too long for a window; many words are alike."""
    now, spoken, total = draw(st.integers(0, 6_000)), [], 0
    for count in draw(st.lists(st.integers(1, 130), max_size=4)):
        start, words = now, []
        shortest, common = draw(st.integers(120, 500)), draw(st.integers(2, 6))
        for at in range(count):
            length = shortest + (at * 37) % 100
            name = "no" if total % common == 0 else f"w{total}"
            words.append(Word(f" {name}", Span(now, now + length), 0.9))
            now += length
            total += 1
        spoken.append((Span(start, now), words))
        now += draw(st.integers(200, 1_000) | st.integers(200, 20_000))
    return spoken, now


def chunks_of(spoken: Spoken, duration_ms: int) -> list[Chunk]:
    """Cut as the planner does; the levels make no word's edge likelier than its middle."""
    options = CutOptions()
    levels = Curve(32)
    levels.extend((step * 7_919) % 101 / 101 for step in range(duration_ms // 32 + 1))
    cutter, grouper = WindowCutter(options), ChunkGrouper()
    windows: list[Window] = []
    for span, _ in spoken:
        pieces, rest = cut_long(options, levels, Speech(span))
        for piece in [*pieces, rest]:
            windows += cutter.feed(piece)
    windows += cutter.finish(duration_ms)
    chunks = [chunk for window in windows for chunk in grouper.feed(window)]
    return chunks + grouper.finish()


def recognized(window: Window, spoken: Spoken) -> list[Word]:
    """The words whose whole audio is in the window, at their time in it."""
    return [
        word.shifted(-window.audio.start_ms)
        for _, words in spoken
        for word in words
        if word.span.clipped(window.audio) == word.span
    ]


def segments(words: list[Word], size: int = 7) -> list[Segment]:
    groups = [words[at : at + size] for at in range(0, len(words), size)]
    return [
        Segment(
            Span(min(w.span.start_ms for w in group), max(w.span.end_ms for w in group)),
            "".join(word.text for word in group),
            tuple(group),
        )
        for group in groups
    ]


def recognized_parts(spoken: Spoken, duration_ms: int) -> list[ChunkSegments]:
    """What an engine without errors makes of it."""
    return [
        (chunk, [segments(recognized(window, spoken)) for window in chunk.windows])
        for chunk in chunks_of(spoken, duration_ms)
    ]


@given(speeches())
def test_a_correct_engine_gives_every_word_once_at_its_time(recording: tuple[Spoken, int]) -> None:
    spoken, duration_ms = recording
    merged = merge(recognized_parts(spoken, duration_ms))
    assert words_of(merged) == [word for _, words in spoken for word in words]
    for segment in merged:
        assert segment.text == "".join(word.text for word in segment.words)


@given(speeches(), st.randoms(use_true_random=False))
def test_words_at_wrong_times_are_in_order_and_none_is_doubled(
    recording: tuple[Spoken, int], random: Random
) -> None:
    spoken, duration_ms = recording

    def misplaced(word: Word) -> Word:
        late = random.randint(-MOST_JITTER_MS, MOST_JITTER_MS)
        start = max(0, word.span.start_ms + late)
        return Word(word.text, Span(start, max(start, word.span.end_ms + late)), 0.9)

    parts: list[ChunkSegments] = []
    for chunk in chunks_of(spoken, duration_ms):
        windows = [
            segments([misplaced(word) for word in recognized(window, spoken)])
            for window in chunk.windows
        ]
        parts.append((chunk, windows))
    merged = merge(parts)
    for spans in ([s.span for s in merged], [w.span for w in words_of(merged)]):
        assert all(a.end_ms <= b.start_ms for a, b in pairwise(spans))
    expected = Counter(word.text for _, words in spoken for word in words)
    got = Counter(word.text for word in words_of(merged))
    unique = {text for text, count in expected.items() if count == 1}
    assert all(got[text] <= 1 for text in unique)
    shared = any(
        window.audio.end_ms > window.core.end_ms for chunk, _ in parts for window in chunk.windows
    )
    if not shared:
        assert got == expected


@given(speeches(), st.data())
def test_text_that_grows_never_changes(recording: tuple[Spoken, int], data: st.DataObject) -> None:
    parts = recognized_parts(*recording)
    growing, rest = IncrementalMerge(), list(parts)
    grown: list[Segment] = []
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        grown += growing.add(rest[:count])
        rest = rest[count:]
    assert tuple(grown) == merge(parts)


def separate_parts(recordings: list[tuple[Spoken, int]]) -> list[ChunkSegments]:
    """The chunks of channels that are cut by themselves, in the order of the plan."""
    parts = [
        (replace(chunk, channel=channel), found)
        for channel, recording in enumerate(recordings)
        for chunk, found in recognized_parts(*recording)
    ]
    parts.sort(key=lambda part: (part[0].audio.start_ms, part[0].channel))
    return [(replace(chunk, index=at), found) for at, (chunk, found) in enumerate(parts)]


@given(st.lists(speeches(), min_size=1, max_size=3))
def test_channels_are_merged_by_themselves_and_put_in_order(
    recordings: list[tuple[Spoken, int]],
) -> None:
    merged = merge(separate_parts(recordings))
    for channel, (spoken, _) in enumerate(recordings):
        own = [segment for segment in merged if segment.channel == channel]
        assert words_of(own) == [word for _, words in spoken for word in words]
        assert len({segment.speaker for segment in own}) == bool(own)
    assert all(a.span.start_ms <= b.span.start_ms for a, b in pairwise(merged))
    speakers = list(dict.fromkeys(segment.speaker for segment in merged))
    assert speakers == [f"SPEAKER_{at:02}" for at in range(len(speakers))]


@given(st.lists(speeches(), min_size=2, max_size=3), st.data())
def test_text_of_channels_grows_at_its_end_only(
    recordings: list[tuple[Spoken, int]], data: st.DataObject
) -> None:
    parts = separate_parts(recordings)
    growing, rest, whole = IncrementalMerge(), list(parts), merge(parts)
    grown: list[Segment] = []
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        grown += growing.add(rest[:count])
        rest = rest[count:]
        assert tuple(grown) == whole[: len(grown)]
    last_ms = max((chunk.audio.start_ms for chunk, _ in parts), default=0)
    late = [it for it in whole[len(grown) :] if it.span.start_ms < last_ms]
    cut_within_speech = any(chunk.audio.end_ms > chunk.core.end_ms for chunk, _ in parts)
    assert not late or cut_within_speech


def test_speech_without_text_in_one_channel_is_found_though_another_has_text() -> None:
    whole = (window((0, 30_000), speech=25_000),)
    parts: list[ChunkSegments] = [
        (Chunk(0, whole, channel=0), [[Segment(Span(0, 28_000), " all of it")]]),
        (Chunk(1, whole, channel=1), [[]]),
    ]
    assert speech_without_text(parts) == (Span(0, 30_000),)
    assert speech_without_text(parts[:1]) == ()


def window(core: tuple[int, int], audio: tuple[int, int] | None = None, speech: int = 0) -> Window:
    return Window(Span(*core), Span(*(audio or core)), speech)


def word(text: str, start: int, end: int) -> Word:
    return Word(text, Span(start, end), 0.9)


def one_chunk(*windows: tuple[Window, list[Segment]]) -> list[ChunkSegments]:
    return [(Chunk(0, tuple(w for w, _ in windows)), [found for _, found in windows])]


def joined(left: list[Segment], right: list[Segment]) -> tuple[Segment, ...]:
    """The texts of two windows of 10 s, each of which has a second of the other's audio."""
    return merge(
        one_chunk(
            (window((0, 10_000), (0, 11_000)), left),
            (window((10_000, 20_000), (9_000, 20_000)), right),
        )
    )


def test_a_word_that_the_engine_ends_too_late_is_pulled_into_its_window() -> None:
    late = segments([word(" late", 9_500, 11_000), word(" later", 12_000, 12_500)])
    following = segments([word(" then", 0, 400)])
    merged = merge(one_chunk((window((0, 10_000)), late), (window((10_000, 20_000)), following)))
    assert [(w.text, w.span) for w in words_of(merged)] == [
        (" late", Span(9_500, 10_000)),
        (" later", Span(10_000, 10_000)),
        (" then", Span(10_000, 10_400)),
    ]


def test_two_windows_join_at_the_word_they_share_although_they_place_it_differently() -> None:
    left = segments([word(" one", 8_000, 8_900), word(" two,", 9_850, 10_250)])
    right = segments([word(" Two", 600, 900), word(" three", 950, 1_700)])
    assert [w.text for w in words_of(joined(left, right))] == [" one", " two,", " three"]


def test_without_a_common_word_each_counts_where_its_midpoint_lies() -> None:
    left = segments([word(" one", 8_000, 8_900), word(" tooth", 9_500, 10_100)])
    right = segments([word(" truth", 500, 1_000), word(" three", 1_050, 1_700)])
    assert [w.text for w in words_of(joined(left, right))] == [" one", " tooth", " three"]
    assert [s.text for s in joined(left, right)] == [" one tooth", " three"]


def test_segments_without_words_count_by_their_midpoint() -> None:
    left = [Segment(Span(0, 9_800), " all of it"), Segment(Span(9_900, 11_000), " twice")]
    right = [Segment(Span(900, 1_900), " twice"), Segment(Span(2_000, 3_000), " more")]
    assert [s.text for s in joined(left, right)] == [" all of it", " twice", " more"]


def test_the_numbers_of_the_decoder_stay_on_a_segment_that_loses_words() -> None:
    words = (word(" in", 1_000, 1_500), word(" out", 10_400, 10_900))
    doubtful = Segment(
        Span(1_000, 10_900), " in out", words, avg_logprob=-1.5, flags=("low_probability",)
    )
    (kept,) = joined([doubtful], [])
    assert (kept.text, kept.avg_logprob, kept.flags) == (" in", -1.5, ("low_probability",))


def test_chunks_that_are_not_transcribed_yet_are_simply_absent() -> None:
    first = (Chunk(0, (window((0, 10_000)),)), [segments([word(" one", 0, 500)])])
    third = (Chunk(2, (window((20_000, 30_000)),)), [segments([word(" three", 0, 500)])])
    assert [w.span.start_ms for w in words_of(merge([first, third]))] == [0, 20_000]


def test_results_that_do_not_belong_to_the_windows_are_rejected() -> None:
    with pytest.raises(ValueError, match="zip"):
        merge([(Chunk(0, (window((0, 10_000)),)), [])])
    with pytest.raises(ValueError, match="out of order"):
        merge(one_chunk((window((10_000, 20_000)), []), (window((0, 10_000)), [])))


def test_speech_that_no_text_accounts_for_is_reported_where_it_is() -> None:
    silent = window((0, 30_000), (1_000, 29_000), speech=25_000)
    transcribed = window((30_000, 60_000), (30_000, 59_000), speech=25_000)
    half = window((60_000, 90_000), (61_000, 89_000), speech=25_000)
    breath = window((90_000, 100_000), (91_000, 99_000), speech=2_000)
    pauses = window((100_000, 130_000), speech=30_000)
    halting = [Segment(Span(at, at + 3_000), " well") for at in range(0, 30_000, 5_000)]
    parts = one_chunk(
        (silent, []),
        (transcribed, [Segment(Span(500, 14_000), " well"), Segment(Span(15_000, 28_000), " all")]),
        (half, [Segment(Span(0, 9_000), " the beginning"), Segment(Span(9_000, 20_000), " ")]),
        (breath, []),
        (pauses, halting),
    )
    assert speech_without_text(parts) == (Span(0, 30_000), Span(70_000, 90_000))
