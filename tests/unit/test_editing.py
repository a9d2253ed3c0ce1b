from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.differences import difference
from common.domain.editing import (
    MAX_ALL_TEXT,
    MAX_EDITS,
    MAX_TEXT,
    Delete,
    Edit,
    Insert,
    Join,
    Replace,
    Split,
    apply_edits,
)
from common.domain.moderation import Finding, Label
from common.domain.speakers import (
    OVERLAP,
    Diarization,
    Turn,
    marked_overlaps,
    speaker_id,
    turns_in,
)
from common.domain.transcript import Transcript, segments_from_json, segments_to_json
from common.domain.values import Detected, Segment, Span, Word
from common.errors import (
    BadInput,
    FieldMissing,
    NoSpeakers,
    OptionConflict,
    OutOfRange,
    StenoError,
    TooLarge,
    UnknownOption,
)

A, B, C = map(speaker_id, range(3))
CLEAN = Finding(Label.CLEAN, (0.9, 0.1, 0.0))


def segment(text: str, start: int, word_ms: int = 300, **fields: Any) -> Segment:
    """A segment with one word after another, each of ``word_ms``, 100 ms apart."""
    words, now = [], start
    for word in text.split():
        words.append(Word(f" {word}", Span(now, now + word_ms), 0.8))
        now += word_ms + 100
    return Segment(Span(start, now - 100), f" {text}", tuple(words), **fields)


def talk(*segments: Segment, diarized: bool = False) -> Transcript:
    diarization = Diarization(turns_in(segments)) if diarized else None
    return Transcript("vi", 60_000, segments, diarization=diarization)


def edited(transcript: Transcript, *edits: Edit) -> Transcript:
    return apply_edits(transcript, edits)


def times(of: Segment) -> list[tuple[str, int, int, bool]]:
    return [(it.text.strip(), it.span.start_ms, it.span.end_ms, it.estimated) for it in of.words]


# --- texts ------------------------------------------------------------------------------------


def test_words_that_stay_keep_their_times_and_others_share_what_is_between() -> None:
    (found,) = edited(
        talk(segment("khach san nay rat dep", 1_000)), Replace(0, "Khach san này là rất, dep.")
    ).segments
    assert found.text == " Khach san này là rất, dep."
    assert times(found) == [
        ("Khach", 1_000, 1_300, False),
        ("san", 1_400, 1_700, False),
        ("này", 1_800, 2_062, True),
        ("là", 2_062, 2_237, True),
        ("rất,", 2_237, 2_500, True),
        ("dep.", 2_600, 2_900, False),
    ]
    assert [it.probability for it in found.words] == [0.8, 0.8, 1, 1, 1, 0.8]


def test_as_many_words_as_are_replaced_take_their_times() -> None:
    (found,) = edited(talk(segment("one two three", 0)), Replace(0, "eins zwei three")).segments
    assert times(found) == [
        ("eins", 0, 300, True),
        ("zwei", 400, 700, True),
        ("three", 800, 1_100, False),
    ]


def test_an_added_word_is_between_its_neighbours() -> None:
    (found,) = edited(talk(segment("one three", 0)), Replace(0, "one two three")).segments
    assert times(found)[1] == ("two", 300, 400, True)


def test_a_word_without_room_gets_it_from_the_longer_neighbour() -> None:
    words = (Word(" one", Span(0, 300), 0.8), Word(" three", Span(300, 350), 0.8))
    told = Segment(Span(0, 350), " one three", words)
    (found,) = edited(talk(told), Replace(0, "one two and three")).segments
    assert times(found) == [
        ("one", 0, 298, True),
        ("two", 298, 299, True),
        ("and", 299, 300, True),
        ("three", 300, 350, False),
    ]


def test_words_that_an_engine_wrote_in_pieces_stay() -> None:
    words = (
        Word(" don", Span(0, 100), 0.8),
        Word("'t", Span(100, 200), 0.8),
        Word(" go", Span(200, 300), 0.8),
    )
    told = talk(Segment(Span(0, 300), " don't go", words))
    (found,) = edited(told, Replace(0, "don't leave")).segments
    assert found.words[:2] == words[:2]
    (found,) = edited(told, Replace(0, "Don't, go")).segments
    assert "".join(it.text for it in found.words) == " Don't, go"
    assert [it.span for it in found.words] == [it.span for it in words]


