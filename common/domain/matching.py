"""Which words of a text are still there in another one."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

MAX_PAIRS = 5
"""Pairs of equal items that are compared, for each item of both sequences.

Texts of 500 words have two. What has more, such as one word a hundred times, is matched at its
beginning and its end only: so the time grows with the texts, and not with their square.
"""


def matching(before: Sequence[str], after: Sequence[str]) -> dict[int, int]:
    """Where items that stay are in the new sequence, by their place in the old one; in order.

    These are what both begin and end with, and between them the longest blocks: first the longest
    one of all (of several the first), then those before it and after it.
    """
    shorter = min(len(before), len(after))
    head = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    left = shorter - head
    tail = next((at for at in range(left) if before[-1 - at] != after[-1 - at]), left)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    blocks = [(0, 0, head), (len(before) - tail, len(after) - tail, tail)]
    counts = Counter(new)
    if sum(counts[item] for item in old) <= MAX_PAIRS * (len(old) + len(new)):
        blocks += [(head + a, head + b, size) for a, b, size in _longest(old, new)]
    return {a + at: b + at for a, b, size in sorted(blocks) for at in range(size)}


def _longest(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int, int]]:
    """Blocks that match, as `matching` says: the places of their first items, and their sizes.

    The same as difflib's (Ratcliff and Obershelp), but in n log n, where n is the number of pairs:
    all blocks are found first, and taken by their sizes. What remains of one beside those that are
    taken comes up again by its own size.
    """
    rest = [(-size, a, b) for a, b, size in _blocks(old, new)]
    heapify(rest)
    taken = [(0, 0, 0), (len(old), len(new), 0)]
    while rest:
        negative, a, b = heappop(rest)
        size = -negative
        at = bisect_right(taken, (a, len(new), 0))
        (a0, b0, size0), (a1, b1, _) = taken[at - 1], taken[at]
        if a0 + size0 <= a and b0 + size0 <= b and a + size <= a1 and b + size <= b1:
            taken.insert(at, (a, b, size))
            continue
        # None that is taken is shorter, so at most two of them are where this block is.
        while size > 1 and at < len(taken) and taken[at - 1][0] < a + size:
            (a0, b0, size0), (a1, b1, _) = taken[at - 1], taken[at]
            first = max(0, a0 + size0 - a, b0 + size0 - b)
            last = min(size, a1 - a, b1 - b)
            if first < last:
                heappush(rest, (first - last, a + first, b + first))
            at += 1
    return taken


def _blocks(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """All blocks that are equal and cannot be made longer; they may overlap."""
    places: dict[str, list[int]] = defaultdict(list)
    for b, item in enumerate(new):
        places[item].append(b)
    sizes: dict[int, int] = {}  # of the blocks that end with the item before, by their ends
    for a in range(len(old) + 1):
        ends = places.get(old[a], ()) if a < len(old) else ()
        longer = {b: sizes.get(b - 1, 0) + 1 for b in ends}
        for b, size in sizes.items():
            if b + 1 not in longer:
                yield a - size, b + 1 - size, size
        sizes = longer
