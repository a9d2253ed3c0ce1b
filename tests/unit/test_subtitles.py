"""The cues of subtitles: nothing is lost, limits hold, and breaks are natural."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.domain.clauses import belong_together
from common.domain.formats import write
from common.domain.moderation import Finding, Label
from common.domain.speakers import Diarization, Turn
from common.domain.subtitles import LIMITS, NO_LAYOUT, Cue, Layout, cues, text_of
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word
from common.errors import OptionConflict, OutOfRange

HATE = Finding(Label.HATE, (0.1, 0.2, 0.7))


def spoken(text: str, start_ms: int = 0, word_ms: int = 400, **fields: Any) -> Segment:
    """A segment with words of ``word_ms`` each, without pauses."""
    words, clock = [], start_ms
    for word in text.split():
        words.append(Word(f" {word}", Span(clock, clock + word_ms), 0.9))
        clock += word_ms
    return Segment(Span(start_ms, clock), f" {text}", tuple(words), **fields)


def talk(*segments: Segment, rest_ms: int = 0) -> Transcript:
    return Transcript("vi", max(it.span.end_ms for it in segments) + rest_ms, segments)


def lines(segment: Segment, **options: Any) -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues(talk(segment), Layout.of(**options))]


# --- invariants -------------------------------------------------------------------------------

CHANNELS: Sequence[Sequence[int | None]] = ((None,), (0, 1), (0, 1, 2))
NAMES = ("Nguyễn", "Văn", "An", "J.", "I")
NUMBERS = ("ngày", "3", "35", "1.000", "triệu", "đồng")
OTHERS = ("và", "nhà,", "đi.", "—", "(so)", "a-b", "-->", "今日", "は。", "กา", "extraordinarily")
TOKENS = st.sampled_from((*NAMES, *NUMBERS, *OTHERS, "x" * 30))


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Segments of up to three channels, which overlap; with words, without, or with wrong ones."""
    segments = []
    for channel in draw(st.sampled_from(CHANNELS)):
        clock = draw(st.integers(0, 2_000))
        for count in draw(st.lists(st.integers(1, 12), max_size=5)):
            start, words = clock, []
            for _ in range(count):
                clock += draw(st.sampled_from([0, 0, 0, 50, 700]))
                text = draw(st.sampled_from([" ", " ", " ", ""])) + draw(TOKENS)
                end = clock + draw(st.sampled_from([0, 80, 300, 300, 3_000]))
                words.append(Word(text, Span(clock, end), 0.9))
                clock = draw(st.sampled_from([end, end, end, max(start, end - 100)]))
            clock = max(clock, max(word.span.end_ms for word in words))
            text = "".join(word.text for word in words)
            kept = draw(st.sampled_from([tuple(words), tuple(words), (), tuple(words[1:])]))
            speaker = draw(st.sampled_from(["SPEAKER_00", "SPEAKER_01"]))
            finding = draw(st.sampled_from([None, None, HATE]))
            segments.append(
                Segment(
                    Span(start, clock),
                    text,
                    kept,
                    speaker=speaker,
                    channel=channel,
                    finding=finding,
                )
            )
            clock += draw(st.sampled_from([0, 0, 100, 2_000]))
    segments.sort(key=lambda segment: segment.span.start_ms)
    end = max((segment.span.end_ms for segment in segments), default=0)
    return Transcript("vi", end, tuple(segments))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    width = draw(st.none() | st.integers(10, 60))
    count = None if width is None else draw(st.none() | st.integers(1, 4))
    longest = draw(st.none() | st.floats(0.5, 60))
    return Layout.of(
        max_line_width=width,
        max_line_count=count,
        max_cue_seconds=longest,
        min_cue_seconds=draw(st.none() | st.floats(0, min(longest or 10, 10))),
        max_cps=draw(st.none() | st.floats(5, 100)),
    )


def letters(text: str) -> str:
    return "".join(text.split())


