"""Known voices: who is named by them, who is not, and how their embeddings are stored."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.db.vault import SECRETS, VOICES, Cipher
from common.db.voices import opened, sealed
from common.diarization.identification import likeness, mean_voice
from common.domain.speakers import (
    Diarization,
    Identified,
    Spoken,
    Stretch,
    Turn,
    stretches_from_json,
    stretches_to_json,
    voiced_by,
)
from common.domain.values import Span
from common.domain.voices import AHEAD, ALIKE, ALIKE_NARROW, KnownVoice, ambiguous, identify
from common.errors import SetupProblem

A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"
KEY, NEW_KEY = "k" * 32, "n" * 32
cosines = st.floats(-1, 1)


def known(*names: str) -> list[KnownVoice]:
    return [KnownVoice(uuid4(), name, b"") for name in names]


def named(found: dict[str, tuple[KnownVoice, float]]) -> dict[str, str]:
    return {speaker: voice.name for speaker, (voice, _) in found.items()}


def stretch(start_s: float, end_s: float, vector: list[float], **others: object) -> Stretch:
    embedding = np.array(vector, "<f2").tobytes()
    spoken = (Spoken(Span(round(start_s * 1000), round(end_s * 1000))),)
    fields: dict[str, object] = {"embedding": embedding, "embedded_ms": 1_500} | others
    return Stretch(0, 0, spoken, **fields)  # type: ignore[arg-type]


# --- who is named -----------------------------------------------------------------------------


def test_who_is_alike_enough_is_named_and_who_is_not_is_nobody() -> None:
    voices = known("Lan", "Minh")
    found = identify({A: [0.8, 0.2], B: [0.1, ALIKE - 0.01], C: [0.2, ALIKE]}, voices)
    assert found == {A: (voices[0], 0.8), C: (voices[1], ALIKE)}


def test_where_both_came_over_a_telephone_more_is_needed() -> None:
    lan, minh = known("Lan", "Minh")
    likely = {A: [ALIKE_NARROW - 0.01, 0.1], B: [0.1, ALIKE_NARROW]}
    assert named(identify(likely, [lan, minh], narrow=[A, B])) == {A: "Lan", B: "Minh"}
    called = [replace(lan, narrow=True), replace(minh, narrow=True)]
    assert named(identify(likely, called)) == {A: "Lan", B: "Minh"}
    assert named(identify(likely, called, narrow=[A, B])) == {B: "Minh"}
    several = [called[0], replace(lan, id=uuid4())]
    assert identify({A: [0.7, 0.65]}, several, narrow=[A]) == {A: (several[1], 0.65)}


def test_who_is_nearly_as_much_like_somebody_else_is_not_guessed() -> None:
    assert identify({A: [0.8, 0.8 - AHEAD + 0.01]}, known("Lan", "Minh")) == {}
    assert named(identify({A: [0.8, 0.79]}, known("Lan", "Lan"))) == {A: "Lan"}, "one person"


def test_who_is_like_several_people_alike_is_ambiguous() -> None:
    voices = known("Lan", "Lan at work", "Minh")
    of_several = {A: [0.85, 0.84, 0.1]}
    assert (identify(of_several, voices), ambiguous(of_several, voices)) == ({}, [A])
    for sure in ([0.85, 0.7, 0.1], [0.65, ALIKE - 0.01, 0.1], [0.1, 0.1, 0.1]):
        assert ambiguous({A: sure}, voices) == []
    assert ambiguous({A: [0.8, 0.79]}, known("Lan", "Lan")) == []
    assert ambiguous({A: []}, []) == []


def test_a_person_is_one_speaker_the_most_alike() -> None:
    voices = known("Lan", "Lan", "Minh")
    found = identify({A: [0.7, 0.1, 0], B: [0.1, 0.9, 0], C: [0.85, 0, 0.7]}, voices)
    assert found == {B: (voices[1], 0.9)}


def test_without_voices_or_speakers_nobody_is_named() -> None:
    assert identify({A: []}, []) == {}
    assert identify({}, known("Lan")) == {}


@given(st.lists(st.lists(cosines, min_size=4, max_size=4), max_size=6))
def test_whatever_the_cosines_nobody_is_guessed(rows: list[list[float]]) -> None:
    voices = known("Lan", "Minh", "Lan", "Hoa")
    speakers = {f"SPEAKER_{at:02}": row for at, row in enumerate(rows)}
    found = identify(speakers, voices)
    assert set(ambiguous(speakers, voices)).isdisjoint(found)
    assert len(set(named(found).values())) == len(found)
    for speaker, (voice, cosine) in found.items():
        row = speakers[speaker]
        assert cosine == max(row) >= ALIKE
        others = [it for it, other in zip(row, voices, strict=True) if other.name != voice.name]
        assert cosine - max(others) >= AHEAD


# --- voices of speakers -----------------------------------------------------------------------


def test_a_stretch_describes_who_speaks_for_the_most_of_it_alone() -> None:
    turns = [Turn(Span(0, 3_000), A), Turn(Span(3_000, 6_000), B)]
    his, hers = stretch(0, 2, [1, 0]), stretch(2.5, 4.5, [0, 1])
    both = stretch(1, 3, [1, 1], alone=False)
    moment = stretch(1, 3, [], embedding=None, embedded_ms=0)
    nobodys = stretch(7, 9, [1, 0])
    found = voiced_by([his, both, moment, hers, nobodys], turns)
    assert found == {A: [his, moment], B: [hers]}


def test_a_voice_is_the_mean_of_its_lasting_embeddings_and_describes_all_its_speech() -> None:
    stretches = [
        stretch(0, 2, [1, 0], embedded_ms=3_000),
        stretch(2, 4, [0, 1], embedded_ms=4_000),
        stretch(4, 5, [-1, 0], embedded_ms=900),
    ]
    voice = mean_voice(stretches)
    assert voice is not None
    assert (voice.sampled_ms, voice.narrow) == (7_000, False)
    assert np.allclose(np.frombuffer(voice.embedding, "<f2"), [0.6, 0.8], atol=1e-3)
    assert mean_voice(stretches[2:]) is None


def test_a_voice_came_over_a_telephone_if_most_of_it_did() -> None:
    room = [stretch(0, 2, [1, 0])]
    line = [stretch(at, at + 2, [0, 1], narrow=True) for at in (4, 8)]
    for stretches, narrow in (
        (room, False),
        (line, True),
        (room + line, True),
        (room * 2 + line, False),
    ):
        voice = mean_voice(stretches)
        assert voice is not None
        assert voice.narrow == narrow


def test_likeness_is_the_cosine_with_each_voice() -> None:
    one, other = (np.array(it, "<f2").tobytes() for it in ([1, 0], [0.6, 0.8]))
    found = likeness({A: one, B: other}, [one, other])
    assert np.allclose([found[A], found[B]], [[1, 0.6], [0.6, 1]], atol=1e-3)
    assert likeness({A: one}, []) == {A: []}


# --- names ------------------------------------------------------------------------------------

LAN = Identified(str(UUID(int=7)), 0.81)
TALK = Diarization(
    (Turn(Span(0, 4_000), A), Turn(Span(4_000, 6_000), B), Turn(Span(6_000, 9_000), C)),
    {A: "Lan", B: "Hoa"},
    {A: LAN},
)


def test_identified_speakers_are_stored_and_those_of_older_transcripts_are_none() -> None:
    assert Diarization.from_json(TALK.to_json()) == TALK
    older = {name: it for name, it in TALK.to_json().items() if name != "identified"}
    assert Diarization.from_json(older).identified == {}


@pytest.mark.parametrize("change", [{A: "Lan Anh"}, {A: None}, {A: B}])
def test_what_a_person_changes_is_no_longer_a_voices(change: dict[str, str | None]) -> None:
    assert TALK.changed(change)[0].identified == {}
    assert TALK.changed({B: "Mai"})[0].identified == {A: LAN}


def test_names_that_people_gave_stay_when_speakers_are_found_anew() -> None:
    turns = (Turn(Span(0, 5_000), A), Turn(Span(5_000, 9_000), B))
    voices = Identified(str(UUID(int=8)), 0.7), Identified(str(UUID(int=9)), 0.7)
    anew = Diarization(turns, {A: "Minh", B: "Mai"}, {A: voices[0], B: voices[1]})
    found = anew.with_names_of(TALK)
    assert found.names == {A: "Minh", B: "Hoa"}, "who speaks as much, and later"
    kept = anew.with_names_of(Diarization(TALK.turns, {C: "Hoa"}))
    assert (kept.names, kept.identified) == ({A: "Minh", B: "Hoa"}, {A: voices[0]})
    assert anew.with_names_of(Diarization(TALK.turns, {A: "Lan"}, {A: LAN})) == anew


# --- how embeddings are stored ----------------------------------------------------------------


def test_with_a_key_embeddings_are_encrypted_and_any_of_the_keys_decrypts() -> None:
    result = {"by": {"revision": 1}, **stretches_to_json([stretch(0, 2, [1, 0], narrow=True)])}
    stored = sealed(result, Cipher(VOICES, [KEY]))
    assert result["embeddings"] not in str(stored)
    assert stored["by"] == result["by"]
    assert stored["stretches"] == result["stretches"]
    for keys in ([KEY], [NEW_KEY, KEY]):
        assert opened(stored, Cipher(VOICES, keys)) == result
    for cipher in (Cipher(VOICES), Cipher(VOICES, [NEW_KEY]), Cipher(SECRETS, [KEY])):
        assert opened(stored, cipher) is None
    (read,) = stretches_from_json(result)
    assert read.narrow


def test_what_was_stored_in_the_clear_can_be_read_once_there_is_a_key() -> None:
    result = stretches_to_json([stretch(0, 2, [1, 0])])
    assert sealed(result, Cipher(VOICES)) == result
    assert opened(result, Cipher(VOICES, [KEY])) == result
    assert opened(None, Cipher(VOICES, [KEY])) is None


def test_a_short_key_is_refused_by_its_name() -> None:
    with pytest.raises(SetupProblem, match="VOICE_KEY has a key of fewer than 32"):
        Cipher(VOICES, [KEY, "short"])
