"""The second AI step without a server: how transcripts are split, and which answers count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.enhancement import (
    Budget,
    Enhancement,
    NumberedSegment,
    Part,
    Result,
    Task,
    call_of,
    checked,
    combine,
    first_parts,
    missing,
    more_parts,
    numbered,
    parse_part,
)
from common.domain.enhancing.answers import MAX_SCHEMA_BYTES, checked_schema
from common.domain.enhancing.parts import estimate_tokens, to_data
from common.domain.enhancing.tasks import NOTES, count_words, spoken_text
from common.domain.enhancing.tasks import TASKS as TASK_TYPES
from common.domain.moderation import Finding, Label, Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span
from common.errors import (
    AnswerRejected,
    ContextTooSmall,
    FieldMissing,
    OptionConflict,
    OutOfRange,
    SchemaRefused,
    TextMissing,
    UnknownOption,
)

VIETNAMESE = (
    "Xin chào các bạn, hôm nay chúng ta sẽ nói về kế hoạch mở thêm một kho hàng ở Đà Nẵng. "
    "Nghiêng người xuống, anh Thuỷ khuyên mọi người nên đặt khách sạn trước ngày mười lăm."
)
ENGLISH = (
    "Good morning, everyone. Today we'll talk about opening another warehouse in Da Nang, and "
    "Thuy recommends that everybody should book their hotel before the fifteenth."
)
BUDGET = Budget(8192, 4096)
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def work_on(task: Task, budget: Budget = BUDGET, **more: Any) -> Enhancement:
    if task is Task.PROMPT:
        more = {"prompt": "What is the mood?", **more}
    return checked(Enhancement(task, "vi", budget, **more))


def segments_of(*texts: str) -> tuple[NumberedSegment, ...]:
    return tuple(
        NumberedSegment(number, number * 2000, number * 2000 + 1900, "Lan", text)
        for number, text in enumerate(texts)
    )


def whole(*texts: str) -> Part:
    return Part(0, 1, segments=segments_of(*texts))


def answered(task: Task, part: Part, answer: object) -> Result:
    return parse_part(work_on(task), part, json.dumps(answer, ensure_ascii=False))


# --- splitting ----------------------------------------------------------------------------------

TASKS = st.sampled_from(list(Task))
BUDGETS = st.builds(Budget, st.integers(6_000, 40_000), st.integers(2048, 8_000))
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
        lambda it: it.strip() != ""
    )
    | st.sampled_from([VIETNAMESE, ENGLISH]),
    min_size=1,
    max_size=150,
)


@given(TASKS, BUDGETS, TEXTS)
def test_a_split_loses_doubles_and_moves_no_segment_and_each_request_fits(
    task: Task, budget: Budget, texts: list[str]
) -> None:
    work, segments = work_on(task, budget), segments_of(*texts)
    parts = first_parts(work, segments)
    assert [segment for part in parts for segment in part.segments] == list(segments)
    assert [(part.index, part.of) for part in parts] == [(i, len(parts)) for i in range(len(parts))]
    reason = AnswerRejected(reason="x" * 1000)
    for part in parts:
        for call in (call_of(work, part), call_of(work, part, reason)):
            used = sum(estimate_tokens(message.content) for message in call.messages)
            assert used + call.max_tokens <= budget.context_tokens
            assert 100 <= call.max_tokens <= budget.max_output_tokens


@given(BUDGETS, TEXTS, st.sampled_from([Task.PUNCTUATE, Task.TRANSLATE]))
def test_an_answer_that_repeats_its_part_fits_its_limit(
    budget: Budget, texts: list[str], task: Task
) -> None:
    work = work_on(task, budget)
    for part in first_parts(work, segments_of(*texts)):
        same = {"segments": [{"id": it.id, "text": it.text} for it in part.segments]}
        assert estimate_tokens(to_data(same)) <= call_of(work, part).max_tokens


@given(BUDGETS, TEXTS, st.data())
def test_rounds_of_notes_end_and_keep_every_note(
    budget: Budget, texts: list[str], data: st.DataObject
) -> None:
    work, segments = work_on(Task.SUMMARY, budget), segments_of(*texts)
    parts, rounds = first_parts(work, segments), 0
    while True:
        results = [_made_up(work, part, data) for part in parts]
        following = more_parts(work, parts, results)
        if not following:
            break
        noted = [note for result in results for note in result["notes"]]
        kept = [note for part in following for note in part.notes]
        assert [(it.text, list(it.segments)) for it in kept] == [
            (it["text"], it["segments"]) for it in noted
        ]
        assert len(following) < len(parts)
        parts, rounds = following, rounds + 1
    assert len(parts) == 1
    document = combine(work, segments, results)
    assert {number for it in document["sentences"] for number in it["segments"]} <= {
        segment.id for segment in segments
    }


def _made_up(work: Enhancement, part: Part, data: st.DataObject) -> Result:
    """A valid answer to a part: as long as may be, or short."""
    name = "notes" if part.of > 1 else "sentences"
    cited = sorted(part.ids)[:3]
    for length in (data.draw(st.sampled_from([20_000, 5_000, 500])), 10):
        answer = {name: [{"text": "x" * length, "segments": cited}]}
        try:
            return parse_part(work, part, json.dumps(answer))
        except AnswerRejected:
            continue
    raise AssertionError


def test_a_short_transcript_is_one_request_for_every_task() -> None:
    for task in Task:
        (part,) = first_parts(work_on(task), segments_of(VIETNAMESE, ENGLISH))
        assert more_parts(work_on(task), [part], [{}]) == ()


def test_a_segment_or_a_prompt_that_the_context_cannot_hold_is_named() -> None:
    with pytest.raises(ContextTooSmall, match="Segment 1 takes about"):
        first_parts(work_on(Task.SUMMARY), segments_of("short", "long " * 10_000))
    long_prompt = work_on(Task.PROMPT, Budget(2048, 1024), prompt="mood? " * 1000)
    with pytest.raises(ContextTooSmall, match="without the transcript"):
        first_parts(long_prompt, segments_of("short"))
    with pytest.raises(TextMissing):
        first_parts(work_on(Task.SUMMARY), ())


def test_every_task_fits_the_smallest_context_that_the_settings_allow() -> None:
    for task in Task:
        for is_masked in (False, True):
            work = work_on(task, Budget(2048, 1024), is_masked=is_masked)
            assert first_parts(work, segments_of(VIETNAMESE))


def test_segments_keep_their_numbers_in_the_revision_and_blank_ones_are_left_out() -> None:
    texts = [" one", "  ", "three "]
    segments = tuple(
        Segment(Span(at * 1000, at * 1000 + 900), text) for at, text in enumerate(texts)
    )
    found = numbered(Transcript(language="en", duration_ms=3000, segments=segments))
    assert [(it.id, it.text) for it in found] == [(0, "one"), (2, "three")]


# --- requests -----------------------------------------------------------------------------------


@given(st.text(st.characters()), st.text(st.characters()))
def test_data_is_json_that_keeps_the_text_and_shows_no_delimiter(text: str, name: str) -> None:
    written = to_data({"transcript": [{"id": 1, "speaker": name, "text": text}]})
    assert json.loads(written)["transcript"] == [{"id": 1, "speaker": name, "text": text}]
    inside = written.removeprefix('{"transcript":[{').removesuffix("}]}")
    assert not set(inside) & set("<>[]{}|`#\n\r\u2028\u200b")
    assert written.encode()


def test_a_request_has_what_the_task_needs() -> None:
    part = whole("chào", "hai")
    work = work_on(Task.TRANSLATE, glossary=("Thuỷ", "kho [A]"))
    system, user = call_of(work, part).messages
    assert "Write in Vietnamese." in system.content
    assert '["Thuỷ","kho \\u005bA\\u005d"]' in system.content
    assert "chào" not in system.content
    data = json.loads(user.content)
    assert data["transcript"][1] == {"id": 1, "start": 2.0, "speaker": "Lan", "text": "hai"}
    brief = call_of(work_on(Task.PUNCTUATE), part).messages[1].content
    assert json.loads(brief) == {
        "transcript": [{"id": 0, "text": "chào"}, {"id": 1, "text": "hai"}]
    }


def test_a_long_glossary_is_cut() -> None:
    work = work_on(Task.CORRECT, glossary=tuple(f"term {number}" for number in range(10_000)))
    assert first_parts(work, segments_of("short"))


def test_a_request_after_a_rejected_answer_says_why() -> None:
    reason = AnswerRejected(reason="segment 3 is missing in it")
    call = call_of(work_on(Task.TRANSLATE), whole("a"), reason)
    assert "segment 3 is missing in it" in call.messages[0].content


@pytest.mark.parametrize(
    ("work", "error", "named"),
    [
        (Enhancement(Task.SUMMARY, "xx", BUDGET), UnknownOption, "language"),
        (Enhancement(Task.PROMPT, "en", BUDGET), FieldMissing, "prompt"),
        (Enhancement(Task.PROMPT, "en", BUDGET, prompt=" "), FieldMissing, "prompt"),
        (Enhancement(Task.PROMPT, "en", BUDGET, prompt="x" * 8001), OutOfRange, "8001"),
        (Enhancement(Task.SUMMARY, "en", BUDGET, prompt="x"), OptionConflict, "task=prompt"),
        (Enhancement(Task.CHAPTERS, "en", BUDGET, schema=SCHEMA), OptionConflict, "schema"),
    ],
)
def test_a_wrong_option_is_named(work: Enhancement, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        checked(work)


# --- answers ------------------------------------------------------------------------------------

SENTENCE = {"text": "Họ bàn về kho.", "segments": [0]}
GOOD: list[tuple[Task, dict[str, Any]]] = [
    (Task.SUMMARY, {"sentences": [SENTENCE]}),
    (Task.CHAPTERS, {"chapters": [{"title": "Kho", "segment": 0}]}),
    (
        Task.ACTION_ITEMS,
        {"action_items": [{"who": None, "what": "gọi", "due": "thứ hai", "segment": 1}]},
    ),
    (Task.MINUTES, {"sections": [{"title": "Kho", "points": [SENTENCE]}]}),
    (Task.KEYWORDS, {"keywords": ["kho hàng", "vũ trụ"]}),
    (
        Task.PUNCTUATE,
        {"segments": [{"id": 1, "text": "Gọi Lan!"}, {"id": 0, "text": "Kho hàng, ở Đà Nẵng."}]},
    ),
    (Task.TRANSLATE, {"segments": [{"id": 0, "text": "A"}, {"id": 1, "text": "B"}]}),
    (Task.CORRECT, {"edits": [{"id": 1, "text": "gọi Lân", "reason": "a name"}]}),
]
TWO = whole("kho hàng ở đà nẵng", "gọi lan")


@pytest.mark.parametrize(("task", "answer"), GOOD)
def test_an_answer_as_asked_for_is_taken_also_in_a_fence_or_after_a_thought(
    task: Task, answer: dict[str, Any]
) -> None:
    plain = json.dumps(answer)
    expected = parse_part(work_on(task), TWO, plain)
    for text in (f"```json\n{plain}\n```", f"<think>{{}}, or</think>\n{plain}", f"\n {plain} "):
        assert parse_part(work_on(task), TWO, text) == expected


@pytest.mark.parametrize(("task", "answer"), GOOD)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda _: "Sorry, I cannot.",
        lambda it: json.dumps(it)[:-3],
        lambda it: json.dumps(it) + json.dumps(it),
        lambda it: json.dumps({**it, "more": 1}),
        lambda it: json.dumps([it]),
        lambda _: "{}",
        lambda it: json.dumps({name: {"0": entries} for name, entries in it.items()}),
        lambda it: json.dumps({name: [*entries, 7] for name, entries in it.items()}),
        lambda it: json.dumps({name: [*entries, {}] for name, entries in it.items()}),
        lambda _: '{"a":' * 100_000,
        lambda _: "1e999",
        lambda _: "9" * 10_000,
        lambda _: '{"sentences": NaN}',
        lambda _: '"\\ud800"',
        lambda it: json.dumps(it).replace("[", '["\\u0000",', 1),
        lambda _: "```json\n" + "\n" * 100_000,
    ],
)
def test_an_answer_of_another_form_is_rejected(task: Task, answer: Any, spoil: Any) -> None:
    with pytest.raises(AnswerRejected):
        parse_part(work_on(task), TWO, spoil(answer))


REJECTED: list[tuple[Task, dict[str, Any], str]] = [
    (Task.SUMMARY, {"sentences": [{"text": "x", "segments": [0, 2]}]}, "cites segment 2"),
    (Task.SUMMARY, {"sentences": [{"text": "x", "segments": [-1]}]}, "cites segment -1"),
    (Task.SUMMARY, {"sentences": [{"text": "x", "segments": []}]}, "cites no segment"),
    (Task.SUMMARY, {"sentences": [{"text": " \t", "segments": [0]}]}, "blank"),
    (Task.SUMMARY, {"sentences": [{"text": "x", "segments": [True]}]}, "breaks the schema"),
    (Task.SUMMARY, {"sentences": []}, "no sentence"),
    (Task.MINUTES, {"sections": []}, "no section"),
    (
        Task.MINUTES,
        {"sections": [{"title": "x", "points": [{"text": "x", "segments": [9]}]}]},
        "cites segment 9",
    ),
    (Task.CHAPTERS, {"chapters": [{"title": "x", "segment": 7}]}, "cites segment 7"),
    (
        Task.CHAPTERS,
        {"chapters": [{"title": "x", "segment": 1}, {"title": "y", "segment": 0}]},
        "not in order",
    ),
    (
        Task.ACTION_ITEMS,
        {"action_items": [{"who": None, "what": "x", "due": None, "segment": 5}]},
        "cites segment 5",
    ),
    (Task.KEYWORDS, {"keywords": ["vũ trụ", "đà"[0]]}, "none of its keywords was said"),
    (Task.TRANSLATE, {"segments": [{"id": 0, "text": "A"}]}, "segment 1 is missing"),
    (
        Task.TRANSLATE,
        {"segments": [{"id": number, "text": "A"} for number in (0, 1, 2)]},
        "segment 2, which",
    ),
    (Task.TRANSLATE, {"segments": [{"id": number, "text": "A"} for number in (0, 1, 1)]}, "twice"),
    (
        Task.TRANSLATE,
        {"segments": [{"id": 0, "text": "A"}, {"id": 1, "text": "\u0085 "}]},
        "blank",
    ),
    (Task.CORRECT, {"edits": [{"id": 4, "text": "x", "reason": "y"}]}, "cites segment 4"),
    (
        Task.CORRECT,
        {"edits": [{"id": 0, "text": text, "reason": "y"} for text in ("a", "b")]},
        "edits segment 0 twice",
    ),
    (Task.CORRECT, {"edits": [{"id": 0, "text": "x", "reason": ""}]}, "blank"),
]


@pytest.mark.parametrize(("task", "answer", "reason"), REJECTED)
def test_an_answer_that_does_not_stand_on_its_part_is_rejected(
    task: Task, answer: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AnswerRejected, match=reason):
        answered(task, TWO, answer)


def punctuated(said: str, written: str) -> str:
    found = answered(Task.PUNCTUATE, whole(said), {"segments": [{"id": 0, "text": written}]})
    text: str = found["segments"][0]["text"]
    return text


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("xin chào các bạn", "Xin chào các bạn!"),
        ("xin cha\u0300o", "Xin chào."),
        ("so we don't know", "So, we don't know…"),
        ("dont you", "Don't you?"),
        ("twenty one 3.5 50%", "Twenty-one: 3,5; 50%."),
        ("anh nói đi thôi", "Anh nói: «Đi thôi!»"),
        ("straße", "STRASSE"),
    ],
)
def test_marks_and_case_may_change(said: str, written: str) -> None:
    assert punctuated(said, written) == written


@pytest.mark.parametrize(
    "written",
    [
        "Xin chào bạn.",
        "Xin chào các các bạn.",
        "Xin chao các bạn.",
        "Bạn các chào xin.",
        "Xin chào cácbạn.",
        "Xin chào các bạn. Cảm ơn.",
        "Xin chào các bạn\u200b.",
        "Xin chào các bạn +",
        "...",
    ],
)
def test_words_may_not_change(written: str) -> None:
    with pytest.raises(AnswerRejected, match="changes the words of segment 0"):
        punctuated("xin chào các bạn", written)


@given(st.lists(st.sampled_from(["xin", "chào", "3,5", "don't", "50%", "A-B"]), min_size=1))
def test_any_text_may_stay_as_it_is(words: list[str]) -> None:
    assert punctuated(" ".join(words), " ".join(words).upper())


def test_an_edit_that_changes_nothing_is_none() -> None:
    same = {"edits": [{"id": 1, "text": "gọi lan", "reason": "x"}]}
    assert answered(Task.CORRECT, TWO, same) == {"edits": []}


def masked_part() -> Part:
    marks = (Mark(0, 4, Label.OFFENSIVE, "list"),)
    finding = Finding(Label.OFFENSIVE, (0.1, 0.8, 0.1), marks)
    said = (Segment(Span(0, 900), "damn fine talk", finding=finding),)
    segments = numbered(Transcript("en", 900, said), hide=True)
    assert [it.text for it in segments] == ["d*** fine talk"]
    return Part(0, 1, segments)


def test_a_masked_word_is_masked_for_the_model_and_stays_as_it_is() -> None:
    part = masked_part()
    assert "damn" not in str(call_of(work_on(Task.SUMMARY), part))
    for is_masked in (True, False):
        work = work_on(Task.SUMMARY, is_masked=is_masked)
        assert ("asterisks" in call_of(work, part).messages[0].content) is is_masked

    def edits(text: str) -> Result:
        answer = {"edits": [{"id": 0, "text": text, "reason": "a sound"}]}
        return answered(Task.CORRECT, part, answer)

    assert edits("D*** fine talks")["edits"][0]["text"] == "D*** fine talks"
    for text in ("darn fine talk", "damn fine talk", "fine talk", "d** fine talk"):
        assert edits(text) == {"edits": []}

    def punctuate(text: str) -> Result:
        return answered(Task.PUNCTUATE, part, {"segments": [{"id": 0, "text": text}]})

    assert punctuate("D***, fine talk!")["segments"][0]["text"] == "D***, fine talk!"
    with pytest.raises(AnswerRejected, match="masked word of segment 0"):
        punctuate("d fine*** talk")


def test_reasons_quote_neither_answer_nor_transcript() -> None:
    for task, answer, _ in REJECTED:
        with pytest.raises(AnswerRejected) as caught:
            answered(task, TWO, answer)
        for secret in ("đà nẵng", "gọi lan", "vũ trụ"):
            assert secret not in str(caught.value)


def test_notes_that_are_too_long_are_rejected() -> None:
    part = replace(TWO, of=2)
    with pytest.raises(AnswerRejected, match="are allowed"):
        answered(Task.MINUTES, part, {"notes": [{"text": "x" * 60_000, "segments": [0]}]})


def test_a_prompt_is_answered_by_a_text_or_by_its_schema() -> None:
    plain = work_on(Task.PROMPT)
    assert call_of(plain, TWO).form is None
    assert parse_part(plain, TWO, "<think>hm</think> Good.") == {"answer": "Good."}
    for text in (" ", "<think>hm</think>", "a\x00b"):
        with pytest.raises(AnswerRejected):
            parse_part(plain, TWO, text)
    with_schema = work_on(Task.PROMPT, schema=SCHEMA)
    form = call_of(with_schema, TWO).form
    assert form is not None
    assert not form.is_strict
    assert parse_part(with_schema, TWO, '{"mood": "good"}') == {"answer": {"mood": "good"}}
    with pytest.raises(AnswerRejected, match="breaks the schema at properties/mood/enum"):
        parse_part(with_schema, TWO, '{"mood": "sad"}')


# --- results ------------------------------------------------------------------------------------


def combined(task: Task, results: Sequence[Result | None], *texts: str) -> Result:
    return combine(work_on(task), segments_of(*texts), results)


def test_results_get_their_times_from_the_transcript() -> None:
    texts = ("kho hàng ở đà nẵng", "gọi lan")
    results = {task: combined(task, [answered(task, TWO, answer)], *texts) for task, answer in GOOD}
    first, second = {"start_ms": 0, "end_ms": 1900}, {"start_ms": 2000, "end_ms": 3900}
    assert results[Task.SUMMARY] == {
        "text": "Họ bàn về kho.",
        "sentences": [{**SENTENCE, **first}],
    }
    assert results[Task.CHAPTERS]["chapters"][0] == {
        "title": "Kho",
        "segment": 0,
        "start_ms": 0,
        "end_ms": 3900,
    }
    assert results[Task.ACTION_ITEMS]["action_items"][0].items() >= second.items()
    assert results[Task.MINUTES]["sections"][0]["points"] == [{**SENTENCE, **first}]
    assert results[Task.KEYWORDS]["keywords"] == [
        {"keyword": "kho hàng", "count": 1, "segments": [0]}
    ]
    assert results[Task.PUNCTUATE]["segments"][1] == {
        "segment": 1,
        "text": "Gọi Lan!",
        "speaker": "Lan",
        **second,
    }
    assert results[Task.CORRECT]["edits"][0]["before"] == "gọi lan"


@given(BUDGETS, TEXTS)
def test_a_translation_has_every_segment_once_and_in_order(
    budget: Budget, texts: list[str]
) -> None:
    work, segments = work_on(Task.TRANSLATE, budget), segments_of(*texts)
    parts = first_parts(work, segments)
    results = []
    for part in parts:
        backwards = [{"id": it.id, "text": f"t{it.id}"} for it in reversed(part.segments)]
        results.append(parse_part(work, part, json.dumps({"segments": backwards})))
    found = combine(work, segments, results)["segments"]
    assert [(it["segment"], it["text"]) for it in found] == [
        (it.id, f"t{it.id}") for it in segments
    ]
    assert [(it["start_ms"], it["end_ms"]) for it in found] == [
        (it.start_ms, it.end_ms) for it in segments
    ]


def test_what_parts_have_in_common_is_there_once() -> None:
    texts = ("gọi Lan", "Gọi lan", "gọi lan, gọi LAN")
    chapters: list[Result | None] = [
        {"chapters": [{"title": "Kho", "segment": 0}]},
        {"chapters": [{"title": "kho", "segment": 1}, {"title": "Xe", "segment": 2}]},
    ]
    found = combined(Task.CHAPTERS, chapters, *texts)["chapters"]
    assert [(it["title"], it["start_ms"], it["end_ms"]) for it in found] == [
        ("Kho", 0, 4000),
        ("Xe", 4000, 5900),
    ]
    keywords: list[Result | None] = [{"keywords": ["gọi Lan"]}, {"keywords": ["Gọi lan", "LAN"]}]
    assert combined(Task.KEYWORDS, keywords, *texts)["keywords"] == [
        {"keyword": "gọi Lan", "count": 4, "segments": [0, 1, 2]},
        {"keyword": "LAN", "count": 4, "segments": [0, 1, 2]},
    ]
    item = {"who": "Lan", "what": "gọi", "due": None, "segment": 0}
    again = {**item, "who": "LAN", "segment": 1}
    items: list[Result | None] = [{"action_items": [item]}, {"action_items": [again]}]
    assert len(combined(Task.ACTION_ITEMS, items, *texts)["action_items"]) == 1


def test_a_part_that_failed_costs_only_its_own_share() -> None:
    work = work_on(Task.TRANSLATE, Budget(2048, 1024))
    segments = segments_of(*[VIETNAMESE] * 12)
    parts = first_parts(work, segments)
    assert len(parts) > 2
    results: list[Result | None] = [
        {"segments": [{"segment": it.id, "text": "t"} for it in part.segments]} for part in parts
    ]
    results[1] = None
    lost = parts[1].segments
    found = combine(work, segments, results)["segments"]
    assert len(found) == len(segments) - len(lost)
    assert missing(parts, results) == [
        {
            "first": lost[0].id,
            "last": lost[-1].id,
            "start_ms": lost[0].start_ms,
            "end_ms": lost[-1].end_ms,
        }
    ]


def test_a_summary_is_made_of_the_notes_that_there_are() -> None:
    work = work_on(Task.SUMMARY, Budget(2048, 1024))
    parts = first_parts(work, segments_of(*[VIETNAMESE] * 30))
    notes: list[Result | None] = [
        {"notes": [{"text": f"n{part.index}", "segments": [part.segments[0].id]}]} for part in parts
    ]
    notes[0] = None
    (last,) = more_parts(work, parts, notes)
    assert [note.text for note in last.notes] == [f"n{part.index}" for part in parts[1:]]
    data = json.loads(call_of(work, last).messages[1].content)
    assert data["notes"][0] == {"text": "n1", "segments": [parts[1].segments[0].id]}
    (empty,) = more_parts(work, parts, [{"notes": []}] * len(parts))
    assert parse_part(work, empty, '{"sentences": []}') == {"sentences": []}


@pytest.mark.parametrize(
    ("keyword", "text", "count"),
    [
        ("kho hàng", "Kho hàng? Kho, hàng!", 2),
        ("an", "Lan và An", 1),
        ("a a", "a a a a", 2),
        ("倉庫", "新しい倉庫。倉庫は", 2),
        ("倉庫", "A倉庫B", 1),
        ("ข้าว", "กินข้าวแล้ว", 1),
        ("?!", "what?!", 0),
        ("", "x", 0),
    ],
)
def test_words_are_counted_as_words(keyword: str, text: str, count: int) -> None:
    assert count_words(spoken_text(keyword), spoken_text(text)) == count


# --- callers' schemas -----------------------------------------------------------------------------


def test_references_are_replaced() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}, "pattern": {"type": "string"}},
        "$defs": {
            "A": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/B"}]},
            "B": {"const": {"$ref": 1}},
        },
    }
    assert checked_schema(schema) == {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "null"}, {"const": {"$ref": 1}}]},
            "pattern": {"type": "string"},
        },
    }


def bomb() -> dict[str, Any]:
    """A schema of 2**30 values, once its references are replaced."""
    levels = {f"L{at}": {"allOf": [{"$ref": f"#/$defs/L{at + 1}"}] * 2} for at in range(30)}
    return {"type": "object", "allOf": [{"$ref": "#/$defs/L0"}], "$defs": {**levels, "L30": {}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return {"type": "object", **schema}


def _nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def _large_once_inlined() -> dict[str, Any]:
    references = [{"$ref": "#/$defs/a"}] * 300
    return {"type": "object", "anyOf": references, "$defs": {"a": {"const": "x" * 5_000}}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array"}, '"type" must be "object"'),
        ({"type": "object", "properties": {"a": {"$ref": "http://evil.example/a"}}}, r"own \$defs"),
        ({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}, r"own \$defs"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, r"own \$defs"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/B"}}}, "'B', which is not"),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"items": {"$ref": "#/$defs/A"}}},
            },
            "'A' refers to itself",
        ),
        ({"type": "object", "$dynamicRef": "#a"}, "'\\$dynamicRef' is not supported"),
        ({"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}}, "'pattern' is not"),
        ({"type": "object", "patternProperties": {"(a+)+$": {}}}, "not supported"),
        ({"type": "object", "uniqueItems": True}, "not supported"),
        ({"type": "object", "properties": {"a": 1}}, "must be"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "no JSON schema at"),
        ({"type": "object", "required": "a"}, "no JSON schema at required"),
        ({"type": "object", "minProperties": -1}, "no JSON schema at minProperties"),
        ({"type": "object", "anyOf": "x"}, "no JSON schema at anyOf"),
        ({"type": "object", "title": "x" * MAX_SCHEMA_BYTES}, "bytes"),
        ({"type": "object", "const": _nested(21)}, "more than 2000 values, or 20 levels"),
        ({"type": "object", "properties": {"a": {"enum": [_nested(300)]}}}, "20 levels"),
        (_large_once_inlined(), "bytes with its references replaced, and 64000 are allowed"),
        ({"type": "object", "title": float("nan")}, "not JSON"),
        ({"type": "object", "title": "\ud800"}, "not JSON"),
        (bomb(), "values"),
        (nested(30), "levels"),
    ],
)
def test_a_schema_that_costs_or_reaches_too_much_is_rejected(
    schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SchemaRefused, match=reason):
        checked_schema(schema)


def test_a_schema_may_have_values_as_deep_as_itself() -> None:
    schema = {"type": "object", "properties": {"a": {"const": _nested(20)}}}
    assert checked_schema(schema) == schema


def test_an_answer_that_is_too_deep_is_rejected() -> None:
    work = work_on(Task.PROMPT, schema={"type": "object"})
    deep = json.dumps({"a": _nested(31)})
    assert parse_part(work, TWO, deep) == {"answer": {"a": _nested(31)}}
    for levels in (32, 300, 900):
        with pytest.raises(AnswerRejected, match="it has more than 32 levels"):
            parse_part(work, TWO, json.dumps({"a": _nested(levels)}))


def test_no_reference_is_left_in_any_schema() -> None:
    theirs = checked_schema({"type": "object", "properties": {"$ref": {"enum": ["$ref"]}}})
    for schema in [*(kind.schema for kind in TASK_TYPES.values()), NOTES.schema, theirs]:
        assert not list(_references(schema))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "properties":
                yield from (it for each in value.values() for it in _references(each))
            else:
                yield from [key] if "ref" in key.lower() else _references(value)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)
