from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.speakers import (
    OVERLAP,
    Diarization,
    SpeakerCount,
    Spoken,
    Stretch,
    Turn,
    _Near,
    attribute,
    gather,
    marked_overlaps,
    speakers_of,
    stretches_from_json,
    stretches_to_json,
    turns_in,
    turns_of,
)
from common.domain.values import Chunk, Segment, Span, Window, Word
from common.errors import OptionConflict, OutOfRange, UnknownOption

A, B = "SPEAKER_00", "SPEAKER_01"


def stretch(*spans: tuple[int, int], overlapped: bool = False, **fields: int) -> Stretch:
    spoken = tuple(Spoken(Span(*span), overlapped) for span in spans)
    return Stretch(fields.get("window", 0), fields.get("voice", 0), spoken)


def turn(start: int, end: int, speaker: str = A) -> Turn:
    return Turn(Span(start, end), speaker)


def word(text: str, start: int, end: int) -> Word:
    return Word(f" {text}", Span(start, end), 0.9)


def chunk(index: int, core: tuple[int, int], audio: tuple[int, int]) -> Chunk:
    return Chunk(index, (Window(Span(*core), Span(*audio), 0),))


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((None, None, None), SpeakerCount(1, None)),
        ((2, None, None), SpeakerCount(2, 2)),
        ((None, 2, None), SpeakerCount(2, None)),
        ((None, None, 4), SpeakerCount(1, 4)),
        ((3, 2, 4), SpeakerCount(3, 3)),
    ],
)
def test_the_options_limit_the_number(
    options: tuple[int | None, ...], expected: SpeakerCount
) -> None:
    assert SpeakerCount.of(*options) == expected


@pytest.mark.parametrize("field", ["num_speakers", "min_speakers", "max_speakers"])
@pytest.mark.parametrize("value", [0, -1, 31])
def test_a_number_out_of_range_is_named_with_its_limit(field: str, value: int) -> None:
    with pytest.raises(OutOfRange, match=f"{field} must be from 1 to 30; got {value}"):
        SpeakerCount.of(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 5, 3), "min_speakers=5 needs max_speakers of at least 5; got 3"),
        ((2, 3, None), "num_speakers=2 needs min_speakers of at most 2; got 3"),
        ((6, None, 4), "num_speakers=6 needs max_speakers of at least 6; got 4"),
    ],
)
def test_numbers_that_contradict_are_named(options: tuple[int | None, ...], message: str) -> None:
    with pytest.raises(OptionConflict, match=message):
        SpeakerCount.of(*options)


# --- stretches --------------------------------------------------------------------------------


def test_stretches_survive_their_stored_form() -> None:
    spoken = (Spoken(Span(5, 90)), Spoken(Span(90, 120), overlapped=True))
    stretches = [
        Stretch(3, 1, spoken, b"\0\xff", 85, alone=False),
        stretch((0, 400)),
        Stretch(4, 0, spoken, b"\1\2", 20),
    ]
    for each in (stretches, stretches[1:2], []):
        assert stretches_from_json(json.loads(json.dumps(stretches_to_json(each)))) == each


def test_stretches_come_to_the_recordings_clock_and_stay_in_their_core() -> None:
    first = (
        chunk(0, (0, 10_000), (0, 12_000)),
        [stretch((9_000, 11_000)), stretch((11_000, 12_000))],
    )
    second = chunk(1, (10_000, 20_000), (8_000, 20_000)), [stretch((1_000, 4_000), window=0)]
    found = gather([second, first])
    assert [it.span for it in found] == [Span(9_000, 10_000), Span(10_000, 12_000)]
    assert found[0].window != found[1].window, "windows of two chunks are two"
    assert gather([first, second]) == found


# --- turns ------------------------------------------------------------------------------------


def test_speakers_are_numbered_as_they_first_speak() -> None:
    stretches = [stretch((0, 1_000)), stretch((3_000, 4_000)), stretch((6_000, 7_000))]
    assert [it.speaker for it in turns_of(stretches, [7, 2, 7])] == [A, B, A]