def test_text_without_spaces_keeps_its_words() -> None:
    words = tuple(
        Word(text, Span(at * 100, at * 100 + 100), 0.8)
        for at, text in enumerate(("我", "喜欢", "北京", "。"))
    )
    told = talk(Segment(Span(0, 400), "我喜欢北京。", words))
    (found,) = edited(told, Replace(0, "我不喜欢南京?")).segments
    assert found.text == "我不喜欢南京?" == "".join(it.text for it in found.words)
    assert words[1] in found.words
    assert (found.words[0].text, found.words[0].span) == ("我", Span(0, 99)), "no room but in it"
    assert [it.text for it in found.words if it.estimated] == ["我", "不", "南", "京?"]
    (joined,) = edited(told, Split(0, word=2), Insert(500, 600, "好")).segments[2:]
    assert joined.text == "好"


def test_a_segment_without_words_stays_without() -> None:
    told = talk(Segment(Span(0, 4_000), " mot hai"))
    assert edited(told, Replace(0, "một hai")).segments[0].words == ()
    left, right = edited(told, Split(0, at_ms=1_000)).segments
    assert (left.text, right.text, left.words) == (" mot", " hai", ())
    assert left.span.end_ms == right.span.start_ms == 2_000
    assert edited(told, Insert(5_000, 6_000, "ba")).segments[1].words == ()


def test_a_new_text_has_neither_finding_nor_flags_of_the_engine() -> None:
    told = segment(
        "xin chao",
        0,
        finding=CLEAN,
        flags=("low_confidence", OVERLAP),
        detected=Detected("en", 0.9),
        avg_logprob=-0.5,
    )
    result = edited(talk(told, segment("a b", 5_000, finding=CLEAN)), Replace(0, "xin chào"))
    found, other = result.segments
    assert (found.finding, found.flags, found.detected) == (None, (OVERLAP,), None)
    assert (found.avg_logprob, other.finding) == (-0.5, CLEAN)


def test_the_same_text_changes_nothing() -> None:
    told = talk(segment("xin chào  nhé", 0, finding=CLEAN, flags=("low_confidence",)))
    for text in ("xin chào nhé", "\n xin\tchào nhé ", unicodedata.normalize("NFD", "xin chào nhé")):
        assert edited(told, Replace(0, text)) == told


def test_a_typed_text_is_one_line_and_composed() -> None:
    typed = unicodedata.normalize("NFD", " Đường\r\nNguyễn\u2028Huệ\x07 ")
    (found,) = edited(talk(segment("duong", 0)), Replace(0, typed)).segments
    assert found.text == " Đường Nguyễn Huệ"
    assert unicodedata.is_normalized("NFC", found.text)


