"""What the gateway promises about voices: consent, enrolment, lists, and deletion."""

from __future__ import annotations

from base64 import b64encode
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from common.db.tables import Job, Step, Voice
from common.db.vault import VOICES, Cipher
from common.db.voices import Voices
from common.domain.pipeline import StepKind
from common.domain.speakers import Diarization, Spoken, Stretch, Turn
from common.domain.values import Span
from scripts.cli.cli import steno
from tests.support.api import Api
from tests.support.factories import (
    DIARIZED,
    TENANT,
    do_step,
    finish_diarization,
    finish_merge,
)

NEW_KEY = "a-new-key-of-the-voices-0123456789ab"
KEY = "a-key-of-the-voices-0123456789abcdef"
A, B = "SPEAKER_00", "SPEAKER_01"
HIS, HERS = np.array([0.8, 0.6, 0]), np.array([0, 0.6, 0.8])
CONSENT = {"by": "Minh Trần", "note": "Form 12"}


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"VOICE_KEY": KEY}


@pytest.fixture(autouse=True)
def none_yet(api: Api) -> None:
    """No voices of earlier tests."""
    with api.database.transaction() as session:
        session.connection().exec_driver_sql("TRUNCATE voices")


def said(start_s: int, end_s: int, embedding: Any, voice: int) -> list[Stretch]:
    """Stretches of two seconds, of which 1.5 s are embedded."""
    return [
        Stretch(
            window=0,
            voice=voice,
            spoken=(Spoken(Span(at * 1_000, (at + 2) * 1_000)),),
            embedding=embedding.astype("<f2").tobytes(),
            embedded_ms=1_500,
        )
        for at in range(start_s, end_s, 2)
    ]


def talk(api: Api, **submitted: Any) -> UUID:
    """A job in which he speaks for 16 s, and she for 4 s."""
    job_id = api.submit(**{"options": DIARIZED} | submitted)
    api.plan(2)
    while (claim := api.claim()).kind != StepKind.MERGE:
        if claim.kind == StepKind.DIARIZE:
            theirs = [*said(0, 8, HIS, 0), *said(8, 10, HERS, 1)]
            finish_diarization(api.steps, claim, theirs)
        else:
            do_step(api.steps, claim)
    turns = [
        Turn(Span(0, 8_000), A),
        Turn(Span(8_000, 10_000), B),
        Turn(Span(10_000, 18_000), A),
        Turn(Span(18_000, 20_000), B),
    ]
    finish_merge(api.steps, claim, diarization=Diarization(tuple(turns)))
    return job_id


@pytest.fixture
def job_id(api: Api) -> UUID:
    return talk(api)


def enrol(api: Api, job_id: UUID, status: int = 201, /, **others: Any) -> Any:
    wanted = {"name": "Minh", "job_id": str(job_id), "speaker": A, "consent": CONSENT}
    wanted |= others
    sent = {name: value for name, value in wanted.items() if value is not None}
    return api.ask("POST", "voices", status, json=sent).json()


def test_a_speaker_of_a_job_is_enrolled_and_their_consent_recorded(api: Api, job_id: UUID) -> None:
    voice = enrol(api, job_id, name="  Minh \n Trần ")
    at = voice["created_at"]
    assert voice == {
        "id": voice["id"],
        "name": "Minh Trần",
        "seconds": 12.0,
        "network": "campplus-zh-en",
        "telephone": False,
        "consent": {**CONSENT, "at": at, "key_id": None},
        "job_id": str(job_id),
        "speaker": A,
        "created_at": at,
    }
    assert api.get(f"voices/{voice['id']}") == voice
    assert api.get("voices") == {"voices": [voice], "next_cursor": None}
    cipher = Cipher(VOICES, [KEY])
    (known,) = Voices(api.database, TENANT, cipher).known("campplus-zh-en")
    assert np.allclose(np.frombuffer(known.embedding, "<f2"), HIS, atol=1e-3)
    assert Voices(api.database, TENANT, cipher).known("another") == []


def test_nobody_is_enrolled_without_consent(api: Api, job_id: UUID) -> None:
    assert "consent is missing" in enrol(api, job_id, 422, consent=None)["detail"]
    assert "consent.by is missing" in enrol(api, job_id, 422, consent={"note": "x"})["detail"]
    assert "consent.by must be not empty" in enrol(api, job_id, 422, consent={"by": " "})["detail"]
    assert api.count(Voice) == 0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"speaker": None}, "speaker is missing"),
        ({"speaker": "SPEAKER_07"}, "speaker must be one of SPEAKER_00, SPEAKER_01"),
        ({"speaker": B}, "SPEAKER_01 has 3 s of usable speech, and 10 s are needed. Enrol"),
        ({"name": ""}, "name must be not empty"),
        ({"name": "a" * 201}, "200"),
        ({"embedding": "x"}, "embedding"),
    ],
)
def test_what_cannot_be_enrolled_is_named(
    api: Api, job_id: UUID, wanted: dict[str, Any], message: str
) -> None:
    assert message in enrol(api, job_id, 422, **wanted)["detail"]
    assert api.count(Voice) == 0


def test_a_person_is_enrolled_as_the_speakers_were_merged(api: Api, job_id: UUID) -> None:
    api.ask("PATCH", f"jobs/{job_id}/speakers", json={B: A})
    voice = enrol(api, job_id, speaker=None)
    assert (voice["speaker"], voice["seconds"]) == (A, 15.0)


def test_a_job_without_a_text_or_without_speakers_enrols_nobody(api: Api) -> None:
    unfinished = api.submit(options=DIARIZED)
    assert enrol(api, unfinished, 409)["code"] == "not_ready"
    api.ask("DELETE", f"jobs/{unfinished}", 204)
    plain = api.submit()
    api.complete()
    assert "diarize=true" in enrol(api, plain, 409)["detail"]
    enrol(api, uuid4(), 404)
    enrol(api, talk(api, tenant="another"), 404)


