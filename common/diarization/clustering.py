"""The speakers of a recording, from the embeddings of its stretches.

Agglomerative clustering with centroid linkage: the two clusters whose mean embeddings are most
alike are merged, until none are alike enough. A mean describes a voice far better than one stretch
does, so two clusters of one person are at least as alike as two of that person's stretches within
seconds. How alike these are depends on the room and the line, and is measured in each recording.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from common.domain.speakers import SpeakerCount, Stretch

Floats = NDArray[np.float32]

ALIKE = 0.42
"""The least cosine of two clusters of one speaker, where a recording has too little to measure it.
In a quiet room clusters of two people stay below 0.4, in noise below 0.5; on the telephone, whose
band leaves less of a voice, they reach 0.66."""
ALIKE_WITHIN = 0.40, 0.60
"""In what range it is measured; the median of at least `MIN_PAIRS` pairs of stretches."""
MIN_PAIRS = 10
SEED_MS = 1_000
"""Stretches with less audio of one voice alone are assigned to speakers, and make none."""
SPEAKER_MS = 4_000
SPEAKER_SHARE = 0.05
"""How much a speaker says at least, of such stretches: the first, or that share of a short
recording. What is less, such as a laugh, is assigned to the others."""
BLOCK = 1_000
"""So many stretches in a row of a long recording are merged first, as far as they are surely alike:
the cosines of all pairs of ten hours would need gigabytes."""
WHOLE = 4_000
"""So many clusters are merged at once."""
SURE = 0.6
_ANY = -1.5
"""Less than any cosine, also one that is rounded."""
_LEAST = 1e-6
"""Of a squared length: embeddings that cancel each other out have no direction."""
_OWN_MS = 2_000
"""With so much audio, a stretch is assigned by its own embedding; with less, the others of the same
voice in its window count as well; with none, the nearest of them alone does."""


def cluster(stretches: Sequence[Stretch], count: SpeakerCount | None = None) -> list[int]:
    """The number of the speaker of each stretch, from 0.

    The result depends on the stretches and their order alone (`common.domain.speakers.gather`
    orders them). It has as many speakers as ``count`` permits, if there are stretches for so many.
    """
    if not stretches:
        return []
    units = _Units.of(stretches)
    seeds = units.seeds().tolist()
    if not seeds:
        return [0] * len(stretches)
    clusters = [
        _Cluster(units.vectors[at] * units.weights[at], float(units.weights[at])) for at in seeds
    ]
    alike = _alike(stretches, units)
    return _assign(stretches, units, _speakers(clusters, count or SpeakerCount(), alike))


@dataclass(frozen=True, slots=True)
class _Units:
    """The embeddings of stretches, shape (stretches, values), zeros where there is none.

    ``weights`` are ms of audio; ``sure`` where that is long enough, and of one voice alone.
    """

    vectors: Floats
    weights: Floats
    sure: NDArray[np.bool_]

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> _Units:
        size = max(len(it.embedding or b"") // 2 for it in stretches)
        vectors = np.zeros((len(stretches), size), np.float32)
        for at, it in enumerate(stretches):
            if it.embedding:
                vectors[at] = np.frombuffer(it.embedding, "<f2")
        weights = np.array([it.embedded_ms for it in stretches], np.float32)
        sure = np.array([it.alone and it.embedded_ms >= SEED_MS for it in stretches])
        return cls(vectors, weights, sure)

    def seeds(self) -> NDArray[np.intp]:
        """The stretches that make speakers: those that are sure, else the longest there are."""
        chosen = self.sure if self.sure.any() else self.weights > 0
        return np.flatnonzero(chosen)


def _alike(stretches: Sequence[Stretch], units: _Units) -> float:
    """The least cosine of two clusters of one speaker: that of stretches of a voice in a window."""
    voices: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at in np.flatnonzero(units.sure).tolist():
        voices[stretches[at].window, stretches[at].voice].append(at)
    cosines = [
        float(units.vectors[one] @ units.vectors[other])
        for members in voices.values()
        for one, other in combinations(members, 2)
    ]
    return float(np.clip(np.median(cosines), *ALIKE_WITHIN)) if len(cosines) >= MIN_PAIRS else ALIKE


# --- speakers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Stretches that are alike: the sum of their embeddings, times their ms, and of these."""

    total: Floats
    ms: float

    @classmethod
    def joined(cls, clusters: Sequence[_Cluster]) -> _Cluster:
        return cls(
            np.sum([it.total for it in clusters], axis=0, dtype=np.float32),
            sum(it.ms for it in clusters),
        )