def vietnamese_syllables() -> list[str]:
    """Onsets with rhymes, each with the six tones: more than all syllables of Vietnamese."""
    onsets = re.split(" ", " b c ch d đ g gh gi h k kh l m n ng ngh nh p ph qu r s t th tr v x")
    vowels = "a ă â e ê i o ô ơ u ư y ia iê yê ua uô ưa ươ oa oă oe uâ uê uy uya"
    ends = re.split(" ", " c ch m n ng nh p t")
    tones = ["", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323"]
    return [
        unicodedata.normalize("NFC", onset + vowel + tone + end)
        for onset in onsets
        for vowel in vowels.split()
        for end in ends
        for tone in tones
    ]


def test_every_vietnamese_syllable_stays_in_any_form_and_differs_from_every_other() -> None:
    syllables = vietnamese_syllables()
    assert len(syllables) > 30_000
    for at in range(0, len(syllables), 1_000):
        form: Literal["NFC", "NFD"] = "NFC" if at % 2_000 else "NFD"
        some = syllables[at : at + 1_000]
        told = segment(unicodedata.normalize(form, " ".join(some)), 0, 5)
        typed = unicodedata.normalize("NFD", " ".join(map(str.upper, some)))
        assert len(typed) <= MAX_TEXT
        (found,) = edited(replace(talk(told), duration_ms=200_000), Replace(0, typed)).segments
        assert found.text == unicodedata.normalize("NFC", f" {typed}")
        assert [it.span for it in found.words] == [it.span for it in told.words]
        assert not any(it.estimated for it in found.words)
    for tones in ("ma mà má mã mả mạ", "bơ bo bô", "dan đan", "ban băn bân"):
        words = tones.split()
        for one, other in pairwise(words):
            (found,) = edited(talk(segment(one, 0)), Replace(0, other)).segments
            assert found.words[0].estimated, (one, other)


def test_what_is_proposed_for_a_whole_transcript_may_be_more_than_one_request() -> None:
    told = talk(segment("a", 0))
    for edits in ([Replace(0, "b")] * (MAX_EDITS + 1), [Replace(0, "b" * MAX_TEXT)] * 21):
        assert sum(len(it.text or "") for it in edits) > MAX_ALL_TEXT or len(edits) > MAX_EDITS
        [segment_after] = apply_edits(told, edits, is_limited=False).segments
        assert segment_after.text.strip() == edits[-1].text


# --- times ------------------------------------------------------------------------------------


def test_words_that_a_shorter_segment_leaves_out_are_moved_in() -> None:
    told = talk(segment("one two three", 1_000))
    (found,) = edited(told, Replace(0, start_ms=1_100, end_ms=2_050)).segments
    assert times(found) == [
        ("one", 1_100, 1_300, True),
        ("two", 1_400, 1_700, False),
        ("three", 1_800, 2_050, True),
    ]
    (found,) = edited(told, Replace(0, start_ms=10_000, end_ms=11_000)).segments
    assert found.words[0].span.start_ms == 10_000
    assert found.words[-1].span.end_ms == 11_000
    (found,) = edited(told, Replace(0, end_ms=9_000)).segments
    assert found.words == told.segments[0].words


def test_a_boundary_of_two_segments_moves_in_any_order_of_edits() -> None:
    told = talk(segment("a b", 0), segment("c d", 700))
    later = [Replace(0, end_ms=900), Replace(1, start_ms=900)]
    assert edited(told, *later) == edited(told, *reversed(later))
    with pytest.raises(
        OutOfRange, match=r"edits\[0\]\.end must be at most 0.7, where segment 1 st"
    ):
        edited(told, later[0])
    with pytest.raises(
        OutOfRange, match=r"edits\[0\]\.start must be at least 0.7, where segment 0"
    ):
        edited(told, Replace(1, start_ms=600))
    with pytest.raises(OutOfRange, match=r"edits\[1\].start must be at least 1.4"):
        edited(told, Delete(0), Insert(1_000, 2_000, "x"))


def test_a_segment_does_not_move_past_another() -> None:
    told = talk(segment("a b", 0), segment("c d", 1_000))
    with pytest.raises(OutOfRange, match=r"at most 1\.0, where segment 1 starts; got 6\.0"):
        edited(told, Replace(0, start_ms=5_000, end_ms=6_000))


def test_segments_of_other_channels_may_overlap() -> None:
    told = talk(segment("a b", 0, channel=0), segment("c d", 1_000, channel=1))
    first, second = edited(told, Replace(0, start_ms=1_200, end_ms=6_000)).segments
    assert (first.channel, second.channel) == (1, 0)


# --- segments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [{"word": 2}, {"at_ms": 650}, {"at_ms": 700}, {"at_ms": 940}])
def test_a_split_is_at_the_nearest_boundary_of_words(at: dict[str, int]) -> None:
    told = talk(segment("one two three four", 0, finding=CLEAN, speaker=None))
    left, right = edited(told, Split(0, **at)).segments
    assert (left.text, right.text) == (" one two", " three four")
    assert (left.span, right.span) == (Span(0, 700), Span(800, 1_500))
    assert left.words + right.words == told.segments[0].words
    assert (left.finding, right.finding) == (None, None)


def test_a_join_undoes_a_split() -> None:
    told = talk(segment("one two three four", 0))
    parts = edited(told, Split(0, word=2))
    assert edited(parts, Join(0, 1)) == told


def test_a_join_puts_a_space_where_words_would_run_together() -> None:
    def joined(*texts: str) -> str:
        parts = [Segment(Span(at * 100, at * 100 + 50), text) for at, text in enumerate(texts)]
        return edited(talk(*parts), Join(0, len(parts) - 1)).segments[0].text

    assert joined("Xin", "chào", " nhé") == "Xin chào nhé"
    assert joined("你好。", "世界") == "你好。世界"
    assert joined(" a", "", " b") == " a b"


def test_a_join_leaves_other_channels_alone() -> None:
    told = talk(
        segment("a", 0, channel=0),
        segment("x", 100, channel=1),
        segment("b", 1_000, channel=0),
    )
    joined, other = edited(told, Join(0, 2)).segments
    assert (joined.text, joined.channel, other) == (" a b", 0, told.segments[1])
    with pytest.raises(OptionConflict, match=r"edits\[0\].last=1 needs a segment of the channel"):
        edited(told, Join(0, 1))


def test_a_join_is_of_one_speaker() -> None:
    told = talk(segment("a", 0, speaker=A), segment("b", 1_000, speaker=B), diarized=True)
    with pytest.raises(OptionConflict, match="one speaker; segment 0 has SPEAKER_00, segment 1"):
        edited(told, Join(0, 1))
    (joined,) = edited(told, Replace(1, speaker=A), Join(0, 1)).segments
    assert (joined.speaker, joined.text) == (A, " a b")


def test_an_inserted_segment_has_the_channel_of_its_speaker() -> None:
    told = talk(
        segment("a", 0, channel=0, speaker=A),
        segment("b", 1_000, channel=1, speaker=B),
        diarized=True,
    )
    found = edited(told, Insert(500, 900, "xin chào", B), Insert(0, 900, "hm")).segments
    assert [(it.text, it.channel) for it in found] == [
        (" a", 0),
        (" hm", None),
        (" xin chào", 1),
        (" b", 1),
    ]
    assert times(found[2]) == [("xin", 500, 671, True), ("chào", 671, 900, True)]


def test_all_segments_can_go_and_one_can_come() -> None:
    told = talk(segment("a", 0), segment("b", 1_000))
    assert edited(told, Delete(1), Delete(0)).segments == ()
    (found,) = edited(edited(told, Delete(1), Delete(0)), Insert(0, 60_000, "x y")).segments
    assert len(found.words) == 2


# --- speakers ---------------------------------------------------------------------------------


def test_the_turns_follow_the_speaker_of_a_segment() -> None:
    told = talk(
        segment("a b", 0, speaker=A),
        segment("c d", 800, speaker=A),
        segment("e f", 1_600, speaker=B),
        diarized=True,
    )
    assert told.diarization is not None
    assert told.diarization.turns == (Turn(Span(0, 1_500), A), Turn(Span(1_600, 2_300), B))
    found = edited(told, Replace(1, speaker=B))
    assert found.diarization is not None
    assert found.diarization.turns == (
        Turn(Span(0, 800), A),
        Turn(Span(800, 1_500), B),
        Turn(Span(1_600, 2_300), B),
    )
    assert [it.speaker for it in found.segments] == [A, B, B]
    assert edited(found, Replace(1, speaker=A)).diarization == Diarization(
        (Turn(Span(0, 1_500), A), Turn(Span(1_600, 2_300), B))
    )
    nobody = edited(told, Replace(1, speaker=None))
    assert nobody.diarization is not None
    assert nobody.diarization.turns == (Turn(Span(0, 800), A), Turn(Span(1_600, 2_300), B))


def test_a_segment_that_changes_hands_often_ends_with_the_last_one() -> None:
    told = talk(segment("a b", 0, speaker=A), segment("c d", 2_000, speaker=B), diarized=True)
    once = edited(told, Replace(0, speaker=B), Replace(0, "x y"))
    assert once == edited(told, Replace(0, "x y"), *[Replace(0, speaker=it) for it in (B, A, B)])
    assert once.diarization == Diarization((Turn(Span(0, 700), B), Turn(Span(2_000, 2_700), B)))
    back = edited(told, *[Replace(0, speaker=it) for it in (B, None, A)])
    assert back == told
    gone = edited(told, Replace(0, speaker=B), Delete(0))
    assert gone.diarization == once.diarization


def test_nobody_is_the_speaker_where_there_are_none() -> None:
    """Clients send a segment back as they read it."""
    found = edited(talk(segment("a b", 0)), Replace(0, text="a c", speaker=None))
    assert (found.text, found.segments[0].speaker) == ("a c", None)


def test_who_speaks_as_well_keeps_their_turn_and_the_flag_says_so() -> None:
    both = Diarization(
        (Turn(Span(0, 1_000), A), Turn(Span(200, 900), B), Turn(Span(5_000, 6_000), C))
    )
    told = Transcript("en", 60_000, (segment("a b", 0, speaker=A),), diarization=both)
    told = replace(told, segments=marked_overlaps(told.segments, both.turns))
    (found,) = edited(told, Replace(0, speaker=B)).segments
    assert found.flags == ()
    (found,) = edited(told, Replace(0, speaker=C)).segments
    assert found.flags == (OVERLAP,)


def test_a_speaker_who_has_segments_has_turns() -> None:
    told = Transcript(
        "en",
        60_000,
        (segment("a b", 0, speaker=A), segment("c", 900, speaker=A)),
        diarization=Diarization((Turn(Span(0, 700), A), Turn(Span(2_000, 3_000), B))),
    )
    found = edited(told, Replace(0, speaker=B))
    assert found.diarization is not None
    assert found.diarization.speakers == [B, A]


# --- what is rejected -------------------------------------------------------------------------

TWO = talk(segment("one two", 0), segment("three", 1_000))
SPOKEN = talk(segment("a", 0, speaker=A), segment("b", 1_000, speaker=B), diarized=True)
GONE = (
    "edits[1].segment must be a segment that no earlier edit deletes, joins or splits; "
    "got '{}, of edits[0]'"
)
BLANK = (
    "edits[0].text must be a text that is not blank; delete the segment instead; got ' \\u200b\\n'"
)


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([Replace(2, "x")], OutOfRange, "edits[0].segment must be from 0 to 1; got 2"),
        ([Delete(-1)], OutOfRange, "edits[0].segment must be from 0 to 1; got -1"),
        (
            [Delete(0), Replace(0, "x")],
            OutOfRange,
            GONE.format(0),
        ),
        (
            [Split(0, word=1), Split(0, at_ms=300)],
            OutOfRange,
            GONE.format(0),
        ),
        (
            [Join(0, 1), Delete(1)],
            OutOfRange,
            GONE.format(1),
        ),
        ([Replace(0)], FieldMissing, "edits[0].text, start, end or speaker is missing"),
        (
            [Replace(0, " \u200b\n")],
            OutOfRange,
            BLANK,
        ),
        ([Insert(0, 1, "")], OutOfRange, "edits[0].text must be a text that is not blank; got ''"),
        (
            [Replace(0, "a\0")],
            OutOfRange,
            "edits[0].text must be Unicode without lone surrogates and NUL; got 'one at 1'",
        ),
        (
            [Replace(0, "\ud800")],
            OutOfRange,
            "edits[0].text must be Unicode without lone surrogates and NUL; got 'one at 0'",
        ),
        (
            [Replace(0, "x" * (MAX_TEXT + 1))],
            TooLarge,
            "edits[0].text is limited to 10000 characters; got 10001",
        ),
        (
            [Delete(0)] * (MAX_EDITS + 1),
            TooLarge,
            "edits is limited to 1000 edits; got 1001",
        ),
        (
            [Insert(0, 1, "x" * 999), *[Replace(0, "x" * 10_000)] * 20],
            TooLarge,
            "edits is limited to 200000 characters in all texts; got 200999",
        ),
        (
            [Replace(0, start_ms=-1)],
            OutOfRange,
            "edits[0].start must be from 0 to 60.0, the recording's end; got -0.001",
        ),
        (
            [Replace(1, end_ms=60_001)],
            OutOfRange,
            "edits[0].end must be from 0 to 60.0, the recording's end; got 60.001",
        ),
        (
            [Replace(1, end_ms=10**400)],
            OutOfRange,
            "edits[0].end must be from 0 to 60.0, the recording's end; got 1000000000000.0",
        ),
        (
            [Replace(1, start_ms=1_300)],
            OutOfRange,
            "edits[0].start must be before the segment's end at 1.3; got 1.3",
        ),
        (
            [Replace(1, end_ms=1_000)],
            OutOfRange,
            "edits[0].end must be after the segment's start at 1.0; got 1.0",
        ),
        (
            [Insert(5_000, 4_000, "x")],
            OutOfRange,
            "edits[0].end must be after the segment's start at 5.0; got 4.0",
        ),
        (
            [Insert(1_100, 2_000, "x")],
            OutOfRange,
            "edits[0].start must be at least 1.3, where segment 1 ends; got 1.1",
        ),
        (
            [Insert(750, 950, "x"), Join(0, 1)],
            OutOfRange,
            "edits[1].last must be at most 0.75, where the segment of edits[0] starts; got 1.3",
        ),
        ([Split(0)], FieldMissing, "edits[0].at or edits[0].word is missing"),
        ([Split(0, 300, 1)], OptionConflict, "edits[0].word=1 needs an edit without at"),
        ([Split(0, word=2)], OutOfRange, "edits[0].word must be from 1 to 1; got 2"),
        ([Split(0, word=0)], OutOfRange, "edits[0].word must be from 1 to 1; got 0"),
        (
            [Split(0, at_ms=700)],
            OutOfRange,
            "edits[0].at must be in the segment, after 0.0, before 0.7; got 0.7",
        ),
        (
            [Split(1, word=1)],
            OutOfRange,
            "edits[0].segment must be a segment of at least two words; got 1",
        ),
        ([Join(1, 0)], OutOfRange, "edits[0].last must be more than first, which is 1; got 0"),
        ([Join(0, 2)], OutOfRange, "edits[0].last must be from 0 to 1; got 2"),
        (
            [Replace(0, speaker=A)],
            NoSpeakers,
            (
                "The job has no speakers: it was sent without diarize=true, or no channels were"
                " separated"
            ),
        ),
    ],
)
def test_a_bad_edit_is_named_with_its_limit(
    edits: list[Edit], error: type[StenoError], message: str
) -> None:
    with pytest.raises(error) as raised:
        apply_edits(TWO, edits)
    assert raised.value.message == message


