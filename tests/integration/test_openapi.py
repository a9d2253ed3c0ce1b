"""The OpenAPI document is true: whatever is sent, the answer is one that it names."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from common.db.database import Database
from common.db.streams import COMPLETED, Streams
from common.db.tables import StoredGlossary, Voice
from common.settings import Settings
from tests.support.factories import (
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    moderated_final,
    new_final,
    open_stream,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess

DOCUMENT = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = {each.ok().label: each.ok() for each in DOCUMENT.get_all_operations()}  # type: ignore[union-attr]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def made(gateway: GatewayProcess, gateway_database: Database) -> dict[str, list[str]]:
    """Ids of what exists, by the name of their parameter; the first jobs have ended. There are many
    of each, as some operations delete them."""
    steps = make_steps(gateway_database)
    jobs = []
    for _ in range(10):
        jobs.append(submit_job(gateway_database))
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))
        finish_merge(steps, claim_next(steps), segments=[stored_segment(0, 10_000, " chunk 0")])
    jobs += [submit_job(gateway_database) for _ in range(20)]
    streams = Streams(gateway_database, TENANT)
    sessions = [open_stream(gateway_database, moderation=True) for _ in range(20)]
    for number, session_id in enumerate(sessions):
        streams.add(session_id, [new_final(1), moderated_final(2)])
        if number % 2:
            streams.close(session_id, audio_ms=3_000, outcome=COMPLETED)
    endpoints, deliveries = [], []
    for number in range(20):
        url = f"https://receiver.example/{number}"
        endpoint = gateway.http.post("/api/v1/webhooks", json={"url": url}).json()["id"]
        delivery = gateway.http.post(f"/api/v1/webhooks/{endpoint}/test").json()["id"]
        endpoints.append(endpoint)
        deliveries.append(delivery)
    voices = [
        Voice(
            tenant=TENANT,
            name="somebody",
            embedding="",
            sampled_ms=10_000,
            network="campplus-zh-en",
            narrow=False,
            consent_by="somebody",
            job_id=jobs[0],
            speaker="SPEAKER_00",
        )
        for _ in range(20)
    ]
    glossaries = [
        StoredGlossary(
            tenant=TENANT,
            name=f"names {number}",
            entries=[{"word": "Lan", "instead_of": ["lam"]}],
            rewrite=True,
            is_default=False,
        )
        for number in range(20)
    ]
    with gateway_database.transaction() as session:
        session.add_all([*voices, *glossaries])
    return {
        "glossary_id": [str(glossary.id) for glossary in glossaries],
        "voice_id": [str(voice.id) for voice in voices],
        "job_id": [str(job_id) for job_id in jobs],
        "session_id": [str(session_id) for session_id in sessions],
        "endpoint_id": endpoints,
        "delivery_id": deliveries,
    }


def cases() -> Iterator[tuple[str, GenerationMode]]:
    for label, operation in OPERATIONS.items():
        yield label, GenerationMode.POSITIVE
        # schemathesis cannot make wrong forms that have a file (ValueError, unsupported: Binary);
        # test_api_uploads has many.
        if not any(body.media_type == "multipart/form-data" for body in operation.body):
            yield label, GenerationMode.NEGATIVE


@pytest.mark.parametrize(("label", "mode"), list(cases()))
def test_every_answer_is_documented(
    gateway: GatewayProcess, made: dict[str, list[str]], label: str, mode: GenerationMode
) -> None:
    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(OPERATIONS[label].as_strategy(generation_mode=mode), st.randoms(use_true_random=False))
    def holds(case: Case[Any], random: Random) -> None:
        # Watching a job that never ends would never end.
        watched = case.path.endswith("/events")
        for name in made.keys() & case.path_parameters.keys():
            if watched or random.random() < 0.7:
                ids = made[name][:10] if watched else made[name]
                case.path_parameters[name] = random.choice(ids)
        if "wait" in case.query:  # as long as it is, it waits
            case.query["wait"] = random.choice([0, 0.01, -1, 61, "long"])
        if case.path in {
            "/asr",
            "/detect-language",
        }:  # any bytes may be bare samples, and nobody transcribes them here
            case.query.pop("encode", None)
        try:
            case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=60)
        except requests.exceptions.InvalidHeader:
            reject()  # nothing that a client could send

    try:
        holds()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing about it to get wrong
