"""The tasks: what a model is asked for, the schema of its answer, and what the answer must keep.

A task's ``check`` takes an answer that meets the schema, and the part that it is about. It returns
the part's result, as JSON, or raises `AnswerRejected`, whose reason quotes neither of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from common.domain.enhancing.answers import one_line
from common.domain.enhancing.parts import Part
from common.domain.masking import keeps_masked
from common.errors import AnswerRejected

Result = dict[str, Any]
"""What an answer, or a whole task, comes to; JSON."""


class Task(StrEnum):
    """What the second AI step can do with a transcript."""

    SUMMARY = "summary"
    CHAPTERS = "chapters"
    ACTION_ITEMS = "action_items"
    MINUTES = "minutes"
    KEYWORDS = "keywords"
    PUNCTUATE = "punctuate"
    TRANSLATE = "translate"
    CORRECT = "correct"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class TaskType:
    """How one request of a task is made, and its answer checked.

    ``schema`` is None where the answer is plain text, which ``check`` then gets. ``reduces``: of
    several parts the model makes notes, and its answer from these. ``growth`` is how many tokens of
    an answer one of the data can need; None: its length does not depend on the data. ``brief``: the
    model needs neither times nor speakers. ``keeps_language``: the answer is in the transcript's
    language.
    """

    instructions: str
    schema: Mapping[str, Any] | None
    check: Callable[[Any, Part], Result]
    reduces: bool = False
    growth: float | None = None
    brief: bool = False
    keeps_language: bool = False


# --- schemas ----------------------------------------------------------------------------------

_TEXT = {"type": "string"}
_TEXT_OR_NONE = {"type": ["string", "null"]}
_ID = {"type": "integer"}
_IDS = {"type": "array", "items": _ID}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """In the form that servers enforce strictly: all properties are required, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _object(**properties)}


_CITED = _list(text=_TEXT, segments=_IDS)

# --- checks -------------------------------------------------------------------------------------


def _cited(ids: Iterable[int], part: Part) -> list[int]:
    """The cited segments, in order, each once."""
    cited = sorted({int(number) for number in ids})
    if not cited:
        raise AnswerRejected(reason="a sentence in it cites no segment")
    for number in cited:
        if number not in part.ids:
            raise AnswerRejected(reason=f"it cites segment {number}, which its part does not have")
    return cited


def _statements(entries: Iterable[Any], part: Part) -> list[Result]:
    return [
        {"text": one_line(entry["text"]), "segments": _cited(entry["segments"], part)}
        for entry in entries
    ]


def _check_summary(answer: Any, part: Part) -> Result:
    if not answer["sentences"] and part.ids:
        raise AnswerRejected(reason="it has no sentence")
    return {"sentences": _statements(answer["sentences"], part)}


def _check_notes(answer: Any, part: Part) -> Result:
    return {"notes": _statements(answer["notes"], part)}


def _check_minutes(answer: Any, part: Part) -> Result:
    if not answer["sections"] and part.ids:
        raise AnswerRejected(reason="it has no section")
    return {
        "sections": [
            {"title": one_line(section["title"]), "points": _statements(section["points"], part)}
            for section in answer["sections"]
        ]
    }


def _check_chapters(answer: Any, part: Part) -> Result:
    chapters: list[Result] = [
        {"title": one_line(chapter["title"]), "segment": _cited([chapter["segment"]], part)[0]}
        for chapter in answer["chapters"]
    ]
    if any(one["segment"] >= next_["segment"] for one, next_ in pairwise(chapters)):
        raise AnswerRejected(reason="its chapters are not in order")
    return {"chapters": chapters}


def _check_action_items(answer: Any, part: Part) -> Result:
    return {
        "action_items": [
            {
                "who": _line_or_none(item["who"]),
                "what": one_line(item["what"]),
                "due": _line_or_none(item["due"]),
                "segment": _cited([item["segment"]], part)[0],
            }
            for item in answer["action_items"]
        ]
    }


def _line_or_none(text: str | None) -> str | None:
    return one_line(text) if text and text.strip() else None


