"""Jobs with ``identify``, by workers with the real networks, of voices of eSpeak NG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, update

from common.db.tables import Step, TranscriptRevision, Voice
from common.db.vault import VOICES, Cipher
from common.db.voices import NewVoice, Voices, seal_voices
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.domain.speakers import SpeakerCount
from tests.support.factories import TENANT
from tests.support.gateway import GatewayProcess
from tests.support.service import Service
from tests.support.speech import Samples, silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir", "diarization_weights")

KEY, LOST = "a-key-of-the-voices-0123456789abcdef", "a-lost-key-of-voices-0123456789abcdef"
HIM, HER = "en", "en+f4"
SAID = (
    "The weather will be warm and dry in the south of the country.",
    "They swarmed up in front of the palings as thick as they could jam.",
)
IDENTIFY = Options(diarize=SpeakerCount(), identify=True)
A, B = "SPEAKER_00", "SPEAKER_01"


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"VOICE_KEY": KEY}


@pytest.fixture(scope="module")
def service(gateway: GatewayProcess) -> Iterator[Service]:
    urls = gateway.database_url, gateway.redis_url
    with Service(*urls, gateway.folder, VOICE_KEY=KEY) as service:
        yield service.serve()


@pytest.fixture(scope="module")
def his_job(service: Service) -> UUID:
    """A job in which he speaks alone."""
    said = np.concatenate([part for it in SAID * 8 for part in (speak(it, HIM), silence(0.5))])
    job_id = service.submit(said, options=Options(diarize=SpeakerCount()))
    assert service.ended(job_id).status == JobStatus.COMPLETED
    return job_id


@pytest.fixture
def his(gateway: GatewayProcess, service: Service, his_job: UUID) -> dict[str, Any]:
    """His voice, the only one."""
    with service.database.transaction() as session:
        session.connection().exec_driver_sql("TRUNCATE voices")
    wanted = {"name": "Minh", "job_id": str(his_job), "consent": {"by": "Minh"}}
    answer = gateway.http.post("/api/v1/voices", json=wanted)
    assert answer.status_code == 201, answer.text
    voice: dict[str, Any] = answer.json()
    return voice


def conversation(first: str, second: str) -> Samples:
    """Two voices in turn, three sentences each."""
    pieces = [silence(0.4)]
    for at in range(6):
        pieces += [speak(SAID[at // 2 % 2], (first, second)[at % 2]), silence(0.7)]
    return np.concatenate(pieces)


def document(service: Service, job_id: UUID) -> dict[str, Any]:
    path = service.folder / "results" / str(job_id) / "transcript.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def identified(
    service: Service, audio: Samples, *warnings: str
) -> list[tuple[str | None, str | None]]:
    """The names of the speakers of a recording, and the voices that gave them."""
    job_id = service.submit(audio, options=IDENTIFY)
    assert (service.ended(job_id).status, service.ended(job_id).warnings) == ("COMPLETED", warnings)
    return [(it["name"], it["voice_id"]) for it in document(service, job_id)["speakers"]]


def diarizations(service: Service, job_id: UUID) -> list[tuple[UUID, Any, int | None]]:
    with service.database.transaction() as session:
        found = select(Step.id, Step.result, Step.elapsed_ms).where(
            Step.job_id == job_id, Step.kind == StepKind.DIARIZE
        )
        return [tuple(row) for row in session.execute(found)]


def test_who_is_enrolled_is_named_and_who_is_not_stays_a_number(
    gateway: GatewayProcess, service: Service, his: dict[str, Any]
) -> None:
    assert his["seconds"] >= 10
    job_id = service.submit(conversation(HIM, HER), options=IDENTIFY)
    assert service.ended(job_id).warnings == ()
    him, her = document(service, job_id)["speakers"]
    assert (him["id"], him["name"], him["voice_id"]) == (A, "Minh", his["id"])
    assert 0.6 < him["similarity"] <= 1
    assert (her["id"], her["name"], her["similarity"]) == (B, None, None)
    text = gateway.http.get(f"/api/v1/download/{job_id}?format=txt").text
    assert text.startswith("Minh: ")
    assert f"\n{B}: " in text
    assert identified(service, conversation(HER, HIM)) == [(None, None), ("Minh", his["id"])]


@pytest.mark.usefixtures("his")
def test_without_being_asked_for_nobody_is_identified(service: Service) -> None:
    job_id = service.submit(conversation(HIM, HER), options=Options(diarize=SpeakerCount()))
    assert service.ended(job_id).warnings == ()
    assert [it["name"] for it in document(service, job_id)["speakers"]] == [None, None]


@pytest.mark.usefixtures("his")
def test_who_is_not_alike_enough_is_not_named(service: Service) -> None:
    alone = np.concatenate([speak(said, HER) for said in SAID * 2])
    assert identified(service, alone) == [(None, None)]


def test_a_voice_of_another_tenant_or_a_deleted_one_names_nobody(
    gateway: GatewayProcess, service: Service, his: dict[str, Any]
) -> None:
    named = service.submit(conversation(HIM, HER), options=IDENTIFY)
    assert service.ended(named).status == JobStatus.COMPLETED
    cipher = Cipher(VOICES, [KEY])
    with service.database.transaction() as session:
        row = session.scalars(select(Voice)).one()
    (voice,) = Voices(service.database, TENANT, cipher).known(row.network)
    theirs = NewVoice(
        name="Stranger",
        embedding=voice.embedding,
        sampled_ms=row.sampled_ms,
        network=row.network,
        narrow=row.narrow,
        consent_by="Stranger",
        consent_note=None,
        key_id=None,
        job_id=row.job_id,
        speaker=A,
    )
    Voices(service.database, "another", cipher).enrol(theirs)

    assert gateway.http.delete(f"/api/v1/voices/{his['id']}").status_code == 204

    unnamed = identified(service, conversation(HIM, HER), "nobody_enrolled")
    assert unnamed == [(None, None), (None, None)]
    kept = gateway.http.get(f"/api/v1/jobs/{named}/speakers").json()["speakers"]
    assert (kept[0]["name"], kept[0]["voice_id"]) == ("Minh", his["id"])


def test_where_one_person_is_enrolled_under_two_names_the_job_says_so(
    gateway: GatewayProcess, service: Service, his: dict[str, Any]
) -> None:
    again = {"name": "Mr Minh", "job_id": his["job_id"], "consent": {"by": "Minh"}}
    assert gateway.http.post("/api/v1/voices", json=again).status_code == 201
    found = identified(service, conversation(HIM, HER), "identification_ambiguous")
    assert found == [(None, None), (None, None)]
    renamed = gateway.http.patch(f"/api/v1/voices/{his['id']}", json={"name": "Mr Minh"})
    assert renamed.status_code == 200
    assert [name for name, _ in identified(service, conversation(HIM, HER))] == ["Mr Minh", None]


@pytest.mark.usefixtures("his")
def test_a_name_that_a_person_gave_stays_when_the_speakers_are_found_anew(
    gateway: GatewayProcess, service: Service
) -> None:
    job_id = service.submit(conversation(HIM, HER), options=IDENTIFY)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    path = f"/api/v1/jobs/{job_id}"
    assert gateway.http.patch(f"{path}/speakers", json={A: "Mr Minh"}).status_code == 200
    with service.database.transaction() as session:
        session.execute(
            update(Step)
            .where(Step.job_id == job_id, Step.kind == StepKind.DIARIZE)
            .values(status=StepStatus.FAILED)
        )
    assert gateway.http.post(f"{path}/retry").status_code == 200
    assert service.ended(job_id).status == JobStatus.COMPLETED
    found = gateway.http.get(f"{path}/speakers").json()["speakers"]
    assert [(it["name"], it["voice_id"]) for it in found] == [("Mr Minh", None), (None, None)]


@pytest.mark.usefixtures("his")
def test_embeddings_are_encrypted_and_in_no_result_file_and_no_log(
    gateway: GatewayProcess, service: Service
) -> None:
    job_id = service.submit(conversation(HIM, HER), options=IDENTIFY)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    ((_, result, _),) = diarizations(service, job_id)
    assert result["embeddings"].keys() == {"encrypted"}
    plain = Cipher(VOICES, [KEY]).open(result["embeddings"])
    assert plain is not None
    with service.database.transaction() as session:
        stored = session.scalars(
            select(TranscriptRevision).where(TranscriptRevision.job_id == job_id)
        ).one()
    folder = service.folder / "results" / str(job_id)
    written = [path.read_text() for path in folder.iterdir()]
    written += [json.dumps([stored.segments, stored.diarization, stored.manifest])]
    logs = [(service.folder / "service.log").read_text(), gateway.log_file.read_text()]
    for text in (*written, *logs):
        assert plain[:40] not in text
        assert result["embeddings"]["encrypted"][:40] not in text
    assert not any("embedding" in text for text in written)
    assert not any("Minh" in text for text in logs)


@pytest.mark.usefixtures("his")
def test_where_the_key_of_voices_is_lost_the_text_is_complete_with_a_warning(
    service: Service,
) -> None:
    with service.database.transaction() as session:
        voice = session.scalars(select(Voice)).one()
        voice.embedding = Cipher(VOICES, [LOST]).seal("AAAA")
    job_id = service.submit(conversation(HIM, HER), options=IDENTIFY)
    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == ("COMPLETED", ("identification_failed",))
    assert [it["name"] for it in document(service, job_id)["speakers"]] == [None, None]
    assert "VOICE_KEY lacks the key" in (service.folder / "service.log").read_text()
    assert seal_voices(service.database, Cipher(VOICES, [KEY]))[1] == 1


def test_a_chunk_whose_embeddings_cannot_be_decrypted_is_diarized_again(service: Service) -> None:
    audio = conversation(HER, HIM)[: 16_000 * 9]
    options = Options(diarize=SpeakerCount())
    first = service.submit(audio, options=options)
    assert service.ended(first).status == JobStatus.COMPLETED
    again = service.submit(audio, options=options)
    assert service.ended(again).status == JobStatus.COMPLETED
    assert [elapsed for *_, elapsed in diarizations(service, again)] == [0]
    with service.database.transaction() as session:
        for job_id in (first, again):
            for step_id, result, _ in diarizations(service, job_id):
                locked = {**result, "embeddings": Cipher(VOICES, [LOST]).seal("AAAA")}
                session.execute(update(Step).where(Step.id == step_id).values(result=locked))

    third = service.submit(audio, options=options)

    assert service.ended(third).warnings == ()
    ((_, result, elapsed),) = diarizations(service, third)
    assert elapsed
    assert Cipher(VOICES, [KEY]).open(result["embeddings"]) is not None
    assert [it["id"] for it in document(service, third)["speakers"]] == [A, B]