def test_only_who_speaks_in_the_recording_can_be_a_speaker() -> None:
    for edit in (Replace(0, speaker="Lan"), Insert(2_000, 3_000, "x", "Lan")):
        with pytest.raises(
            UnknownOption, match=r"edits\[0\].speaker must be one of SPEAKER_00, SP"
        ):
            apply_edits(SPOKEN, [edit])


def test_a_transcript_without_segments_says_so() -> None:
    with pytest.raises(OutOfRange, match="there are none"):
        apply_edits(talk(), [Delete(0)])


# --- changes ----------------------------------------------------------------------------------


def test_changes_say_what_each_segment_was_and_is() -> None:
    told = talk(
        segment("toi o khach san", 0),
        segment("one two", 2_000),
        segment("yeah", 4_000),
        segment("yeah", 5_000),
        segment("yeah", 6_000),
        segment("a", 8_000),
        segment("b", 8_500),
        segment("same", 10_000),
    )
    result = apply_edits(
        told,
        [
            Replace(0, "tôi ở khach san"),
            Split(1, word=1),
            Delete(2),
            Join(5, 6),
            Insert(9_000, 9_500, "new"),
            Replace(7, start_ms=10_100, end_ms=12_000),
        ],
    )
    changes = json.loads(json.dumps(difference(told, result)))
    assert [it["op"] for it in changes] == [
        "replace",
        "split",
        "delete",
        "join",
        "insert",
        "replace",
    ]
    assert changes[0] == {
        "op": "replace",
        "before": [{"id": 0, "start": 0.0, "end": 1.5, "text": "toi o khach san", "speaker": None}],
        "after": [{"id": 0, "start": 0.0, "end": 1.5, "text": "tôi ở khach san", "speaker": None}],
        "words": [
            {"op": "delete", "text": "toi o"},
            {"op": "insert", "text": "tôi ở"},
            {"op": "equal", "text": " khach san"},
        ],
    }
    ids = [([b["id"] for b in it["before"]], [a["id"] for a in it["after"]]) for it in changes]
    assert ids == [([0], [0]), ([1], [1, 2]), ([2], []), ([5, 6], [5]), ([], [6]), ([7], [7])]
    assert "words" not in changes[5]