def test_short_pauses_belong_to_a_turn_and_long_ones_end_it() -> None:
    stretches = [
        stretch((0, 1_000), (1_400, 2_000)),
        stretch((2_499, 3_000)),
        stretch((3_500, 4_000)),
    ]
    assert [it.span for it in turns_of(stretches, [0, 0, 0])] == [
        Span(0, 3_000),
        Span(3_500, 4_000),
    ]


def test_turns_of_two_may_overlap() -> None:
    stretches = [
        stretch((0, 2_000)),
        stretch((2_000, 2_500), overlapped=True),
        stretch((2_000, 2_500), overlapped=True, voice=1),
        stretch((2_500, 4_000), voice=1),
        stretch((9_000, 9_500)),
    ]
    assert turns_of(stretches, [0, 0, 1, 1, 0]) == (
        Turn(Span(0, 2_500), A),
        Turn(Span(2_000, 4_000), B),
        Turn(Span(9_000, 9_500), A),
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 50_000), st.integers(1, 3_000), st.integers(0, 3)), max_size=30
    )
)
def test_turns_cover_all_that_is_spoken(spoken: list[tuple[int, int, int]]) -> None:
    stretches = [stretch((start, start + length)) for start, length, _ in spoken]
    turns = turns_of(stretches, [who for _, _, who in spoken])
    assert list(turns) == sorted(turns)
    assert len({it.speaker for it in turns}) == len({who for _, _, who in spoken})
    for it in stretches:
        assert any(
            turn.span.start_ms <= it.span.start_ms and it.span.end_ms <= turn.span.end_ms
            for turn in turns
        )


# --- words ------------------------------------------------------------------------------------


def test_a_word_belongs_to_who_speaks_for_the_most_of_it() -> None:
    turns = [turn(0, 1_000), turn(1_000, 2_000, B)]
    words = [
        word("a", 0, 500),
        word("b", 700, 1_200),
        word("c", 900, 1_500),
        word("d", 1_500, 2_000),
    ]
    assert speakers_of(words, turns) == [A, A, B, B]


def test_a_word_in_a_pause_belongs_to_the_nearest_turn_if_one_is_near() -> None:
    turns = [turn(0, 1_000), turn(3_000, 4_000, B), turn(9_000, 9_500)]
    words = [word("a", 1_100, 1_300), word("b", 2_700, 2_900), word("c", 6_000, 6_300)]
    assert speakers_of(words, turns) == [A, B, None]


def test_where_two_speak_a_word_goes_on_with_the_speaker_before() -> None:
    turns = [turn(0, 2_000), turn(1_000, 3_000, B)]
    words = [word("a", 0, 900), word("b", 1_200, 1_600), word("c", 2_100, 2_600)]
    assert speakers_of(words, turns) == [A, A, B]
    assert speakers_of([word("b", 1_200, 1_600)], [turn(1_000, 3_000, B), turn(1_000, 2_000)]) == [
        A
    ]


def test_a_long_turn_that_began_long_ago_counts() -> None:
    turns = [turn(0, 600_000), *(turn(at, at + 500, B) for at in range(10_000, 500_000, 20_000))]
    assert speakers_of([word("a", 590_000, 590_500)], turns) == [A]


def test_words_without_turns_have_no_speaker() -> None:
    assert speakers_of([word("a", 0, 100)], []) == [None]


