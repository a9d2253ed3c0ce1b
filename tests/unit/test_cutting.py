from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.cutting import (
    CHUNK_GAP_MS,
    ChunkGrouper,
    Curve,
    CutOptions,
    FixedCutter,
    Speech,
    WindowCutter,
    cut_long,
    windows_per_chunk,
)
from common.domain.values import Chunk, Span, Window

STEP_MS = 32

Recording = tuple[list[Span], int]
"""Stretches of speech, and the duration."""

options = st.builds(
    CutOptions,
    window_ms=st.integers(8_000, 60_000),
    overlap_ms=st.integers(0, 2_000),
    pad_ms=st.integers(0, 2_000),
    max_gap_ms=st.integers(4_000, 10_000),
)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Speech of up to two minutes between silences, and the recording's duration."""
    now = draw(st.integers(0, 40_000))
    spans = []
    for length in draw(st.lists(st.integers(100, 120_000), max_size=25)):
        spans.append(Span(now, now + length))
        now += length + draw(st.integers(160, 3_000) | st.integers(160, 120_000))
    return spans, now + draw(st.integers(0, 5_000))


def curve(duration_ms: int, seed: int = 0) -> Curve:
    levels = Curve(STEP_MS)
    levels.extend((index * 7_919 + seed) % 101 / 101 for index in range(duration_ms // STEP_MS))
    return levels


def pieces_of(spans: list[Span], cut: CutOptions, duration_ms: int) -> list[Speech]:
    levels = curve(duration_ms)
    found = []
    for span in spans:
        pieces, rest = cut_long(cut, levels, Speech(span))
        found += [*pieces, rest]
    return found


def windows_of(spans: list[Span], cut: CutOptions, duration_ms: int) -> list[Window]:
    cutter = WindowCutter(cut)
    fed = [cutter.feed(piece) for piece in pieces_of(spans, cut, duration_ms)]
    return [window for windows in [*fed, cutter.finish(duration_ms)] for window in windows]


@given(recordings(), options)
def test_cores_tile_the_recording(recording: Recording, cut: CutOptions) -> None:
    spans, duration_ms = recording
    windows = windows_of(spans, cut, duration_ms)
    if spans:
        assert windows[0].core.start_ms == 0
        assert windows[-1].core.end_ms == duration_ms
    assert all(a.core.end_ms == b.core.start_ms for a, b in pairwise(windows))


@given(recordings(), options)
def test_windows_are_limited_and_end_with_the_audio(recording: Recording, cut: CutOptions) -> None:
    spans, duration_ms = recording
    for window in windows_of(spans, cut, duration_ms):
        assert 0 < window.audio.duration_ms <= cut.window_ms
        assert window.audio.end_ms <= duration_ms


@given(recordings(), options)
def test_all_speech_is_in_the_audio_of_its_window(recording: Recording, cut: CutOptions) -> None:
    spans, duration_ms = recording
    windows = windows_of(spans, cut, duration_ms)
    assert sum(window.speech_ms for window in windows) == sum(span.duration_ms for span in spans)
    for window in windows:
        for span in spans:
            counted = span.clipped(window.core)
            assert counted.clipped(window.audio).duration_ms == counted.duration_ms


@given(recordings(), options)
def test_audio_is_shared_only_where_speech_was_cut(recording: Recording, cut: CutOptions) -> None:
    spans, duration_ms = recording
    for left, right in pairwise(windows_of(spans, cut, duration_ms)):
        edge = left.core.end_ms
        inside_speech = any(span.start_ms < edge < span.end_ms for span in spans)
        shared = left.audio.end_ms > edge or right.audio.start_ms < edge
        assert shared == (inside_speech and cut.overlap_ms > 1)


@given(recordings(), options, st.data())
def test_early_notice_that_nothing_follows_changes_no_window(
    recording: Recording, cut: CutOptions, data: st.DataObject
) -> None:
    spans, duration_ms = recording
    cutter = WindowCutter(cut)
    windows = []
    known = 0
    for piece in pieces_of(spans, cut, duration_ms):
        until = data.draw(st.integers(known, max(known, piece.span.start_ms)))
        windows += cutter.advance(until)
        windows += cutter.feed(piece)
        known = piece.span.end_ms
    assert windows + cutter.finish(duration_ms) == windows_of(spans, cut, duration_ms)


@given(st.integers(1, 200_000), st.integers(0, 400_000), options)
def test_pieces_stay_when_the_speech_grows(length_ms: int, more_ms: int, cut: CutOptions) -> None:
    levels = curve(length_ms + more_ms)
    early, growing = cut_long(cut, levels, Speech(Span(0, length_ms)))
    grown = Speech(Span(growing.span.start_ms, length_ms + more_ms), opened=growing.opened)
    late, rest = cut_long(cut, levels, grown)
    whole = cut_long(cut, levels, Speech(Span(0, length_ms + more_ms)))
    assert (early + late, rest) == whole


def test_a_window_ends_in_the_clear_silence_rather_than_in_the_last_one() -> None:
    sentence, rest = Span(0, 25_000), Span(25_500, 28_000)
    following = Span(28_200, 34_000)
    windows = windows_of([sentence, rest, following], CutOptions(), 36_000)
    assert [window.core for window in windows] == [Span(0, 25_250), Span(25_250, 36_000)]


def test_a_long_silence_ends_a_window() -> None:
    windows = windows_of([Span(1_000, 3_000), Span(9_000, 12_000)], CutOptions(), 13_000)
    assert [window.core for window in windows] == [Span(0, 5_500), Span(5_500, 13_000)]
    assert [window.audio for window in windows] == [Span(0, 4_500), Span(7_500, 13_000)]


def test_a_cut_lies_in_the_middle_of_the_longest_quietest_run() -> None:
    levels = Curve(100)
    levels.extend([0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9])
    assert levels.quietest(Span(0, 700)) == 450
    levels.forget(250)
    assert levels.quietest(Span(250, 700)) == 450


@given(st.integers(0, 300_000), options, st.lists(st.integers(0, 300_000)))
def test_fixed_windows_tile_the_recording_however_it_is_fed(
    duration_ms: int, cut: CutOptions, steps: list[int]
) -> None:
    cutter = FixedCutter(cut)
    windows = [
        window for step in sorted(steps) if step <= duration_ms for window in cutter.advance(step)
    ]
    windows += cutter.finish(duration_ms)
    assert windows == FixedCutter(cut).finish(duration_ms)
    assert sum(window.core.duration_ms for window in windows) == duration_ms
    assert all(a.core.end_ms == b.core.start_ms for a, b in pairwise(windows))
    for left, right in pairwise(windows):
        assert left.audio.end_ms - right.audio.start_ms == cut.overlap_ms
        assert left.audio.duration_ms == cut.window_ms
    for window in windows:
        assert window.core.clipped(window.audio) == window.core


@given(recordings(), st.data())
def test_chunks_hold_windows_and_no_long_silence(recording: Recording, data: st.DataObject) -> None:
    spans, duration_ms = recording
    windows = windows_of(spans, CutOptions(), duration_ms)
    grouper = ChunkGrouper()
    chunks: list[Chunk] = []
    known = 0
    for window in windows:
        until = data.draw(st.integers(min(known, window.audio.start_ms), window.audio.start_ms))
        chunks += grouper.advance(until)
        chunks += grouper.feed(window)
        known = window.audio.end_ms
    chunks += grouper.finish()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [window for chunk in chunks for window in chunk.windows] == windows
    for chunk in chunks:
        for left, right in pairwise(chunk.windows):
            assert right.audio.start_ms - left.audio.end_ms <= CHUNK_GAP_MS


def test_chunks_grow_with_the_recording_and_never_with_its_claimed_duration() -> None:
    assert [windows_per_chunk(before) for before in (0, 7, 8, 23, 24, 1_000)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_ms": 60_001},
        {"window_ms": 999},
        {"overlap_ms": -1},
        {"overlap_ms": 7_501},
        {"pad_ms": 7_501},
        {"pad_ms": 400, "max_gap_ms": 799},
    ],
)
def test_options_out_of_range_are_rejected_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        CutOptions(**wrong)