def test_a_segment_that_moved_away_is_one_change() -> None:
    told = talk(segment("a", 0), segment("b", 1_000))
    moved = edited(told, Replace(1, start_ms=20_000, end_ms=21_000))
    (change,) = difference(told, moved)
    assert (change["op"], change["before"][0]["start"], change["after"][0]["start"]) == (
        "replace",
        1.0,
        20.0,
    )


# --- anything ---------------------------------------------------------------------------------

SAID = st.text(alphabet="abAB đệ.,-我ạ", min_size=1, max_size=12).filter(str.strip)
TYPED = SAID | st.text(max_size=30)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """With and without words, channels and speakers; words may be pieces, and last no time."""
    has_words, has_channels = draw(st.booleans()), draw(st.booleans())
    has_speakers = has_channels or draw(st.booleans())
    segments = []
    for channel in range(2) if has_channels else (None,):
        now = 0
        for _ in range(draw(st.integers(0, 4))):
            start = now = now + draw(st.integers(0, 300))
            words = []
            for text in draw(st.lists(SAID, min_size=1, max_size=5)):
                space = draw(st.sampled_from([" ", " ", ""]))
                begin = now + draw(st.integers(0, 40))
                now = begin + draw(st.integers(0, 60))
                words.append(Word(space + text.strip(), Span(begin, now), 0.8))
            now += draw(st.integers(0, 40))
            speaker = channel if has_channels else draw(st.sampled_from([None, 0, 1, 2]))
            segments.append(
                Segment(
                    Span(start, now),
                    "".join(word.text for word in words),
                    tuple(words) if has_words else (),
                    flags=tuple(draw(st.sets(st.sampled_from(["low_confidence", "repetition"])))),
                    finding=draw(st.sampled_from([None, CLEAN])),
                    speaker=speaker_id(speaker) if has_speakers and speaker is not None else None,
                    channel=channel,
                )
            )
    segments.sort(key=lambda it: (it.span.start_ms, it.channel or 0))
    duration = max((it.span.end_ms for it in segments), default=0) + draw(st.integers(0, 500))
    diarization = Diarization(turns_in(segments)) if has_speakers else None
    if diarization is not None:
        segments = list(marked_overlaps(segments, diarization.turns))
    return Transcript("vi", duration, tuple(segments), diarization=diarization)