def _check_keywords(answer: Any, part: Part) -> Result:
    """Only those that were said: a model may well think of others."""
    said = [spoken_text(segment.text) for segment in part.segments]
    asked = list(dict.fromkeys(one_line(keyword) for keyword in answer["keywords"]))
    kept = [it for it in asked if any(count_words(spoken_text(it), each) for each in said)]
    if asked and not kept:
        raise AnswerRejected(reason="none of its keywords was said")
    return {"keywords": kept}


def _check_punctuated(answer: Any, part: Part) -> Result:
    written = _one_text_each(answer, part)
    for segment in part.segments:
        if spoken_form(written[segment.id]) != spoken_form(segment.text):
            raise AnswerRejected(reason=f"it changes the words of segment {segment.id}")
        if segment.is_masked and not keeps_masked(written[segment.id], segment.text):
            raise AnswerRejected(reason=f"it changes a masked word of segment {segment.id}")
    return _texts(written)


def _check_translated(answer: Any, part: Part) -> Result:
    return _texts(_one_text_each(answer, part))


def _one_text_each(answer: Any, part: Part) -> dict[int, str]:
    """The text of each segment of the part, in order."""
    written = {int(entry["id"]): one_line(entry["text"]) for entry in answer["segments"]}
    if len(written) < len(answer["segments"]):
        raise AnswerRejected(reason="it has a segment twice")
    for number in written:
        if number not in part.ids:
            raise AnswerRejected(reason=f"it has segment {number}, which its part does not have")
    for segment in part.segments:
        if segment.id not in written:
            raise AnswerRejected(reason=f"segment {segment.id} is missing in it")
    return {segment.id: written[segment.id] for segment in part.segments}


def _texts(written: Mapping[int, str]) -> Result:
    return {"segments": [{"segment": number, "text": text} for number, text in written.items()]}


def _check_edits(answer: Any, part: Part) -> Result:
    """Edits that change a masked word are left out: the model does not know it."""
    before = {segment.id: segment.text for segment in part.segments}
    are_masked = {segment.id for segment in part.segments if segment.is_masked}
    edits: dict[int, Result] = {}
    for entry in answer["edits"]:
        number = _cited([entry["id"]], part)[0]
        if number in edits:
            raise AnswerRejected(reason=f"it edits segment {number} twice")
        text, reason = one_line(entry["text"]), one_line(entry["reason"])
        if number in are_masked and not keeps_masked(text, before[number]):
            continue
        edits[number] = {
            "segment": number,
            "before": before[number],
            "text": text,
            "reason": reason,
        }
    changed = (edits[number] for number in sorted(edits))
    return {"edits": [edit for edit in changed if edit["text"] != edit["before"]]}


# --- words ------------------------------------------------------------------------------------

_SPOKEN_SIGNS = frozenset("%&@#*‰")
"""Unicode calls them punctuation, but they are said."""
_BETWEEN_WORDS = frozenset("-/_\u2010\u2011\u2012\u2013\u2014\u2015")

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han."""
_TOKEN = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")


def spoken_form(text: str) -> tuple[list[str], list[str]]:
    """The words of ``text`` without case and marks, and the signs in it that are said."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    letters: list[str] = []
    signs: list[str] = []
    for letter in folded:
        kind = unicodedata.category(letter)
        if letter in _SPOKEN_SIGNS or kind[0] == "S":
            signs.append(letter)
        elif letter in _BETWEEN_WORDS or letter.isspace():
            letters.append(" ")
        elif kind[0] != "P":
            letters.append(letter)
    return "".join(letters).split(), signs


def spoken_text(text: str) -> str:
    """The words of ``text`` without case and marks, a space before and after each of them."""
    words = (token for word in spoken_form(text)[0] for token in _TOKEN.findall(word))
    return "".join(f" {word} " for word in words)


def count_words(wanted: str, spoken: str) -> int:
    """How often the words ``wanted`` are in ``spoken``, both as `spoken_text`."""
    return spoken.count(wanted) if wanted else 0


# --- the table ----------------------------------------------------------------------------------

_CITE = 'In "segments" name the ids of the segments on which it stands.'