def _speakers(clusters: Sequence[_Cluster], count: SpeakerCount, alike: float) -> Floats:
    """The mean embedding of each speaker, of length 1, shape (speakers, values)."""
    clusters = _condensed(clusters)
    merges = _merges(clusters)
    least_ms = min(SPEAKER_MS, SPEAKER_SHARE * sum(it.ms for it in clusters))
    counts = _counts(clusters, merges, least_ms)
    until = next((at for at, merge in enumerate(merges) if merge.cosine < alike), len(merges))
    wanted = count.nearest(max(1, counts[until]))
    if counts[until] > wanted:
        until = next(at for at in range(until, len(counts)) if counts[at] <= wanted)
    elif counts[until] < wanted:
        if max(counts[: until + 1]) < wanted:
            least_ms = min(least_ms, SEED_MS)
            counts = _counts(clusters, merges, least_ms)
        until = max(range(until + 1), key=lambda at: (min(counts[at], wanted), at))
    made = _merged(clusters, merges[:until])
    made.sort(key=lambda it: -it.ms)
    large = [it for it in made if it.ms >= least_ms] or made[:1]
    return _unit(np.stack([it.total for it in large[:wanted]]))


@dataclass(frozen=True, slots=True)
class _Merge:
    """The cluster that ``other`` is in becomes part of that of ``one``, their first members."""

    one: int
    other: int
    cosine: float


def _condensed(clusters: Sequence[_Cluster]) -> Sequence[_Cluster]:
    """Clusters of what is surely alike, few enough to compare all pairs."""
    sure = SURE
    while len(clusters) > WHOLE:
        blocks = [clusters[at : at + BLOCK] for at in range(0, len(clusters), BLOCK)]
        clusters = [it for block in blocks for it in _merged(block, _merges(block, least=sure))]
        sure -= 0.1  # so that it ends
    return clusters


def _merges(clusters: Sequence[_Cluster], least: float = _ANY) -> list[_Merge]:
    """What centroid linkage merges, in order, until no two clusters have the cosine ``least``.

    The best partner of each cluster is found anew only when it may be the best of all: until then
    ``best`` is an upper bound (Muellner, arXiv 1109.2378, "generic_linkage").
    """
    count = len(clusters)
    totals = np.stack([it.total for it in clusters])
    products = totals @ totals.T
    norms = np.sqrt(np.maximum(products.diagonal(), _LEAST))
    first = np.arange(count)
    alive = np.ones(count, bool)
    cosines = products / norms / norms[:, None]
    np.fill_diagonal(cosines, -2)
    best, partner = cosines.max(axis=1), cosines.argmax(axis=1)
    stale = np.zeros(count, bool)
    del cosines
    merges: list[_Merge] = []
    while len(merges) < count - 1:
        one = int(best.argmax())
        if stale[one]:
            row = np.where(alive, products[one] / norms / norms[one], -2)
            row[one] = -2
            partner[one] = row.argmax()
            best[one], stale[one] = row[partner[one]], False
            continue
        if best[one] < least:
            break
        one, other = sorted((one, int(partner[one])))
        merges.append(_Merge(one, other, float(best[[one, other]].max())))
        alive[other], best[other] = False, -3
        products[one] += products[other]
        products[one, one] += products[one, other]
        products[:, one] = products[one]
        norms[one] = np.sqrt(max(products[one, one], _LEAST))
        row = np.where(alive, products[one] / norms / norms[one], -2)
        row[one] = -2
        partner[one] = row.argmax()
        best[one], stale[one] = row[partner[one]], False
        stale |= alive & ((partner == one) | (partner == other)) & (first != one)
        closer = row > best
        best[closer], partner[closer], stale[closer] = row[closer], one, False
    return merges