@st.composite
def possible_edits(draw: st.DrawFn, transcript: Transcript) -> Edit:
    """An edit that is often possible."""
    count, duration = len(transcript.segments), transcript.duration_ms
    speakers = transcript.diarization.speakers if transcript.diarization else []
    index = draw(st.integers(0, max(0, count - 1)))
    kind = draw(st.sampled_from([Replace, Replace, Replace, Split, Join, Delete, Insert]))
    if kind is Insert or not count:
        start, end = sorted(draw(st.tuples(*[st.integers(0, duration)] * 2)))
        return Insert(start, end, draw(TYPED), draw(st.sampled_from([None, *speakers])))
    if kind is Delete:
        return Delete(index)
    if kind is Join:
        return Join(index, draw(st.integers(index, count - 1)))
    of = transcript.segments[index]
    if kind is Split:
        if draw(st.booleans()):
            return Split(index, word=draw(st.integers(0, max(1, len(of.words)))))
        return Split(index, at_ms=draw(st.integers(of.span.start_ms, of.span.end_ms)))
    edit = Replace(index)
    if draw(st.booleans()):
        pieces = [word.text for word in of.words] or of.text.split(" ")
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(pieces)))
            pieces[at : at + draw(st.integers(0, 2))] = draw(st.lists(TYPED, max_size=2))
        said = st.sampled_from(["".join(pieces), draw(TYPED)])
        edit = replace(edit, text=draw(said))
    if draw(st.booleans()):
        near = st.integers(max(0, of.span.start_ms - 60), min(duration, of.span.end_ms + 60))
        edit = replace(edit, start_ms=draw(st.none() | near), end_ms=draw(st.none() | near))
    if draw(st.booleans()) and speakers:
        edit = replace(edit, speaker=draw(st.sampled_from([None, *speakers])))
    return edit