@given(transcripts(), layouts())
def test_all_text_is_in_cues_once_and_in_order(transcript: Transcript, layout: Layout) -> None:
    found: dict[int | None, list[Cue]] = defaultdict(list)
    for cue in cues(transcript, layout):
        found[cue.segments[0].channel].append(cue)
    wanted: dict[int | None, list[Segment]] = defaultdict(list)
    for segment in transcript.segments:
        wanted[segment.channel].append(segment)
    assert found.keys() == wanted.keys()
    for channel, segments in wanted.items():
        shown = letters("".join(line for cue in found[channel] for line in cue.lines))
        assert shown == letters("".join(segment.text for segment in segments))
        whole = dict.fromkeys(id(it) for cue in found[channel] for it in cue.segments)
        assert list(whole) == [id(segment) for segment in segments]


@given(transcripts(), layouts())
def test_no_space_between_words_is_lost_or_invented(transcript: Transcript, layout: Layout) -> None:
    for cue in cues(transcript, layout):
        for line in cue.lines:
            assert line == line.strip() != ""
            assert any(line in text_of(it) for it in cue.segments) or len(cue.segments) > 1


@given(transcripts(), layouts())
def test_cues_never_overlap_nor_last_no_time(transcript: Transcript, layout: Layout) -> None:
    found = cues(transcript, layout)
    if layout != NO_LAYOUT:
        assert all(cue.span.duration_ms for cue in found)
        for cue, following in pairwise(found):
            assert cue.span.end_ms <= following.span.start_ms


@given(transcripts(), layouts())
def test_lines_and_times_keep_to_their_limits(transcript: Transcript, layout: Layout) -> None:
    for cue in cues(transcript, layout):
        if layout.max_cue_ms is not None:
            assert cue.span.duration_ms <= layout.max_cue_ms
        assert len(cue.lines) <= (layout.max_line_count or 1_000)
        if layout.max_line_width is not None:
            for line in cue.lines:
                assert len(line) <= layout.max_line_width or " " not in line


@given(transcripts(), layouts())
def test_a_cue_is_of_one_speaker_one_channel_and_one_label(
    transcript: Transcript, layout: Layout
) -> None:
    for cue in cues(transcript, layout):
        assert len({(it.speaker, it.channel, it.finding) for it in cue.segments}) == 1


@given(transcripts(), layouts())
def test_with_headings_all_limits_but_the_width_hold(
    transcript: Transcript, layout: Layout
) -> None:
    heading = "[HATE] Nguyễn Thị Minh Khai:"
    found = cues(transcript, layout, lambda _: heading)
    for cue in found:
        assert " ".join(cue.lines).startswith(heading)
        assert len(cue.lines) <= (layout.max_line_count or 1_000)
        assert layout.max_cue_ms is None or cue.span.duration_ms <= layout.max_cue_ms


@given(transcripts(), layouts())
@example(talk(spoken("a --> b " * 10)), Layout.of(max_line_width=10))
def test_no_layout_breaks_the_format(transcript: Transcript, layout: Layout) -> None:
    turns = tuple(Turn(it.span, it.speaker) for it in transcript.segments if it.speaker)
    named = Transcript(
        "vi", 1, transcript.segments, None, Diarization(turns, {"SPEAKER_00": "Lan"})
    )
    for flag in (False, True):
        for ending, before in (("srt", ""), ("vtt", "WEBVTT\n\n")):
            text = write(ending, named, flag=flag, layout=layout).removeprefix(before)
            for record in text.split("\n\n")[:-1]:
                rows = record.split("\n")[ending == "srt" :]
                assert rows[0].count(" --> ") == 1
                assert rows[1:]
                assert not any("-->" in row for row in rows[1:])


# --- breaks -----------------------------------------------------------------------------------


def test_lines_break_after_clauses_and_before_phrases() -> None:
    text = "Xin chào các bạn, hôm nay tôi nói về giá nhà ở thành phố"
    assert lines(spoken(text), max_line_width=42) == [
        ("Xin chào các bạn,", "hôm nay tôi nói về giá nhà ở thành phố")
    ]
    text = "He came home with nothing but a small bag of stories"
    assert lines(spoken(text), max_line_width=30) == [
        ("He came home with nothing", "but a small bag of stories")
    ]


