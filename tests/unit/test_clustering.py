from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.diarization import clustering
from common.diarization.clustering import cluster
from common.domain.speakers import SpeakerCount, Spoken, Stretch, gather
from common.domain.values import Chunk, Span, Window

SIZE = 192
NOISE = 1.3
"""Stretches of one speaker then have a cosine of 0.37 on average, as in a noisy interview."""


CLEAR = 0.9
"""And one of 0.55, as in a quiet room."""


def voices(count: int) -> np.ndarray:
    """The embeddings of so many speakers, none like another."""
    made = np.random.default_rng(3).standard_normal((count, SIZE))
    return np.asarray(made / np.linalg.norm(made, axis=1)[:, None])


def stretch(
    at: int, voice: np.ndarray, *, ms: int = 1_500, noise: float = NOISE, seed: int = 5
) -> Stretch:
    """A stretch of a voice, the only one of its window: two seconds after the one before."""
    random_ = np.random.default_rng([seed, at])
    found = voice + noise * random_.standard_normal(SIZE) / SIZE**0.5
    unit = (found / np.linalg.norm(found)).astype("<f2")
    spoken = Spoken(Span(at * 2_000, at * 2_000 + ms))
    return Stretch(at, 0, (spoken,), unit.tobytes(), ms, alone=True)


def spoken_by(speakers: Sequence[int], *, noise: float = NOISE) -> list[Stretch]:
    found = voices(max(speakers) + 1)
    return [stretch(at, found[who], noise=noise) for at, who in enumerate(speakers)]