@given(
    turns=st.lists(
        st.tuples(st.integers(0, 20_000), st.integers(1, 9_000), st.sampled_from([A, B])),
        max_size=12,
    ),
    words=st.lists(st.tuples(st.integers(0, 25_000), st.integers(0, 900)), max_size=12),
)
def test_looking_at_near_turns_alone_gives_what_all_give(
    turns: list[tuple[int, int, str]], words: list[tuple[int, int]]
) -> None:
    in_order = sorted(turn(start, start + length, who) for start, length, who in turns)
    said = [word("a", start, start + length) for start, length in sorted(words)]
    found = speakers_of(said, in_order)
    for each, speaker in zip(said, found, strict=True):
        shared = {
            who: sum(it.span.clipped(each.span).duration_ms for it in in_order if it.speaker == who)
            for who in (A, B)
        }
        if max(shared.values()):
            assert speaker is not None
            assert shared[speaker] == max(shared.values())


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    words = (word("yes", 0, 400), word("no", 1_000, 1_400), word("why", 1_500, 1_900))
    segment = Segment(Span(0, 1_900), " yes no why", words)
    (parts,) = attribute([segment], [turn(0, 500), turn(900, 2_000, B)])
    assert [(part.text, part.span, part.speaker) for part in parts] == [
        (" yes", Span(0, 400), A),
        (" no why", Span(1_000, 1_900), B),
    ]
    assert attribute([segment], [turn(0, 2_000)]) == [(replace(segment, speaker=A),)]


def test_a_segment_without_words_belongs_to_who_speaks_for_the_most_of_it() -> None:
    segment = Segment(Span(0, 3_000), " yes")
    turns = [turn(0, 1_000), turn(1_000, 3_000, B)]
    assert attribute([segment], turns) == [(replace(segment, speaker=B),)]
    assert attribute([segment], []) == [(segment,)]


def test_segments_with_and_without_words_get_their_own_speakers() -> None:
    words = (word("yes", 0, 400), word("no", 1_000, 1_400))
    segments = [
        Segment(Span(0, 1_400), " yes no", words),
        Segment(Span(1_500, 1_900), " why"),
        Segment(Span(3_000, 3_400), " so", (word("so", 3_000, 3_400),)),
    ]
    found = attribute(segments, [turn(0, 500), turn(900, 2_000, B), turn(2_900, 3_500)])
    assert [[part.speaker for part in parts] for parts in found] == [[A, B], [B], [A]]


def test_a_segment_in_which_two_speak_at_once_says_so() -> None:
    words = (word("yes", 0, 400), word("no", 500, 900))
    segment = Segment(Span(0, 900), " yes no", words, flags=("odd",))
    turns = [turn(0, 1_000), turn(400, 700, B)]
    assert [it.flags for (it,) in attribute([segment], turns)] == [("odd", OVERLAP)]
    turns = [turn(0, 1_000), turn(800, 1_000, B)]  # 100 ms of it
    assert [it.flags for (it,) in attribute([segment], turns)] == [("odd",)]


def test_one_turn_of_hours_does_not_slow_down_all_others() -> None:
    turns = sorted(
        [turn(0, 1_200_000), *(turn(at, at + 1_000, B) for at in range(0, 9_000_000, 1_500))]
    )
    near = _Near(turns)
    reached = [len(near.to(Span(at, at + 300))) for at in range(3_000_000, 9_000_000, 60_000)]
    assert max(reached) < 5


def test_merged_speakers_no_longer_overlap_each_other() -> None:
    words = (word("yes", 0, 400), word("no", 500, 900))
    segment = Segment(Span(0, 900), " yes no", words, flags=("odd", OVERLAP))
    assert marked_overlaps([segment], [turn(0, 1_000)])[0].flags == ("odd",)


# --- changes ----------------------------------------------------------------------------------

TALK = Diarization((turn(0, 900), turn(1_000, 2_000, B), turn(2_100, 3_000)), {A: "Lan"})


def test_a_diarization_survives_its_stored_form() -> None:
    assert Diarization.from_json(json.loads(json.dumps(TALK.to_json()))) == TALK


def test_speakers_are_renamed() -> None:
    renamed, into = TALK.changed({B: "Minh"})
    assert (renamed.turns, renamed.names, into) == (TALK.turns, {A: "Lan", B: "Minh"}, {})
    assert renamed.changed({A: None})[0].names == {B: "Minh"}
    assert [TALK.name_of(it) for it in TALK.speakers] == ["Lan", B]
    assert [TALK.spoken_ms(it) for it in TALK.speakers] == [1_800, 1_000]


