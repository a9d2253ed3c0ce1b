"""How moderation looks in results, and that it survives storing and merging."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.db.transcriptions import ChunkResult
from common.domain.formats import write
from common.domain.masking import masked
from common.domain.merging import merge
from common.domain.moderation import Finding, Label, Mark, ModeratedBy
from common.domain.request import Options
from common.domain.results import transcript_document
from common.domain.transcript import Transcript, segments_from_json, segments_to_json
from common.domain.values import Chunk, Segment, Span, Window, Word
from common.transcripts import (
    moderated_by,
    moderation_to_json,
    moderation_warnings,
    parts,
    result_to_json,
)
from tests.support.factories import BY, CLEAN, offensive, stored_segment

OTHER = replace(BY, sha256="b" * 64)
POLITE = Segment(Span(0, 2_000), " Xin chào.", finding=CLEAN)
RUDE = Segment(
    Span(2_000, 5_500),
    " oh shit man",
    (
        Word(" oh", Span(2_000, 2_500), 0.9),
        Word(" sh", Span(2_500, 3_000), 0.9),
        Word("it", Span(3_000, 3_250), 0.9),
        Word(" man", Span(3_250, 5_500), 0.9),
    ),
    finding=offensive(4, 8),
)
HATEFUL = Segment(
    Span(6_000, 7_000),
    " <you> & them",
    finding=Finding(Label.HATE, (0.1, 0.2, 0.7), (Mark(8, 13, Label.HATE, "model"),)),
)
UNMODERATED = Segment(Span(8_000, 9_000), " whatever")
TALK = Transcript("vi", 10_000, (POLITE, RUDE, HATEFUL, UNMODERATED), (BY,))


def moderation(transcript: Transcript) -> Any:
    return transcript_document(transcript)["moderation"]


def test_a_segment_is_found_at_its_seconds_and_its_offence_at_those_of_its_words() -> None:
    rude = moderation(TALK)["results"][1]
    assert rude == {
        "id": 1,
        "text": "oh shit man",
        "label": "OFFENSIVE",
        "score": 0.7,
        "scores": {"CLEAN": 0.2, "OFFENSIVE": 0.7, "HATE": 0.1},
        "start": 2.0,
        "end": 5.5,
        "spans": [
            {"text": "shit", "start": 2.5, "end": 3.25, "label": "OFFENSIVE", "source": "list"}
        ],
    }


def test_without_word_times_an_offence_has_none_either() -> None:
    (span,) = moderation(TALK)["results"][2]["spans"]
    assert (span["text"], span["start"], span["end"]) == ("them", None, None)


def test_the_summary_has_the_worst_label_and_how_much_there_is_of_each() -> None:
    assert moderation(TALK)["summary"] == {
        "label": "HATE",
        "counts": {"CLEAN": 1, "OFFENSIVE": 1, "HATE": 1},
        "seconds": {"CLEAN": 2.0, "OFFENSIVE": 3.5, "HATE": 1.0},
    }


def test_a_segment_that_could_not_be_moderated_is_absent() -> None:
    assert [result["id"] for result in moderation(TALK)["results"]] == [0, 1, 2]


def test_a_result_names_its_model_and_thresholds() -> None:
    shown = moderation(TALK)
    assert (shown["model"], shown["threshold"]) == ("a-model", {"OFFENSIVE": 0.5, "HATE": 0.5})


def test_moderation_that_was_not_requested_is_null_and_without_a_model_empty() -> None:
    assert moderation(replace(TALK, moderated_by=None)) is None
    without_models = moderation(Transcript("vi", 10_000, (UNMODERATED,), ()))
    assert without_models["results"] == []
    assert without_models["model"] is without_models["threshold"] is None
    assert without_models["summary"]["label"] is None


def test_a_flag_is_what_a_player_shows_before_the_text() -> None:
    shown = [cue.split("\n")[-1] for cue in write("srt", TALK, flag=True).strip().split("\n\n")]
    assert shown == ["Xin chào.", "[OFFENSIVE] oh shit man", "[HATE] <you> & them", "whatever"]


def test_a_flag_in_vtt_is_also_a_class_and_no_text_is_taken_for_markup() -> None:
    flagged = write("vtt", TALK, flag=True).split("\n\n")
    assert flagged[1].endswith("\nXin chào.")
    assert flagged[2].endswith("\n<c.offensive>[OFFENSIVE] oh shit man</c>")
    assert flagged[3].endswith("\n<c.hate>[HATE] &lt;you> &amp; them</c>")
    assert "&lt;you> &amp; them" in write("vtt", TALK)
    assert "[" not in write("vtt", TALK) + write("srt", TALK)


@given(st.text(), st.sampled_from([Label.OFFENSIVE, Label.HATE]))
def test_a_flag_never_breaks_a_cue(text: str, label: Label) -> None:
    finding = Finding(label, (0.0, 0.5, 0.5))
    talk = Transcript("en", 1000, (Segment(Span(0, 1000), text, finding=finding),), (BY,))
    cues = 1 if text.strip() else 0
    assert write("srt", talk, flag=True).count("\n\n") == cues
    assert write("vtt", talk, flag=True).count("\n\n") == 1 + cues
    assert write("vtt", talk, flag=True).count("<") == 2 * cues


def test_masks_reach_every_text_of_the_document_and_every_format() -> None:
    document = json.dumps(transcript_document(masked(TALK)), ensure_ascii=False)
    for shown in (document, *(write(ending, masked(TALK)) for ending in ("txt", "srt", "vtt"))):
        assert "shit" not in shown
        assert "s***" in shown
    words = [word["word"] for word in transcript_document(masked(TALK))["words"]]
    assert words == ["oh", "s*", "**", "man"]


# --- stored -----------------------------------------------------------------------------------


def test_findings_are_stored_with_their_segments() -> None:
    stored = json.loads(json.dumps(segments_to_json(TALK.segments)))
    assert segments_from_json(stored) == TALK.segments


def test_segments_from_before_there_was_moderation_are_read_as_unmoderated() -> None:
    (segment,) = segments_from_json([stored_segment(0, 1_000, " old")])
    assert segment.finding is None


def test_options_from_before_there_was_moderation_ask_for_none() -> None:
    old = {name: Options().to_json()[name] for name in ("cutting", "decoding")}
    assert Options.from_json(old) == Options(moderation=False, filter_profanity=False)
    asked = Options(moderation=True, filter_profanity=True)
    assert Options.from_json(asked.to_json()) == asked


def stored_chunk(
    index: int, segments: list[Segment], by: ModeratedBy | None = BY, finding: Finding = CLEAN
) -> ChunkResult:
    start, end = index * 10_000, (index + 1) * 10_000
    moderated = None if by is None else moderation_to_json(by, [[finding] * len(segments)])
    return ChunkResult(
        index=index,
        data=[[start, end, start, end, 9_000]],
        content_hash=f"{index}",
        result=result_to_json([segments]),
        engine_ms=100,
        moderation=moderated,
        moderation_ms=None,
    )


def test_a_chunks_findings_meet_its_segments_again() -> None:
    segment = replace(RUDE, finding=None)
    ((_, (results,)),) = parts([stored_chunk(0, [segment], finding=offensive(4, 8))])
    assert tuple(results) == (RUDE,)
    ((_, (unmoderated,)),) = parts([stored_chunk(0, [segment], by=None)])
    assert tuple(unmoderated) == (segment,)


def test_every_model_is_named_once_in_order_and_several_are_a_warning() -> None:
    chunks = [stored_chunk(at, [POLITE], by) for at, by in enumerate((BY, OTHER, BY))]
    assert moderated_by(chunks) == (BY, OTHER)
    assert list(moderation_warnings(chunks)) == ["moderated_by_several_models"]
    stricter = replace(BY, thresholds={Label.OFFENSIVE: 0.3, Label.HATE: 0.5})
    assert moderated_by([chunks[0], stored_chunk(1, [], stricter)]) == (BY, stricter)


def test_a_chunk_without_moderation_is_a_warning() -> None:
    moderated, failed = stored_chunk(0, [POLITE]), stored_chunk(1, [POLITE], by=None)
    assert list(moderation_warnings([moderated])) == []
    assert list(moderation_warnings([moderated, failed])) == ["moderation_failed"]
    assert list(moderation_warnings([])) == []


# --- merged -----------------------------------------------------------------------------------


def marked(segments: Iterable[Segment]) -> list[str]:
    """The marked texts."""
    return [
        segment.text[mark.start : mark.end]
        for segment in segments
        if segment.finding
        for mark in segment.finding.marks
    ]


def test_a_segment_cut_at_a_seam_keeps_the_marks_of_what_is_left() -> None:
    words = (
        Word(" shit", Span(8_000, 8_500), 0.9),
        Word(" happens", Span(9_000, 9_500), 0.9),
        Word(" damn", Span(10_600, 10_900), 0.9),
    )
    marks = (Mark(1, 5, Label.OFFENSIVE, "list"), Mark(14, 18, Label.OFFENSIVE, "list"))
    whole = Segment(
        Span(8_000, 10_900),
        " shit happens damn",
        words,
        finding=Finding(Label.OFFENSIVE, (0.1, 0.9, 0.0), marks),
    )
    again = replace(
        whole,
        span=Span(0, 1_900),
        words=tuple(
            replace(word, span=Span(at * 600, at * 600 + 500)) for at, word in enumerate(words)
        ),
    )
    left = Window(Span(0, 10_000), Span(0, 11_000), 0)
    right = Window(Span(10_000, 20_000), Span(9_400, 20_000), 0)
    merged = merge([(Chunk(0, (left, right)), [[whole], [again]])])
    assert "".join(segment.text for segment in merged) == " shit happens damn"
    assert marked(merged) == ["shit", "damn"]


@st.composite
def moderated_windows(draw: st.DrawFn) -> tuple[Chunk, list[list[Segment]]]:
    """Two windows that share audio, each with segments of words, some of them marked."""
    left = Window(Span(0, 10_000), Span(0, 12_000), 0)
    right = Window(Span(10_000, 20_000), Span(8_000, 20_000), 0)
    results = []
    for _ in range(2):
        segments, now = [], draw(st.integers(0, 5_000))
        for count in draw(st.lists(st.integers(1, 6), max_size=4)):
            words = []
            for _ in range(count):
                length = draw(st.integers(50, 900))
                text = draw(st.sampled_from([" no", " yes", "-ish", " đm", " ok."]))
                words.append(Word(text, Span(now, now + length), 0.9))
                now += length
            text = "".join(word.text for word in words)
            places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=4)))
            marks = tuple(
                Mark(start, end, Label.HATE, "list")
                for start, end in zip(places[::2], places[1::2], strict=False)
            )
            finding = Finding(Label.HATE, (0.1, 0.1, 0.8), marks)
            span = Span(words[0].span.start_ms, now)
            segments.append(Segment(span, text, tuple(words), finding=finding))
        results.append(segments)
    return Chunk(0, (left, right)), results


@given(moderated_windows())
def test_marks_stay_inside_their_texts(part: tuple[Chunk, list[list[Segment]]]) -> None:
    known = [text for segments in part[1] for text in marked(segments)]
    for segment in merge([part]):
        assert segment.finding is not None
        assert segment.text == "".join(word.text for word in segment.words)
        for mark in segment.finding.marks:
            assert 0 <= mark.start < mark.end <= len(segment.text)
    for text in marked(merge([part])):
        assert any(text in whole for whole in known)