INTEGERS = st.none() | st.integers() | st.integers(-1, 5)
NAMES = st.none() | st.sampled_from([A, B]) | st.text(st.characters(), max_size=5)
ANY_TEXT = TYPED | st.text(st.characters(exclude_categories=()), max_size=20)
ANY_EDITS = st.one_of(
    st.builds(Replace, st.integers(), st.none() | ANY_TEXT, INTEGERS, INTEGERS, NAMES),
    st.builds(Replace, st.integers(-1, 5), st.none() | ANY_TEXT, INTEGERS, INTEGERS),
    st.builds(Split, st.integers(-1, 5), INTEGERS, INTEGERS),
    st.builds(Join, st.integers(-1, 5), st.integers(-1, 5)),
    st.builds(Delete, st.integers(-1, 5)),
    st.builds(Insert, st.integers(-5, 500), st.integers(), ANY_TEXT, NAMES),
)


def touched_by(edits: list[Edit], transcript: Transcript) -> set[int]:
    touched: set[int] = set()
    for edit in edits:
        match edit:
            case Join():
                touched |= {*range(edit.first, edit.last + 1)}
            case Replace() | Split() | Delete():
                touched.add(edit.segment)
    return touched & {*range(len(transcript.segments))}


def check_times(transcript: Transcript) -> None:
    """Segments are in order and in the recording, and their words in order and in them."""
    starts = [it.span.start_ms for it in transcript.segments]
    assert starts == sorted(starts)
    ends: dict[int | None, int] = {}
    for each in transcript.segments:
        assert ends.get(each.channel, 0) <= each.span.start_ms
        ends[each.channel] = each.span.end_ms
        assert each.span.end_ms <= transcript.duration_ms
        now = each.span.start_ms
        for word in each.words:
            assert word.text
            assert now <= word.span.start_ms
            now = word.span.end_ms
        assert now <= each.span.end_ms
        assert not each.words or "".join(word.text for word in each.words) == each.text


