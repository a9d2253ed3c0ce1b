from __future__ import annotations

import json
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from common.domain.formats import (
    MEDIA_TYPES,
    WRITERS,
    TextFormat,
    to_rttm,
    to_srt,
    to_tsv,
    to_txt,
    to_vtt,
    write,
)
from common.domain.results import transcript_document
from common.domain.speakers import Diarization, Turn
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word

HELLO = Segment(
    span=Span(0, 1_500),
    text=" Xin chào,  Steno.",
    words=(
        Word(" Xin", Span(0, 300), 0.9),
        Word(" chào,", Span(300, 800), 0.8),
        Word(" Steno.", Span(800, 1_500), 0.7),
    ),
    avg_logprob=-0.2,
)
LATE = Segment(span=Span(3_599_999, 3_600_001), text=" a --> b\tc\n\nd ", flags=("repetition",))
EMPTY = Segment(span=Span(2_000, 3_000), text="  ")
TALK = Transcript(language="vi", duration_ms=3_600_500, segments=(HELLO, EMPTY, LATE))


def test_txt_has_one_segment_a_line() -> None:
    assert to_txt(TALK) == "Xin chào, Steno.\na --> b c d\n"


def test_srt_counts_from_one_and_always_has_the_hour() -> None:
    assert to_srt(TALK) == (
        "1\n00:00:00,000 --> 00:00:01,500\nXin chào, Steno.\n\n"
        "2\n00:59:59,999 --> 01:00:00,001\na -> b c d\n\n"
    )


def test_vtt_has_the_hour_only_from_the_first_hour_on() -> None:
    assert to_vtt(TALK) == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:01.500\nXin chào, Steno.\n\n"
        "59:59.999 --> 01:00:00.001\na -> b c d\n\n"
    )


def test_vtt_names_the_language_of_a_cue_that_has_another_than_the_whole() -> None:
    cues = [
        Segment(Span(0, 1_000), "Xin chào", language="vi"),
        Segment(Span(1_000, 2_000), "A <b>", language="en"),
    ]
    talk = Transcript(language="vi", duration_ms=2_000, segments=tuple(cues))
    assert to_vtt(talk) == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:01.000\nXin chào\n\n"
        "00:01.000 --> 00:02.000\n<lang en>A &lt;b></lang>\n\n"
    )
    segments = transcript_document(talk)["segments"]
    assert [segment["language"] for segment in segments] == ["vi", "en"]


def test_cues_of_a_translation_are_not_tagged() -> None:
    talk = Transcript("vi", 1_000, (Segment(Span(0, 1_000), "Hello", language="en"),))
    assert "<lang" not in to_vtt(talk)
    assert transcript_document(talk)["segments"][0]["language"] == "en"


def test_tsv_keeps_three_columns_whatever_the_text_holds() -> None:
    assert to_tsv(TALK) == (
        "start\tend\ttext\n0\t1500\tXin chào, Steno.\n3599999\t3600001\ta --> b c d\n"
    )


def test_json_is_the_public_document_with_letters_as_letters() -> None:
    text = write("json", TALK, warnings=["late"], manifest={"engine": "x"})
    assert "Xin chào" in text
    document = transcript_document(TALK, warnings=["late"], manifest={"engine": "x"})
    assert json.loads(text) == document


def test_the_public_document_has_seconds_and_words_without_spaces() -> None:
    document = transcript_document(TALK)
    assert document["text"] == "Xin chào,  Steno. a --> b\tc\n\nd"
    assert document["word_count"] == 8
    assert document["duration_seconds"] == 3600.5
    assert document["segments"][2]["start"] == 3599.999
    assert document["segments"][2]["flags"] == ["repetition"]
    assert document["segments"][0]["id"] == 0
    assert document["words"][1] == {
        "word": "chào,",
        "start": 0.3,
        "end": 0.8,
        "probability": 0.8,
        "speaker": None,
        "estimated": False,
    }


def test_silence_gives_empty_files_that_are_still_valid() -> None:
    nothing = Transcript(language="en", duration_ms=1000, segments=())
    written = {ending: write(ending, nothing) for ending in WRITERS}
    assert written == {
        "txt": "",
        "srt": "",
        "vtt": "WEBVTT\n\n",
        "tsv": "start\tend\ttext\n",
        "rttm": "",
    }


@given(text=st.text(), start=st.integers(0, 10**9), length=st.integers(0, 10**7))
def test_no_text_can_break_out_of_its_record(text: str, start: int, length: int) -> None:
    talk = Transcript("en", start + length, (Segment(Span(start, start + length), text),))
    cues = 1 if text.strip() else 0
    assert len(to_tsv(talk).split("\n")) == 2 + cues
    assert to_srt(talk).count(" --> ") == cues
    assert to_srt(talk).count("\n\n") == cues
    assert to_vtt(talk).count("\n\n") == 1 + cues


def test_rttm_names_the_recording_and_the_channel_of_each_speaker() -> None:
    spoken = Diarization((Turn(Span(0, 1_500), "SPEAKER_00"), Turn(Span(900, 2_000), "SPEAKER_01")))
    first = Segment(Span(0, 1_500), "a", speaker="SPEAKER_00", channel=1)
    second = Segment(Span(900, 2_000), "b", speaker="SPEAKER_01", channel=0)
    talk = Transcript("en", 2_000, (first, second), diarization=spoken)
    assert to_rttm(talk, "my  call\u2028 1.v2.wav").splitlines() == [
        "SPEAKER my_call_1.v2 2 0.000 1.500 <NA> <NA> SPEAKER_00 <NA> <NA>",
        "SPEAKER my_call_1.v2 1 0.900 1.100 <NA> <NA> SPEAKER_01 <NA> <NA>",
    ]
    mixed = Transcript("en", 2_000, (HELLO,), diarization=spoken)
    for name in (None, "", " ", " .wav"):
        assert write("rttm", mixed, filename=name).startswith("SPEAKER recording 1 0.000")


@given(name=st.text())
def test_no_filename_can_break_out_of_its_field(name: str) -> None:
    talk = Transcript("en", 900, (), diarization=Diarization((Turn(Span(0, 900), name),)))
    (line,) = to_rttm(talk, name).removesuffix("\n").split("\n")
    assert len(line.split()) == 10 or not name.strip()


def test_every_format_has_a_media_type() -> None:
    assert set(MEDIA_TYPES) == set(get_args(TextFormat)) == {*WRITERS, "json"}
