"""Transcripts as pages and as Word files: all text is there, and none of it is markup."""

from __future__ import annotations

from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.transcripts.documents import clock, page_policy, paragraphs, to_docx, to_html
from common.domain.masking import masked
from common.domain.moderation import Label
from common.domain.speakers import Diarization, Turn
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word
from tests.support.factories import offensive

EVIL = "<script>alert(1)</script>\" onload='x' </script> {{ 7*7 }} {% raw %} &amp;"
HELLO = Segment(
    Span(0, 1_500),
    " Xin chào,",
    (Word(" Xin", Span(0, 500), 0.9), Word(" chào,", Span(500, 1_500), 0.9)),
    speaker="SPEAKER_00",
)
RUDE = Segment(Span(1_600, 2_500), " oh shit man", speaker="SPEAKER_00", finding=offensive(4, 8))
ANSWER = Segment(Span(3_725_000, 3_726_000), " Yes.", language="en", speaker="SPEAKER_01")
TURNS = tuple(Turn(it.span, it.speaker or "") for it in (HELLO, RUDE, ANSWER))
TALK = Transcript(
    "vi", 3_727_000, (HELLO, RUDE, ANSWER), (), Diarization(TURNS, {"SPEAKER_00": "Lan"})
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.text += data

    def all(self, name: str) -> list[dict[str, Any]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_page_shows_who_says_what_and_when() -> None:
    page = Page(to_html(TALK, "talk.mp3"))
    shown = words(page.text)
    assert "talk.mp3 1:02:07 · Vietnamese" in shown
    assert "Lan 0:00 Xin chào, oh shit man SPEAKER_01 1:02:05 Yes." in shown
    assert [it["data-t"] for it in page.all("a")] == ["0.0", "3725.0"]
    segments = [it for it in page.all("span") if it.get("class") == "segment"]
    assert [(it["data-t"], it["data-end"]) for it in segments] == [
        ("0.0", "1.5"),
        ("1.6", "2.5"),
        ("3725.0", "3726.0"),
    ]
    assert [it.get("lang") for it in segments] == [None, None, "en"]
    assert [it["data-t"] for it in page.all("span") if it.keys() == {"data-t"}] == ["0.0", "0.5"]


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = Page(to_html(TALK, "a: b?.mp3"))
    assert [it["src"] for it in page.all("source")] == ["./a%3A%20b%3F.mp3", "?format=original"]
    assert not [
        it
        for _, it in page.elements
        if {"href", "src"} & it.keys() and "t=" not in it.get("href", "t=")
    ]
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object", "base"})
    (policy,) = [it["content"] for it in page.all("meta") if "http-equiv" in it]
    assert policy == page_policy()


@pytest.mark.parametrize("where", ["text", "word", "name", "file"])
def test_nothing_in_a_transcript_becomes_markup(where: str) -> None:
    plain = Page(to_html(TALK, "talk.mp3"))
    segment = Segment(Span(0, 1), EVIL, speaker="SPEAKER_00")
    if where == "word":
        segment = Segment(Span(0, 1), EVIL, (Word(EVIL, Span(0, 1), 0.9),), speaker="SPEAKER_00")
    diarization = Diarization(TURNS, {"SPEAKER_00": EVIL if where == "name" else "Lan"})
    talk = Transcript(
        "vi", 1, (segment,) if where in {"text", "word"} else (HELLO,), (), diarization
    )
    page = Page(to_html(talk, EVIL if where == "file" else "talk.mp3"))
    assert words(EVIL) in words(page.text)
    for tag, attributes in page.elements:
        assert tag in {known for known, _ in plain.elements}
        assert not [name for name in attributes if name.startswith("on")]
    assert len(page.all("script")) == len(page.all("style")) == 1


@given(st.text(), st.text(), st.text())
def test_any_text_makes_a_page_and_a_word_file(text: str, name: str, file: str) -> None:
    segment = Segment(Span(0, 1_000), text, speaker="SPEAKER_00")
    diarization = Diarization((Turn(segment.span, "SPEAKER_00"),), {"SPEAKER_00": name})
    talk = Transcript("vi", 1_000, (segment,), None, diarization)
    assert len(Page(to_html(talk, file)).all("script")) == 1
    docx.Document(BytesIO(to_docx(talk, file)))


def test_a_word_file_has_a_heading_and_a_paragraph_a_turn() -> None:
    document = docx.Document(BytesIO(to_docx(TALK, "talk.mp3")))
    title, facts, *turns = document.paragraphs
    assert (title.style and title.style.name, title.text) == ("Heading 1", "talk.mp3")
    assert facts.text == "1:02:07 · Vietnamese"
    assert [turn.text for turn in turns] == [
        "Lan 0:00\nXin chào, oh shit man",
        "SPEAKER_01 1:02:05\nYes.",
    ]
    assert turns[0].runs[0].bold
    assert (document.core_properties.title, document.core_properties.author) == ("talk.mp3", "")


def test_offending_text_is_masked_and_flagged_as_asked() -> None:
    hidden = masked(TALK)
    written = docx.Document(BytesIO(to_docx(hidden, "a", flag=True)))
    for text in (
        words(Page(to_html(hidden, "a", flag=True)).text.replace("OFFENSIVE", "[OFFENSIVE]")),
        " ".join(paragraph.text for paragraph in written.paragraphs),
    ):
        assert "Xin chào, [OFFENSIVE] oh s*** man" in text
    assert "OFFENSIVE" not in to_html(TALK, "a")
    assert RUDE.finding is not None
    assert RUDE.finding.label is Label.OFFENSIVE


def test_a_recording_without_text_makes_documents_that_say_so() -> None:
    nothing = Transcript("en", 1_000, ())
    assert "This recording has no text." in Page(to_html(nothing, "a")).text
    assert len(docx.Document(BytesIO(to_docx(nothing, "a"))).paragraphs) == 2


def test_paragraphs_end_with_a_turn_after_a_pause_and_where_they_are_long() -> None:
    long = "x" * 300
    at = [0, 1_000, 2_000, 3_000, 10_000]
    segments = tuple(Segment(Span(start, start + 1_000), long) for start in at)
    found = list(paragraphs(Transcript("en", 11_000, segments)))
    assert [len(paragraph.segments) for paragraph in found] == [2, 2, 1]


def test_clocks_have_hours_where_there_are_any() -> None:
    assert [clock(ms) for ms in (0, 7_999, 65_000, 3_725_000)] == [
        "0:00",
        "0:07",
        "1:05",
        "1:02:05",
    ]
