"""What differs between two revisions of a transcript."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from common.domain.matching import matching
from common.domain.results import seconds
from common.domain.transcript import Transcript, join_text
from common.domain.values import Segment, Span
from common.domain.word_times import tokens

Numbered = tuple[int, Segment]
"""A segment and its id: its index in its transcript."""
Group = tuple[list[Numbered], list[Numbered]]
"""Segments of the old transcript, and what they are in the new one."""


def difference(old: Transcript, new: Transcript) -> list[dict[str, Any]]:
    """What to change in ``old`` to get ``new``, in order of time, ready for JSON.

    Each change has ``op``, and the segments ``before`` and ``after``, with their ids in either
    transcript. ``op`` is ``replace`` (one for one, or several for several), ``split``, ``join``,
    ``delete`` or ``insert``. Segments belong together if they share more than half of the time of
    the shorter one, or have moved with the same text. Where the text differs, ``words`` has it in
    pieces, each of which is ``equal``, ``delete`` or ``insert``.
    """
    before, after = _only_here(old, new), _only_here(new, old)
    groups = _with_moves(_groups(before, after))
    groups.sort(key=lambda it: min(segment.span for side in it for _, segment in side))
    return [_change(*group) for group in groups]


def _only_here(transcript: Transcript, other: Transcript) -> list[Numbered]:
    """The segments that the other transcript does not have just so."""
    others = Counter(map(_shown, other.segments))
    found = []
    for index, segment in enumerate(transcript.segments):
        if others[_shown(segment)]:
            others[_shown(segment)] -= 1
        else:
            found.append((index, segment))
    return found


def _shown(segment: Segment) -> tuple[object, ...]:
    return segment.span, segment.text.strip(), segment.speaker, segment.channel


def _groups(before: Sequence[Numbered], after: Sequence[Numbered]) -> list[Group]:
    """The segments that belong together by their times, channel by channel."""
    groups: list[Group] = []
    for channel in dict.fromkeys(segment.channel for _, segment in (*before, *after)):
        news = [it for it in after if it[1].channel == channel]
        starts = [segment.span.start_ms for _, segment in news]
        ends = [segment.span.end_ms for _, segment in news]
        group_of: dict[int, Group] = {}
        for index, segment in before:
            if segment.channel != channel:
                continue
            first = bisect_left(ends, segment.span.start_ms)
            last = bisect_right(starts, segment.span.end_ms)
            linked = [at for at in range(first, last) if _share(segment.span, news[at][1].span)]
            group = next((group_of[at] for at in linked if at in group_of), None)
            if group is None:
                group = [], []
                groups.append(group)
            group[0].append((index, segment))
            group[1].extend(news[at] for at in linked if at not in group_of)
            group_of.update(dict.fromkeys(linked, group))
        groups += [([], [it]) for at, it in enumerate(news) if at not in group_of]
    return groups


def _share(one: Span, other: Span) -> bool:
    """Whether they share more than half of the shorter one; an empty span counts as 1 ms."""
    start = max(one.start_ms, other.start_ms)
    end = min(max(one.end_ms, one.start_ms + 1), max(other.end_ms, other.start_ms + 1))
    return 2 * (end - start) > max(1, min(one.duration_ms, other.duration_ms))


def _with_moves(groups: Sequence[Group]) -> list[Group]:
    """The groups; a segment that is gone, and one with the same text elsewhere, are one."""
    gone: dict[tuple[object, ...], list[Group]] = defaultdict(list)
    for before, after in groups:
        if not after:
            gone[_said(before[0])].append((before, after))
    kept = []
    for before, after in groups:
        if not before and gone[_said(after[0])]:
            gone[_said(after[0])].pop(0)[1].extend(after)
        else:
            kept.append((before, after))
    return kept


def _said(numbered: Numbered) -> tuple[object, ...]:
    return numbered[1].text.strip(), numbered[1].channel


def _change(before: Sequence[Numbered], after: Sequence[Numbered]) -> dict[str, Any]:
    sizes = min(len(before), 2), min(len(after), 2)
    names = {(1, 0): "delete", (0, 1): "insert", (1, 2): "split", (2, 1): "join"}
    old, new = (join_text(segment for _, segment in side) for side in (before, after))
    return {
        "op": names.get(sizes, "replace"),
        "before": [_document(*it) for it in before],
        "after": [_document(*it) for it in after],
        **({"words": _pieces(old, new)} if old != new and before and after else {}),
    }


def _document(index: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": index,
        "start": seconds(segment.span.start_ms),
        "end": seconds(segment.span.end_ms),
        "text": segment.text.strip(),
        "speaker": segment.speaker,
    }


def _pieces(old: str, new: str) -> list[dict[str, str]]:
    """The new text, and what of the old one is gone, word by word."""
    before, after = tokens(old), tokens(new)
    places = matching([it.strip() for it in before], [it.strip() for it in after])
    pieces: list[dict[str, str]] = []
    was = now = 0
    for a, b in [*places.items(), (len(before), len(after))]:
        for op, text in (
            ("delete", before[was:a]),
            ("insert", after[now:b]),
            ("equal", after[b : b + 1]),
        ):
            if text and pieces and pieces[-1]["op"] == op:
                pieces[-1]["text"] += "".join(text)
            elif text:
                pieces.append({"op": op, "text": "".join(text)})
        was, now = a + 1, b + 1
    return pieces