NOTES = TaskType(
    instructions=(
        "The recording is too long for one request, so you see a part of it, or notes on it."
        " Write notes for whoever does the task below without seeing this part. Each entry of"
        f' "notes" is one fact in one or two sentences. {_CITE} Keep names, numbers, dates and'
        " decisions. Leave out what the task does not need."
    ),
    schema=_object(notes=_CITED),
    check=_check_notes,
)

TASKS: Mapping[Task, TaskType] = {
    Task.SUMMARY: TaskType(
        instructions=(
            'Summarise what was said. Each entry of "sentences" is one sentence of the summary.'
            f" {_CITE} Write nothing that was not said."
        ),
        schema=_object(sentences=_CITED),
        check=_check_summary,
        reduces=True,
    ),
    Task.CHAPTERS: TaskType(
        instructions=(
            "Divide what was said into chapters by its topics, a chapter every few minutes. An"
            ' entry of "chapters" has a short "title", and as "segment" the id of the segment with'
            " which the chapter begins. Chapters are in order."
        ),
        schema=_object(chapters=_list(title=_TEXT, segment=_ID)),
        check=_check_chapters,
    ),
    Task.ACTION_ITEMS: TaskType(
        instructions=(
            'List what somebody promised, or was asked, to do. In an entry of "action_items", "who"'
            ' is the person (null if it was not said), "what" the action, "due" until when (null if'
            ' it was not said), and "segment" the id of the segment in which it was said. If there'
            " are none, the list is empty."
        ),
        schema=_object(
            action_items=_list(who=_TEXT_OR_NONE, what=_TEXT, due=_TEXT_OR_NONE, segment=_ID)
        ),
        check=_check_action_items,
    ),
    Task.MINUTES: TaskType(
        instructions=(
            "Write the minutes of the meeting: a section for each topic, with what was reported,"
            f' decided and left open as its "points". {_CITE} Write nothing that was not said.'
        ),
        schema=_object(sections=_list(title=_TEXT, points=_CITED)),
        check=_check_minutes,
        reduces=True,
    ),
    Task.KEYWORDS: TaskType(
        instructions=(
            "List the words and names that tell best what was said, at most 20, the most telling"
            " first. Write each exactly as it was said, in the language of the transcript."
        ),
        schema=_object(keywords={"type": "array", "items": _TEXT}),
        check=_check_keywords,
        brief=True,
        keeps_language=True,
    ),
    Task.PUNCTUATE: TaskType(
        instructions=(
            "Correct the punctuation and the upper and lower case of each segment. Change, add and"
            " remove no word, and move none to another segment. A sentence may go on in the next"
            " segment. Answer with every segment, with its id."
        ),
        schema=_object(segments=_list(id=_ID, text=_TEXT)),
        check=_check_punctuated,
        growth=1.3,
        brief=True,
        keeps_language=True,
    ),
    Task.TRANSLATE: TaskType(
        instructions=(
            "Translate the text of each segment. Answer with every segment, with its id; move no"
            " text to another segment. A sentence may go on in the next segment."
        ),
        schema=_object(segments=_list(id=_ID, text=_TEXT)),
        check=_check_translated,
        growth=2.5,
    ),
    Task.CORRECT: TaskType(
        instructions=(
            "The transcript was made by speech recognition. Find what it misheard: words that"
            ' sound like those that were meant, and names. An entry of "edits" has the "id" of the'
            ' segment, its whole corrected "text", and in "reason" why, in a few words. Leave the'
            " speakers' own style and mistakes as they are. If all is right, the list is empty."
        ),
        schema=_object(edits=_list(id=_ID, text=_TEXT, reason=_TEXT)),
        check=_check_edits,
        growth=1.5,
        brief=True,
        keeps_language=True,
    ),
}
"""All tasks but `Task.PROMPT`, whose instructions and schema are the caller's."""


def prompt_type(prompt: str, schema: Mapping[str, Any] | None) -> TaskType:
    """The type of `Task.PROMPT`; ``schema`` is that of the answer, None: plain text."""

    def check(answer: Any, _part: Part) -> Result:
        return {"answer": answer}

    return TaskType(instructions=prompt, schema=schema, check=check, reduces=True)
