"""How the command line reads times, and writes what a language model makes of a text."""

from __future__ import annotations

from typing import Any

import click
import pytest

from common.domain.enhancing.tasks import Task
from scripts.cli.transcripts import TimeParam, in_words

AT = {"start": 65.0, "end": 70.0}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("83.5", 83.5), ("1:23.5", 83.5), ("1:01:23", 3683), ("90:00", 5400)],
)
def test_a_time_is_seconds_or_of_a_clock(text: str, seconds: float) -> None:
    assert TimeParam().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "now", "1:60", "1:-2", "-5", "1:2:3:4", "1:60:00", "1.5:20", "nan", "inf", ":5"]
)
def test_no_other_text_is_a_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a time such as 83\.5"):
        TimeParam().convert(text, None, None)


RESULTS: dict[Task, tuple[dict[str, Any], list[str]]] = {
    Task.SUMMARY: (
        {"text": "All is well.", "sentences": [{"text": "All is well."}]},
        ["All is well."],
    ),
    Task.CHAPTERS: ({"chapters": [{"title": "Start", "segment": 0, **AT}]}, ["1:05  Start"]),
    Task.ACTION_ITEMS: (
        {
            "action_items": [
                {"who": "Lan", "what": "call Minh", "due": "Monday", "segment": 0, **AT},
                {"who": None, "what": "pay", "due": None, "segment": 1, **AT},
            ]
        },
        ["1:05  Lan: call Minh (Monday)", "1:05  pay"],
    ),
    Task.MINUTES: (
        {"sections": [{"title": "Plans", "points": [{"text": "We go.", "segments": [0], **AT}]}]},
        ["Plans", "- We go. (1:05)"],
    ),
    Task.KEYWORDS: (
        {"keywords": [{"keyword": "Huế", "count": 2, "segments": [0, 1]}]},
        ["Huế (2 times)"],
    ),
    Task.PUNCTUATE: (
        {"segments": [{"segment": 0, "text": "Hello.", "speaker": None, **AT}]},
        ["Hello."],
    ),
    Task.TRANSLATE: (
        {"segments": [{"segment": 0, "text": "Chào.", "speaker": "Lan", **AT}]},
        ["Lan: Chào."],
    ),
    Task.CORRECT: (
        {"edits": [{"segment": 0, "before": "Lam", "text": "Lan", "reason": "a name", **AT}]},
        ["1:05  Lam", "  -> Lan (a name)"],
    ),
    Task.PROMPT: ({"answer": {"tên": 1}}, ["{", '  "tên": 1', "}"]),
}


@pytest.mark.parametrize("task", Task)
def test_the_result_of_each_task_is_written_for_people(task: Task) -> None:
    result, written = RESULTS[task]
    assert "\n".join(in_words(result)).splitlines() == written
