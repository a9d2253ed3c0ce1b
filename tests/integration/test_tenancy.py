"""No tenant sees anything of another's: every operation of the OpenAPI document is tried."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import delete

from common.audio.peaks import PeakFinder
from common.db.database import Database
from common.db.keys import Keys
from common.db.streams import COMPLETED, Streams
from common.db.tables import Job, Step, StoredGlossary, Voice, WebhookDelivery, WebhookEndpoint
from common.domain.enhancing.options import EnhancementOptions
from common.domain.enhancing.tasks import Task
from common.domain.job import JobStatus, StepStatus
from common.domain.keys import Scope
from common.domain.pipeline import CHAT_ENGINE, ENHANCEMENT
from common.settings import StorageSettings
from common.storage.opening import open_storage
from tests.support.audio_files import make_wav, tone
from tests.support.factories import (
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    new_final,
    open_stream,
    plan_chunks,
    submit_job,
)
from tests.support.gateway import GatewayProcess

Ids = dict[str, str]
KeyOf = Callable[..., dict[str, str]]
OURS, THEIRS = "ours", "theirs"
OPEN = {"/healthz", "/readyz", "/health", "/metrics", "/status"}
"""What needs no key."""

EVERYBODYS = {"model": "base", "revision": "1"}
"""Parameters of paths that name nothing of any tenant's."""
BODIES = {
    "/api/v1/glossaries/{glossary_id}": {"name": "a list", "entries": []},
    "/api/v1/jobs/{job_id}/rerun": {"start": 0, "end": 1},
    "/api/v1/jobs/{job_id}/transcript": {
        "edits": [{"op": "insert", "start": 0, "end": 1, "text": "a"}]
    },
    "/api/v1/enhanced-ai/{enhanced_job_id}/apply": {"edits": "all"},
}
"""Bodies of operations that do not accept an empty one, by path."""
HEADERS = {"/api/v1/jobs/{job_id}/transcript": {"If-Match": "*"}}
"""Headers that operations need, by path."""
FILTERS = {"job_id", "session_id", "endpoint_id", "delivery_id", "key_id"}
"""Parameters of queries that name something of a tenant's."""


@dataclass(frozen=True)
class Operation:
    """One of the OpenAPI document."""

    method: str
    path: str
    description: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def ask(
        self, gateway: GatewayProcess, ids: Mapping[str, str], headers: Mapping[str, str]
    ) -> httpx.Response:
        """Call it, with a body if it takes one."""
        more: dict[str, Any] = {}
        kinds = self.description.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in kinds:
            more["files"] = {"file": ("a.wav", make_wav(tone(0.1).tobytes()))}
        elif kinds:
            more["json"] = BODIES.get(self.path, {})
        path = self.path.format_map({**EVERYBODYS, **ids})
        needed = HEADERS.get(self.path, {})
        return gateway.http.request(self.method, path, headers={**headers, **needed}, **more)

    @property
    def parameters(self) -> set[str]:
        """Those in its path."""
        return self._named("path")

    @property
    def filters(self) -> set[str]:
        """Those in its query by which something is named."""
        return self._named("query") & FILTERS

    def _named(self, place: str) -> set[str]:
        parameters = self.description.get("parameters", ())
        return {each["name"] for each in parameters if each["in"] == place}


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    none = {f"LIMIT_REQUESTS_PER_{each}": "0" for each in ("SECOND", "MINUTE")}
    return {"GATEWAY_API_KEY": "the-operators-own-key-0123456789", **none}


@pytest.fixture(scope="module")
def operations(gateway: GatewayProcess) -> list[Operation]:
    paths = gateway.http.get("/openapi.json").json()["paths"]
    return [
        Operation(method, path, description)
        for path, methods in paths.items()
        for method, description in methods.items()
    ]


@pytest.fixture
def key_of(gateway_database: Database) -> KeyOf:
    def headers(tenant: str, *scopes: Scope) -> dict[str, str]:
        wanted = scopes or (Scope.READ, Scope.TRANSCRIBE)
        _, text = Keys(gateway_database, tenant).create("a test's", wanted)
        return {"Authorization": f"Bearer {text.reveal()}"}

    return headers