@given(st.data())
def test_any_edits_keep_order_and_containment_and_what_they_do_not_touch(
    data: st.DataObject,
) -> None:
    told = data.draw(transcripts())
    check_times(told)
    edits: list[Edit] = []
    new = apply_edits(told, edits)
    for _ in range(data.draw(st.integers(1, 4))):
        edit = data.draw(possible_edits(told))
        try:
            new = apply_edits(told, [*edits, edit])
            edits.append(edit)
        except BadInput:
            pass  # any other error fails the test
    check_times(new)
    assert (
        segments_from_json(json.loads(json.dumps(segments_to_json(new.segments)))) == new.segments
    )

    # What no edit names is there as it was, but for who speaks at the same time.
    touched = touched_by(edits, told)
    left = [replace(it, flags=()) for at, it in enumerate(told.segments) if at not in touched]
    now = [replace(it, flags=()) for it in new.segments]
    assert all(it in now for it in left)

    # A word that is not estimated is one that was there, and each is there once.
    was = [word.span for each in told.segments for word in each.words]
    certain = [word.span for each in new.segments for word in each.words if not word.estimated]
    for span in {*certain}:
        assert certain.count(span) <= was.count(span)

    # Texts that are not new keep their findings; a new one has none.
    before, after = (
        [(it.text, it.finding) for it in transcript.segments] for transcript in (told, new)
    )
    assert all(each in before for each in after if each[1] is not None)
    to_texts = [it for it in edits if not (isinstance(it, Replace) and it.text is None)]
    rewritten = touched_by(to_texts, told)
    assert all(each in after for at, each in enumerate(before) if at not in rewritten)

    if told.diarization is None:
        assert new.diarization is None
    else:
        assert new.diarization is not None
        turns = new.diarization.turns
        assert {it.speaker for it in new.segments} - {None} <= {*new.diarization.speakers}
        assert list(turns) == sorted(turns)
        for speaker in new.diarization.speakers:
            theirs = [turn.span for turn in turns if turn.speaker == speaker]
            assert all(one.end_ms <= other.start_ms for one, other in pairwise(theirs))
        assert new.segments == marked_overlaps(new.segments, turns)


@given(st.data())
def test_words_that_stay_keep_exact_times_unless_they_make_room(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    words, now = [], 0
    for number in range(count):
        start = now + data.draw(st.integers(0, 3))
        now = start + data.draw(st.integers(0, 6))
        words.append(Word(f" w{number}", Span(start, now), 0.8))
    told = Segment(Span(0, now), "".join(it.text for it in words), tuple(words))
    typed = []
    for word in words:
        typed += data.draw(st.lists(st.just("typed"), max_size=2))
        written = word.text.strip()
        typed += data.draw(st.sampled_from([(written,), (f"{written.upper()},",), ()]))
    typed = typed or ["typed"]
    found = edited(Transcript("vi", now + 1, (told,)), Replace(0, " ".join(typed))).segments[0]
    assert found.text.split() == typed == [it.text.strip() for it in found.words]
    was = {it.text.strip(): it for it in words}
    for before, word, after in zip(
        [None, *found.words], found.words, [*found.words[1:], None], strict=False
    ):
        old = was.get(word.text.strip().lower().rstrip(","))
        if old is None:
            assert word.estimated
            assert word.probability == 1
            continue
        assert word.probability == old.probability
        if word.estimated:
            assert any(it and it.text == " typed" for it in (before, after))
            assert word.span.duration_ms >= 1
            assert old.span.start_ms <= word.span.start_ms
            assert word.span.end_ms <= old.span.end_ms
        else:
            assert word.span == old.span


@given(transcripts(), st.lists(ANY_EDITS, min_size=1, max_size=4))
def test_bad_edits_raise_our_errors_and_no_others(told: Transcript, edits: list[Edit]) -> None:
    try:
        new = apply_edits(told, edits)
    except BadInput:
        return  # any other error fails the test
    check_times(new)


@given(transcripts(), transcripts())
def test_a_difference_accounts_for_every_segment(old: Transcript, new: Transcript) -> None:
    changes = difference(old, new)
    assert difference(old, old) == []
    json.dumps(changes)
    for side, transcript in (("before", old), ("after", new)):
        ids = [it["id"] for change in changes for it in change[side]]
        assert len(ids) == len({*ids})
        assert {*ids} <= {*range(len(transcript.segments))}
    gone = {it["id"] for change in changes for it in change["before"]}
    came = {it["id"] for change in changes for it in change["after"]}
    same = [
        [(it.span, it.text.strip(), it.speaker, it.channel) for it in side]
        for side in (
            [it for at, it in enumerate(old.segments) if at not in gone],
            [it for at, it in enumerate(new.segments) if at not in came],
        )
    ]
    assert sorted(same[0], key=repr) == sorted(same[1], key=repr)
    for change in changes:
        if "words" in change:
            text = "".join(it["text"] for it in change["words"] if it["op"] != "delete")
            assert text == " ".join(it["text"] for it in change["after"] if it["text"])