def test_voices_are_listed_by_the_page_and_renamed(api: Api, job_id: UUID) -> None:
    made = [enrol(api, job_id, name=name)["id"] for name in ("a", "b", "c")]
    first = api.get("voices", limit=2)
    rest = api.get("voices", limit=2, cursor=first["next_cursor"])
    assert [it["id"] for it in first["voices"] + rest["voices"]] == made[::-1]
    assert rest["next_cursor"] is None
    changed = api.ask("PATCH", f"voices/{made[0]}", json={"name": "Hoa"}).json()
    assert changed["name"] == api.get(f"voices/{made[0]}")["name"] == "Hoa"
    assert api.ask("PATCH", f"voices/{made[0]}", json={}).json() == changed
    for wrong in ({"name": " "}, {"consent": CONSENT}):
        api.ask("PATCH", f"voices/{made[0]}", 422, json=wrong)


def test_a_deleted_voice_is_erased_and_leaves_a_receipt(api: Api, job_id: UUID) -> None:
    voice_id, other = (enrol(api, job_id)["id"] for _ in range(2))
    for _ in range(2):
        api.ask("DELETE", f"voices/{voice_id}", 204)
    api.get(f"voices/{voice_id}", 404)
    assert [it["id"] for it in api.get("voices")["voices"]] == [other]
    (receipt,) = api.get("deletions", session_id=voice_id)["deletions"]
    assert (receipt["kind"], receipt["job_id"], receipt["rows"]) == ("voice", None, 1)
    assert receipt["erased_at"] == receipt["requested_at"]
    api.ask("DELETE", f"voices/{uuid4()}", 404)


def test_a_voice_outlives_the_job_that_it_is_from(api: Api, job_id: UUID) -> None:
    voice = enrol(api, job_id)
    api.ask("DELETE", f"jobs/{job_id}", 204)
    assert api.get(f"voices/{voice['id']}") == voice


def test_embeddings_are_encrypted_and_in_no_answer_and_no_log(api: Api, job_id: UUID) -> None:
    voice = enrol(api, job_id)
    embedding = b64encode(HIS.astype("<f2").tobytes()).decode()
    with api.database.transaction() as session:
        assert session.scalars(select(Voice.embedding)).one().keys() == {"encrypted"}
    paths = ("voices", f"voices/{voice['id']}", f"result/{job_id}", f"jobs/{job_id}")
    answers = [str(api.get(path)) for path in paths] + [api.gateway.log_file.read_text()]
    assert not any("embedding" in it or embedding in it for it in answers)
    assert "Minh" not in answers[-1]


def test_where_the_key_is_lost_enrolment_says_so(api: Api, job_id: UUID) -> None:
    stranger = Cipher(VOICES, ["another-key-0123456789abcdef0123456789"])
    with api.database.transaction() as session:
        for step_id, result in session.execute(
            select(Step.id, Step.result).where(Step.job_id == job_id, Step.kind == "diarize")
        ):
            locked = {**result, "embeddings": stranger.seal(result["embeddings"])}
            session.execute(update(Step).where(Step.id == step_id).values(result=locked))
    refused = enrol(api, job_id, 503)
    assert (refused["code"], "VOICE_KEY" in refused["detail"]) == ("voices_locked", True)


def test_operators_encrypt_what_was_stored_before(
    api: Api, job_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(api, job_id)
    monkeypatch.setenv("DATABASE_URL", api.gateway.database_url)
    refused = CliRunner().invoke(steno, ["keys", "encrypt-voices"])
    assert "VOICE_KEY is not set" in refused.output
    monkeypatch.setenv("VOICE_KEY", NEW_KEY)
    refused = CliRunner().invoke(steno, ["keys", "encrypt-voices"])
    assert refused.exit_code == 1
    assert "of 2 voices and chunks are encrypted with the first key, but 1 could" in refused.output
    assert "VOICE_KEY lacks the key that encrypted them" in refused.output
    assert len(refused.output.splitlines()) == 1
    monkeypatch.setenv("VOICE_KEY", f"{NEW_KEY},{KEY}")
    done = CliRunner().invoke(steno, ["keys", "encrypt-voices"], catch_exceptions=False)
    assert "of 3 voices and chunks are encrypted" in done.output
    cipher = Cipher(VOICES, [NEW_KEY])
    of_steps = select(Step.result["embeddings"]).where(Step.kind == StepKind.DIARIZE)
    with api.database.transaction() as session:
        stored = [*session.scalars(select(Voice.embedding)), *session.scalars(of_steps)]
    assert len(stored) == 3
    assert all(it.keys() == {"encrypted"} and cipher.open(it) for it in stored)


@pytest.mark.usefixtures("diarization_weights")
@pytest.mark.parametrize(
    ("path", "status", "sent"),
    [("jobs", 201, {}), ("transcribe", 200, {"url": "https://8.8.8.8/talk.mp3"})],
)
def test_jobs_without_an_upload_identify_as_well(
    api: Api, path: str, status: int, sent: dict[str, str]
) -> None:
    refused = api.ask("POST", path, 422, json={**sent, "identify": True}).json()
    assert (refused["field"], refused["needed"]) == ("identify", "diarize=true")
    wanted = {**sent, "diarize": True, "identify": True}
    job_id = api.ask("POST", path, status, json=wanted).json()["job_id"]
    with api.database.transaction() as session:
        options = session.get_one(Job, UUID(job_id)).options
    assert (options["identify"], options["diarize"]["minimum"]) == (True, 1)