def test_lines_without_a_clause_are_of_like_widths() -> None:
    assert lines(spoken("một hai ba bốn sáu bảy tám chín mười"), max_line_width=32) == [
        ("một hai ba bốn sáu", "bảy tám chín mười")
    ]


def test_cues_end_with_sentences_before_clauses_and_with_those_before_pauses() -> None:
    text = "Ta đi chợ mua cá. Rồi về nhà, nấu cơm ăn tối"
    assert lines(spoken(text), max_line_width=32, max_line_count=1) == [
        ("Ta đi chợ mua cá.",),
        ("Rồi về nhà, nấu cơm ăn tối",),
    ]
    segment = spoken("một hai ba bốn sáu bảy tám chín")
    words = [
        Word(it.text, it.span.shifted(500 * (at >= 3)), 0.9) for at, it in enumerate(segment.words)
    ]
    paused = Segment(Span(0, words[-1].span.end_ms), segment.text, tuple(words))
    assert lines(paused, max_line_width=25, max_line_count=1) == [
        ("một hai ba",),
        ("bốn sáu bảy tám chín",),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "Nguyễn Văn An",
        "New York",
        "Arthur J. Haynes",
        "35 triệu đồng",
        "12 kilometers",
        "1 000 000",
        "ngày 30 tháng 4",
        "Dr. Lan",
    ],
)
@pytest.mark.parametrize("before", range(12))
def test_a_name_and_a_number_with_its_unit_stay_on_one_line(name: str, before: int) -> None:
    text = f"{'đi ' * before}{name} rồi mới về nhà ăn cơm"
    for options in ({"max_line_count": 1}, {"max_line_count": 2}, {}):
        found = lines(spoken(text), max_line_width=20, **options)
        assert any(name in line for cue in found for line in cue)


def test_a_name_that_fits_no_line_is_broken() -> None:
    assert lines(spoken("Nguyễn Văn An Bình"), max_line_width=10) == [("Nguyễn Văn", "An Bình")]


def test_text_in_capitals_is_no_name() -> None:
    found = lines(spoken("TIN NÓNG HÔM NAY VỀ GIÁ NHÀ Ở HÀ NỘI"), max_line_width=20)
    assert found == [("TIN NÓNG HÔM NAY", "VỀ GIÁ NHÀ Ở HÀ NỘI")]


@pytest.mark.parametrize(
    ("word", "following"),
    [("Lan,", "An"), ("nói", "Lan"), ("An.", "Hôm"), ("John", "I"), ("2020", "và"), ("nhà", "3")],
)
def test_other_words_may_be_parted(word: str, following: str) -> None:
    assert not belong_together(word, following)


def test_scripts_without_spaces_break_between_words_and_never_before_a_mark() -> None:
    words = ["今日", "は", "、", "天気", "が", "いい", "です", "ね", "。"]
    timed = tuple(Word(it, Span(at * 300, at * 300 + 300), 0.9) for at, it in enumerate(words))
    text = "".join(words)
    with_words = Segment(Span(0, 2_700), text, timed)
    without = Segment(Span(0, 2_700), text)
    assert lines(with_words, max_line_width=10) == [("今日は、", "天気がいいですね。")]
    assert lines(without, max_line_width=10) == [("今日は、", "天気がいいですね。")]


# --- times ------------------------------------------------------------------------------------


def spans(transcript: Transcript, **options: Any) -> list[tuple[int, int]]:
    found = cues(transcript, Layout.of(**options))
    return [(cue.span.start_ms, cue.span.end_ms) for cue in found]


def test_a_segment_that_fits_keeps_its_times() -> None:
    segment = Segment(Span(100, 2_000), " xin chào", spoken("xin chào", 300).words)
    assert spans(talk(segment), max_line_width=40) == [(100, 2_000)]


def test_cues_have_the_times_of_their_words() -> None:
    segment = spoken("một hai ba bốn sáu bảy", start_ms=1_000)
    assert spans(talk(segment), max_line_width=12, max_line_count=1) == [
        (1_000, 2_200),
        (2_200, 3_400),
    ]


def test_without_word_times_a_cue_has_its_share_of_the_letters() -> None:
    segment = Segment(Span(0, 2_200), " abcd efghi, abcd efghi")
    assert spans(talk(segment), max_line_width=12, max_line_count=1) == [(0, 1_100), (1_200, 2_200)]