def _counts(clusters: Sequence[_Cluster], merges: Sequence[_Merge], least_ms: float) -> list[int]:
    """How many clusters are speakers, after each number of merges from 0."""
    ms = [it.ms for it in clusters]
    counts = [sum(each >= least_ms for each in ms)]
    for merge in merges:
        before = (ms[merge.one] >= least_ms) + (ms[merge.other] >= least_ms)
        ms[merge.one] += ms[merge.other]
        counts.append(counts[-1] - before + (ms[merge.one] >= least_ms))
    return counts


def _merged(clusters: Sequence[_Cluster], merges: Sequence[_Merge]) -> list[_Cluster]:
    """The clusters after these merges, in order of their first members."""
    members = {at: [at] for at in range(len(clusters))}
    for merge in merges:
        members[merge.one] += members.pop(merge.other)
    return [
        _Cluster.joined([clusters[at] for at in sorted(members[first])])
        for first in sorted(members)
    ]


def _unit(vectors: Floats) -> Floats:
    """Each of length 1; zeros stay."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), np.float32)


# --- assignment -------------------------------------------------------------------------------


def _assign(stretches: Sequence[Stretch], units: _Units, speakers: Floats) -> list[int]:
    """The speaker of each stretch: the most alike, but two voices at once are two speakers."""
    own = _filled(stretches, units)
    sums: dict[tuple[int, int], Floats] = defaultdict(lambda: np.zeros(own.shape[1], np.float32))
    for it, vector, weight in zip(stretches, own, units.weights, strict=True):
        sums[it.window, it.voice] += vector * weight
    voices = _unit(np.stack([sums[it.window, it.voice] for it in stretches]))
    share = np.float32(0.7) * np.clip(1 - units.weights[:, None] / np.float32(_OWN_MS), 0, 1)
    share[units.weights == 0] = 0
    mixed = (1 - share) * own + share * voices
    return _apart(stretches, mixed @ speakers.T)


def _filled(stretches: Sequence[Stretch], units: _Units) -> Floats:
    """The embeddings; a stretch without one has that of the nearest of its voice in its window."""
    filled = units.vectors.copy()
    voices: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at in np.flatnonzero(units.weights).tolist():
        voices[stretches[at].window, stretches[at].voice].append(at)
    for at in np.flatnonzero(units.weights == 0).tolist():
        it = stretches[at]
        middle_ms = it.span.midpoint_ms
        nearest = min(
            voices[it.window, it.voice],
            key=lambda other: abs(stretches[other].span.midpoint_ms - middle_ms),
            default=at,
        )
        filled[at] = filled[nearest]
    return filled


def _apart(stretches: Sequence[Stretch], likeness: Floats) -> list[int]:
    """The speaker of each stretch; of two at once, the less sure one gets its second best."""
    chosen = likeness.argmax(axis=1).tolist()
    if likeness.shape[1] < 2:
        return [int(speaker) for speaker in chosen]
    for one, other in _at_once(stretches):
        if chosen[one] == chosen[other]:
            moved = min(one, other, key=lambda at: (likeness[at, chosen[at]], at))
            chosen[moved] = int(likeness[moved].argsort()[-2])
    return [int(speaker) for speaker in chosen]


def _at_once(stretches: Sequence[Stretch]) -> Iterator[tuple[int, int]]:
    """Pairs of stretches of two voices of a window that speak at the same time."""
    windows: dict[int, list[int]] = defaultdict(list)
    for at, it in enumerate(stretches):
        if any(spoken.overlapped for spoken in it.spoken):
            windows[it.window].append(at)
    for members in windows.values():
        for one, other in combinations(members, 2):
            if stretches[one].voice != stretches[other].voice and any(
                a.span.start_ms < b.span.end_ms and b.span.start_ms < a.span.end_ms
                for a in stretches[one].spoken
                for b in stretches[other].spoken
            ):
                yield one, other