def agree(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether both divide alike, whatever the numbers."""
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_as_many_speakers_are_found_as_there_are(count: int) -> None:
    said = [at % count for at in range(40 * count)]
    assert agree(cluster(spoken_by(said)), said)


def test_a_speaker_who_comes_last_is_found() -> None:
    said = [0, 1] * 60 + [2] * 4
    assert agree(cluster(spoken_by(said, noise=CLEAR)), said)


def test_a_second_speaker_who_says_little_now_and_then_is_kept() -> None:
    said = [int(at % 150 == 75) for at in range(600)]
    assert sum(said) == 4
    assert agree(cluster(spoken_by(said, noise=CLEAR)), said)


def test_a_laugh_becomes_no_speaker() -> None:
    stretches = spoken_by([0, 1] * 100)
    laugh = voices(3)[2]
    stretches[50] = stretch(50, laugh)
    found = cluster(stretches)
    assert len(set(found)) == 2
    assert agree(found[:50] + found[51:], [0, 1] * 25 + [1] + [0, 1] * 74)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_speakers": 2}, 2),
        ({"num_speakers": 3}, 3),
        ({"num_speakers": 5}, 5),
        ({"max_speakers": 2}, 2),
        ({"max_speakers": 1}, 1),
        ({"min_speakers": 4}, 4),
        ({"min_speakers": 2, "max_speakers": 6}, 3),
    ],
)
def test_the_number_of_speakers_is_as_requested(options: dict[str, int], expected: int) -> None:
    stretches = spoken_by([0, 1, 2] * 40)
    assert len(set(cluster(stretches, SpeakerCount.of(**options)))) == expected


def test_two_like_voices_are_told_apart_where_two_are_requested() -> None:
    one, other = voices(2)
    other = 0.85 * one + (1 - 0.85**2) ** 0.5 * other
    said = [0, 1] * 60
    stretches = [stretch(at, (one, other)[who], noise=0.3) for at, who in enumerate(said)]
    assert len(set(cluster(stretches))) == 1
    assert agree(cluster(stretches, SpeakerCount.of(num_speakers=2)), said)


def test_one_more_is_who_says_most_of_those_taken_for_others() -> None:
    one, other, third = voices(3)
    other = 0.85 * one + (1 - 0.85**2) ** 0.5 * other
    said = [0, 1] * 60
    stretches = [stretch(at, (one, other)[who], noise=0.3) for at, who in enumerate(said)]
    laugh = stretch(120, third)
    found = cluster([*stretches, laugh], SpeakerCount.of(num_speakers=2))
    assert agree(found[:-1], said)


def test_what_all_share_on_a_telephone_makes_nobody_alike() -> None:
    *people, line = voices(4)
    said = [0, 1, 2] * 30
    stretches = [
        replace(stretch(2 * at + half, people[who] + 0.9 * line, noise=0.9), window=at, voice=0)
        for at, who in enumerate(said)
        for half in (0, 1)
    ]
    assert agree(cluster(stretches), [who for who in said for _ in (0, 1)])


def test_more_speakers_than_stretches_are_as_many_as_there_can_be() -> None:
    stretches = spoken_by([0, 1] * 3)
    found = cluster(stretches, SpeakerCount.of(num_speakers=30))
    assert 2 <= len(set(found)) <= 6


def test_short_stretches_are_assigned_and_make_no_speaker() -> None:
    both = voices(2)
    stretches = spoken_by([0, 1] * 20)
    stretches += [stretch(40 + at, both[at % 2], ms=500) for at in range(20)]
    assert agree(cluster(stretches), [0, 1] * 30)


def test_a_short_stretch_goes_by_the_others_of_its_voice_in_its_window() -> None:
    both = voices(2)
    stretches = spoken_by([0, 1] * 20)
    unclear = Stretch(10, 0, (Spoken(Span(21_600, 21_900)),), None)
    assert cluster([*stretches, unclear])[-1] == cluster(stretches)[10]
    misleading = Stretch(
        10, 0, unclear.spoken, stretch(99, 0.1 * both[1] + 0.05 * both[0]).embedding, 300
    )
    assert cluster([*stretches, misleading])[-1] == cluster(stretches)[10]


def test_stretches_without_embedding_go_by_the_nearest_of_their_voice() -> None:
    both = voices(2)
    stretches = spoken_by([0, 1] * 20, noise=CLEAR)
    mixed = [
        replace(stretch(50, both[0], noise=CLEAR), window=50),
        Stretch(50, 0, (Spoken(Span(102_000, 103_000)),)),
        Stretch(50, 0, (Spoken(Span(106_000, 107_000)),)),
        *(replace(stretch(at, both[1], noise=CLEAR), window=50) for at in (54, 55, 56)),
    ]
    first, near_first, near_others, *others = cluster([*stretches, *mixed])[-6:]
    assert [near_first, near_others] == [first, others[0]]
    assert first != others[0]


def test_two_voices_at_once_are_two_speakers() -> None:
    both = voices(2)
    stretches = spoken_by([0, 1] * 20)
    together = (Spoken(Span(90_000, 91_000), overlapped=True),)
    clear, unclear = stretch(50, both[0]), stretch(51, both[0] + 0.5 * both[1])
    pair = [
        Stretch(60, voice, together, it.embedding, 1_500, alone=False)
        for voice, it in enumerate((clear, unclear))
    ]
    one, other = cluster([*stretches, *pair])[-2:]
    assert one != other


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ([], []),
        ([Stretch(0, 0, (Spoken(Span(0, 400)),))], [0]),
        ([stretch(0, voices(1)[0], ms=400)], [0]),
        ([stretch(0, voices(1)[0])], [0]),
    ],
)
def test_nobody_and_a_single_stretch_are_no_trouble(
    stretches: list[Stretch], expected: list[int]
) -> None:
    for count in (None, SpeakerCount.of(num_speakers=3)):
        assert cluster(stretches, count) == expected


def test_the_chunks_order_and_number_do_not_matter() -> None:
    said = [0, 1, 1, 2, 0] * 30
    stretches = spoken_by(said)
    chunks = []
    for index in range(0, 150, 10):
        span = Span(index * 2_000, index * 2_000 + 20_000)
        chunk = Chunk(index, (Window(span, span, 15_000),))
        own = [
            stretches[at].moved(-span.start_ms, Span(0, 20_000)) for at in range(index, index + 10)
        ]
        chunks.append((chunk, [it for it in own if it is not None]))
    expected = cluster(gather(chunks))
    assert agree(expected, said)
    chunks = chunks[7:] + chunks[:7][::-1]
    assert cluster(gather(chunks)) == expected


def test_ten_hours_are_clustered_in_ten_seconds_and_500_mb() -> None:
    said = np.random.default_rng(6).integers(0, 6, 20_000).tolist()
    stretches = spoken_by(said)
    tracemalloc.start()
    started = time.process_time()
    found = cluster(stretches)
    elapsed = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found)) == 6
    right = Counter(zip(said, found, strict=True)).most_common(6)
    assert sum(count for _, count in right) >= 19_990
    assert elapsed < 10
    assert peak < 500e6


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 14))
def test_each_merge_is_of_the_two_most_alike(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    sums = list(random.standard_normal((count, 5)).astype(np.float32))
    clusters = [clustering._Cluster(each, 1.0) for each in sums]
    left = dict(enumerate(sums))
    for merge in clustering._merges(clusters):
        cosines = {
            (one, other): a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
            for (one, a), (other, b) in combinations(left.items(), 2)
        }
        assert merge.cosine == pytest.approx(max(cosines.values()), abs=1e-4)
        assert merge.cosine == pytest.approx(cosines[merge.one, merge.other], abs=1e-4)
        left[merge.one] = left[merge.one] + left.pop(merge.other)
    assert list(left) == [0]


def test_embeddings_that_cancel_each_other_out_are_no_trouble() -> None:
    (one,) = voices(1)
    stretches = [stretch(at, one * (-1) ** at, noise=0) for at in range(10)]
    assert len(set(cluster(stretches, SpeakerCount.of(num_speakers=1)))) == 1
    assert agree(cluster(stretches), [0, 1] * 5)


def test_a_long_recording_condensed_in_blocks_has_the_same_speakers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stretches = spoken_by([0, 1, 2, 3] * 100 + [4] * 6 + [0, 1] * 20)
    whole = cluster(stretches)
    monkeypatch.setattr(clustering, "WHOLE", 200)
    monkeypatch.setattr(clustering, "BLOCK", 90)
    assert agree(cluster(stretches), whole)
