"""The document of a task, from the results of its last round. Times are milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from common.domain.enhancing.parts import NumberedSegment
from common.domain.enhancing.tasks import Result, Task, count_words, spoken_text

Segments = Sequence[NumberedSegment]


def _summary(results: Sequence[Result], segments: Segments) -> Result:
    sentences = _timed(_all(results, "sentences"), segments)
    return {"text": " ".join(it["text"] for it in sentences), "sentences": sentences}


def _minutes(results: Sequence[Result], segments: Segments) -> Result:
    return {
        "sections": [
            {**section, "points": _timed(section["points"], segments)}
            for section in _all(results, "sections")
        ]
    }


def _chapters(results: Sequence[Result], segments: Segments) -> Result:
    """Each ends where the next one begins; one of the same title goes on."""
    chapters: list[Result] = []
    for entry in _timed(_all(results, "chapters"), segments):
        if not chapters or _folded(chapters[-1], "title") != _folded(entry, "title"):
            chapters.append(entry)
    ends = [chapter["start_ms"] for chapter in chapters[1:]]
    ends.append(max((segment.end_ms for segment in segments), default=0))
    return {
        "chapters": [
            {**chapter, "end_ms": end} for chapter, end in zip(chapters, ends, strict=False)
        ]
    }


def _action_items(results: Sequence[Result], segments: Segments) -> Result:
    first: dict[tuple[str, str], Result] = {}
    for item in _all(results, "action_items"):
        first.setdefault((_folded(item, "who"), _folded(item, "what")), item)
    return {"action_items": _timed(first.values(), segments)}


def _keywords(results: Sequence[Result], segments: Segments) -> Result:
    """Counted over the whole transcript."""
    first: dict[str, str] = {}
    for keyword in _all(results, "keywords"):
        first.setdefault(keyword.casefold(), keyword)
    spoken = {segment.id: spoken_text(segment.text) for segment in segments}
    counted: list[Result] = []
    for keyword in first.values():
        wanted = spoken_text(keyword)
        counts = {number: count_words(wanted, text) for number, text in spoken.items()}
        said_in = [number for number, count in counts.items() if count]
        counted.append({"keyword": keyword, "count": sum(counts.values()), "segments": said_in})
    return {"keywords": sorted(counted, key=lambda it: -it["count"])}


def _texts(results: Sequence[Result], segments: Segments) -> Result:
    speakers = {segment.id: segment.speaker for segment in segments}
    texts = _timed(_all(results, "segments"), segments)
    return {"segments": [{**it, "speaker": speakers[it["segment"]]} for it in texts]}


def _edits(results: Sequence[Result], segments: Segments) -> Result:
    return {"edits": _timed(_all(results, "edits"), segments)}


def _answer(results: Sequence[Result], _segments: Segments) -> Result:
    return {"answer": results[0]["answer"]}


def _all(results: Iterable[Result], name: str) -> list[Any]:
    return [entry for result in results for entry in result[name]]


def _folded(entry: Result, field: str) -> str:
    return (entry[field] or "").casefold()


def _timed(entries: Iterable[Result], segments: Segments) -> list[Result]:
    """Each with the time from the first to the last of its ``segments``, or of its ``segment``."""
    at = {segment.id: segment for segment in segments}
    timed: list[Result] = []
    for entry in entries:
        spans = [at[it] for it in entry.get("segments") or [entry["segment"]]]
        start_ms, end_ms = min(it.start_ms for it in spans), max(it.end_ms for it in spans)
        timed.append({**entry, "start_ms": start_ms, "end_ms": end_ms})
    return timed


COMBINED: Mapping[Task, Callable[[Sequence[Result], Segments], Result]] = {
    Task.SUMMARY: _summary,
    Task.CHAPTERS: _chapters,
    Task.ACTION_ITEMS: _action_items,
    Task.MINUTES: _minutes,
    Task.KEYWORDS: _keywords,
    Task.PUNCTUATE: _texts,
    Task.TRANSLATE: _texts,
    Task.CORRECT: _edits,
    Task.PROMPT: _answer,
}