def test_two_speakers_become_one() -> None:
    merged, into = TALK.changed({B: A})
    assert (merged.turns, merged.names, into) == ((turn(0, 3_000),), {A: "Lan"}, {B: A})
    merged, into = TALK.changed({A: B, B: "Minh"})
    assert (merged.turns, merged.names, into) == ((turn(0, 3_000, B),), {B: "Minh"}, {A: B})


def test_a_change_of_nobody_is_named_with_who_there_is() -> None:
    with pytest.raises(UnknownOption, match="speaker must be one of SPEAKER_00, SPEAKER_01; got"):
        TALK.changed({"SPEAKER_07": "Lan"})
    with pytest.raises(UnknownOption, match="nobody speaks"):
        Diarization(()).changed({A: "Lan"})


def test_speakers_cannot_become_parts_of_each_other() -> None:
    with pytest.raises(OptionConflict, match="the request merges SPEAKER_01 into SPEAKER_00; to"):
        TALK.changed({A: B, B: A})


@pytest.mark.parametrize("name", ["SPEAKER_07", "speaker_00", "Speaker_1", B])
def test_a_name_that_looks_like_an_id_is_that_of_another_speaker(name: str) -> None:
    with pytest.raises(OutOfRange, match=r"or another speaker \(SPEAKER_00\); got") as error:
        TALK.changed({B: name})
    assert error.value.details["field"] == B
    with pytest.raises(OutOfRange, match="there is none"):
        Diarization((turn(0, 900),)).changed({A: name})


@pytest.mark.parametrize("name", ["Speaker", "SPEAKER_A", "Speaker 1", "SPEAKER_00 (Lan)"])
def test_any_other_name_is_a_name(name: str) -> None:
    assert TALK.changed({B: name})[0].name_of(B) == name


# --- channels ---------------------------------------------------------------------------------


def segment(speaker: str, *words: Word) -> Segment:
    span = Span(words[0].span.start_ms, words[-1].span.end_ms)
    return Segment(span, "".join(it.text for it in words), words, speaker=speaker)


def test_the_turns_of_channels_are_those_of_their_words() -> None:
    hers = segment(A, word("hello", 0, 500), word("there", 600, 1_000), word("you", 3_000, 3_500))
    his = segment(B, word("hi", 700, 1_500))
    turns = turns_in([hers, his, Segment(Span(9_000, 9_500), " music")])
    assert turns == (turn(0, 1_000), turn(700, 1_500, B), turn(3_000, 3_500))
    assert [it.flags for it in marked_overlaps([hers, his], turns)] == [(OVERLAP,), (OVERLAP,)]
    assert marked_overlaps([hers], turns_in([hers])) == (hers,)


def test_of_two_who_begin_at_once_the_first_id_is_the_first() -> None:
    assert Diarization((turn(0, 500, B), turn(0, 900, A))).speakers == [A, B]


def test_a_diarization_completes_another_one_where_that_has_nobody() -> None:
    first = Diarization((Turn(Span(0, 4_000), A), Turn(Span(4_000, 8_000), B)), {B: "Lan"})
    anew = (
        Turn(Span(0, 3_900), B),  # the same people by other ids, and one more
        Turn(Span(4_100, 8_000), A),
        Turn(Span(10_000, 12_000), A),
        Turn(Span(12_000, 13_000), B),
        Turn(Span(13_000, 14_000), "SPEAKER_02"),
    )
    found = first.completed_by(Diarization(anew))
    assert found.names == {B: "Lan"}
    assert [(it.span.start_ms, it.speaker) for it in found.turns] == [
        (0, A),
        (4_000, B),
        (10_000, B),
        (12_000, A),
        (13_000, "SPEAKER_02"),
    ]
    assert found.completed_by(Diarization(anew)) == found