def test_a_short_cue_is_shown_on_into_the_pause_but_not_over_the_next() -> None:
    first, second = spoken("Vâng.", 0), spoken("Dạ.", 1_500)
    transcript = talk(first, second, rest_ms=300)
    assert spans(transcript, min_cue_seconds=1) == [(0, 1_000), (1_500, 2_200)]
    assert spans(transcript, min_cue_seconds=2) == [(0, 1_500), (1_500, 2_200)]


def test_a_cue_that_takes_longer_to_read_is_shown_for_longer() -> None:
    transcript = talk(spoken("abcd efgh", word_ms=100), rest_ms=5_000)
    assert spans(transcript, max_cps=9) == [(0, 1_000)]
    assert spans(transcript, max_cps=9, max_cue_seconds=0.6) == [(0, 600)]


def test_a_segment_too_short_to_read_is_joined_with_the_next() -> None:
    segments = (spoken("Vâng.", 0), spoken("Tôi hiểu rồi.", 400))
    found = cues(talk(*segments), Layout.of(min_cue_seconds=1))
    assert [(cue.lines, cue.segments) for cue in found] == [(("Vâng. Tôi hiểu rồi.",), segments)]


def test_the_words_of_two_people_are_never_joined() -> None:
    segments = (spoken("Vâng.", 0, speaker="A"), spoken("Tôi hiểu rồi.", 400, speaker="B"))
    found = cues(talk(*segments), Layout.of(min_cue_seconds=1))
    assert [cue.segments for cue in found] == [segments[:1], segments[1:]]


def test_where_channels_overlap_a_cue_ends_with_the_next_but_never_at_once() -> None:
    segments = (
        spoken("một hai ba bốn", 0, channel=0),
        spoken("năm sáu", 1_000, channel=1),
        spoken("bảy tám", 1_000, channel=2),
    )
    assert spans(talk(*segments), max_line_width=42) == [(0, 1_000), (1_000, 1_500), (1_500, 2_000)]
    assert [cue.span for cue in cues(talk(*segments))] == [it.span for it in segments]


# --- formats ----------------------------------------------------------------------------------


def test_the_speakers_name_counts_for_the_width_where_it_is_shown() -> None:
    segment = spoken("một hai ba bốn", speaker="SPEAKER_00")
    turns = (Turn(segment.span, "SPEAKER_00"),)
    named = Transcript("vi", 2_000, (segment,), None, Diarization(turns, {"SPEAKER_00": "Lan"}))
    layout = Layout.of(max_line_width=14)
    assert "\nLan: một\nhai ba bốn\n\n" in write("srt", named, layout=layout)
    assert "\n<v Lan>một hai ba bốn\n\n" in write("vtt", named, layout=layout)


def test_each_cue_of_an_offending_segment_is_flagged() -> None:
    segment = spoken("một hai ba bốn sáu", finding=HATE)
    layout = Layout.of(max_line_width=16, max_line_count=1)
    flagged = write("vtt", talk(segment), flag=True, layout=layout)
    assert flagged.count("<c.hate>[HATE] ") == len(cues(talk(segment), layout, lambda _: "[HATE]"))
    assert "HATE" not in write("vtt", talk(segment), layout=layout)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIMITS)
def test_each_option_has_its_limits(name: str) -> None:
    least, most = LIMITS[name]
    others: dict[str, Any] = {"max_line_width": 42} if name == "max_line_count" else {}
    for value in (least, most):
        Layout.of(**others | {name: value})
    for value in (least - 1, most + 1, float("nan")):
        with pytest.raises(OutOfRange, match=f"{name} must be from {least:g} to {most:g}"):
            Layout.of(**others | {name: value})


def test_options_that_contradict_each_other_are_rejected() -> None:
    with pytest.raises(OptionConflict, match="max_line_count=2 needs max_line_width"):
        Layout.of(max_line_count=2)
    with pytest.raises(OptionConflict, match="min_cue_seconds=3 needs max_cue_seconds"):
        Layout.of(min_cue_seconds=3, max_cue_seconds=2)