@pytest.fixture
def make_ours(gateway: GatewayProcess, gateway_database: Database) -> Callable[[], Ids]:
    """Makes one of everything, by the name that paths have for it."""

    def make() -> Ids:
        with gateway_database.transaction() as session:  # what earlier operations have left to do
            session.execute(delete(Step).where(Step.status == StepStatus.PENDING))
        steps = make_steps(gateway_database)
        job_id = submit_job(gateway_database, tenant=OURS)
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))
        finish_merge(steps, claim_next(steps))
        storage = open_storage(StorageSettings(data_dir=gateway.folder))
        storage.begin("peaks", job_id)
        storage.write_peaks(job_id, PeakFinder().finish())
        session_id = open_stream(gateway_database, tenant=OURS)
        streams = Streams(gateway_database, OURS)
        streams.add(session_id, [new_final(1)])
        streams.close(session_id, audio_ms=2_000, outcome=COMPLETED)
        key, _ = Keys(gateway_database, OURS).create("ours", [Scope.READ])
        url = "https://receiver.example.org/"
        secrets = [{"secret": f"whsec_{b64encode(bytes(24)).decode()}", "until": None}]
        endpoint = WebhookEndpoint(tenant=OURS, url=url, events=[], secrets=secrets)
        with gateway_database.transaction() as session:
            voice = Voice(
                tenant=OURS,
                name="ours",
                embedding="",
                sampled_ms=10_000,
                network="campplus-zh-en",
                narrow=False,
                consent_by="ours",
                job_id=job_id,
                speaker="SPEAKER_00",
            )
            glossary = StoredGlossary(
                tenant=OURS, name=f"ours {job_id}", entries=[], rewrite=False, is_default=False
            )
            wanted = EnhancementOptions(Task.PUNCTUATE, "m", 8192, 4096)
            enhancement = Job(
                id=uuid4(),
                tenant=OURS,
                source_id=job_id,
                kind=ENHANCEMENT.kind,
                status=JobStatus.COMPLETED,
                engine=CHAT_ENGINE,
                model="m",
                language="en",
                options={ENHANCEMENT.kind: wanted.to_json()},
            )
            session.add_all([endpoint, voice, glossary, enhancement])
            session.flush()
            delivery = WebhookDelivery(
                tenant=OURS,
                endpoint_id=endpoint.id,
                job_id=job_id,
                event="transcription.completed",
                url=url,
                payload="{}",
                status="failed",
            )
            session.add(delivery)
            session.flush()
            return {
                "job_id": str(job_id),
                "session_id": str(session_id),
                "key_id": key.id,
                "endpoint_id": str(endpoint.id),
                "delivery_id": str(delivery.id),
                "voice_id": str(voice.id),
                "glossary_id": str(glossary.id),
                "enhanced_job_id": str(enhancement.id),
            }

    return make


@pytest.fixture
def ids(make_ours: Callable[[], Ids]) -> Ids:
    """Of one of everything of ours."""
    return make_ours()


@pytest.fixture
def named(operations: list[Operation]) -> list[Operation]:
    """The operations on something that somebody has."""
    return [each for each in operations if each.parameters - EVERYBODYS.keys()]


def statuses(
    gateway: GatewayProcess, operations: list[Operation], ids: Ids, headers: dict[str, str]
) -> dict[str, int]:
    return {str(each): each.ask(gateway, ids, headers).status_code for each in operations}


def test_every_parameter_of_a_path_is_known_here(named: list[Operation], ids: Ids) -> None:
    known = ids.keys() | EVERYBODYS
    unknown = {str(each): names for each in named if (names := each.parameters - known)}
    assert unknown == {}, "make_ours has to make such things too"
    assert len(named) > 10


def test_without_a_key_only_open_operations_are_answered(
    gateway: GatewayProcess, operations: list[Operation], ids: Ids
) -> None:
    for headers in ({}, {"X-Tenant-Id": OURS}, {"Authorization": "Bearer wrong"}):
        found = statuses(gateway, operations, ids, headers)
        answered = {name.partition(" ")[2] for name, status in found.items() if status != 401}
        assert answered <= OPEN


def test_another_tenants_things_are_not_found(
    gateway: GatewayProcess, named: list[Operation], ids: Ids, key_of: KeyOf
) -> None:
    by_admin = statuses(gateway, named, ids, key_of(THEIRS, Scope.ADMIN))
    assert set(by_admin.values()) == {404}, by_admin
    by_member = statuses(gateway, named, ids, key_of(THEIRS))
    assert set(by_member.values()) <= {403, 404}, by_member


def test_a_tenants_own_things_are_found(
    gateway: GatewayProcess,
    named: list[Operation],
    ids: Ids,
    make_ours: Callable[[], Ids],
    key_of: KeyOf,
) -> None:
    """Or else the others would not be found for the wrong reason."""
    admin = key_of(OURS, Scope.ADMIN)
    for each in named:
        found = ids if each.method == "get" else make_ours()  # others may delete or change it
        status = each.ask(gateway, found, admin).status_code
        assert status not in {401, 403, 404, 422}, each
        assert status < 500, each


def test_naming_another_tenant_is_forbidden(
    gateway: GatewayProcess, operations: list[Operation], ids: Ids, key_of: KeyOf
) -> None:
    disguised = {**key_of(THEIRS), "X-Tenant-Id": OURS}
    closed = [each for each in operations if each.path not in OPEN]
    found = statuses(gateway, closed, ids, disguised)
    assert set(found.values()) == {403}, found


def test_lists_and_filters_contain_nothing_of_another_tenant(
    gateway: GatewayProcess, operations: list[Operation], ids: Ids, key_of: KeyOf
) -> None:
    theirs = key_of(THEIRS, Scope.ADMIN)
    lists = [each for each in operations if each.method == "get" and not each.parameters]
    assert {"/api/v1/keys", "/api/v1/usage"} <= {each.path for each in lists}
    for each in lists:
        for params in [{}, *({name: ids[name]} for name in each.filters)]:
            answer = gateway.http.get(each.path, params=params, headers=theirs).text
            for name, value in params.items():
                answer = answer.replace(f"{name} {value}", "")
            assert not [name for name, value in ids.items() if value in answer], (each, params)


def test_head_is_answered_as_get_without_the_body(
    gateway: GatewayProcess, operations: list[Operation], ids: Ids, key_of: KeyOf
) -> None:
    admin = key_of(OURS, Scope.ADMIN)
    readable = [each for each in operations if each.method == "get"]
    assert len(readable) > 20
    for each in readable:
        whole, head = (
            Operation(method, each.path, each.description).ask(gateway, ids, admin)
            for method in ("get", "head")
        )
        assert head.status_code == whole.status_code, each
        assert head.content == b"", each
        assert head.headers.keys() == whole.headers.keys(), each
        assert head.headers.get("content-type") == whole.headers.get("content-type"), each
