"""Nobody sees anything of another tenant's: every operation of the API's description is tried."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from common.db.database import Database
from common.db.keys import Keys
from common.db.streams import COMPLETED, Streams
from common.db.tables import WebhookDelivery, WebhookEndpoint
from common.domain.keys import Scope
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

OURS, THEIRS = "ours", "theirs"
OPEN = {"/healthz", "/readyz", "/health", "/metrics", "/status"}
"""What may be asked without a key."""

EVERYBODYS = {"model": "base"}
"""Parameters of paths that name nothing of any tenant's."""
BODIES: dict[str, Any] = {}
"""What operations with a path parameter take, by their path, where an empty object will not do."""


@dataclass(frozen=True)
class Operation:
    """One of the API's description."""

    method: str
    path: str
    description: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def ask(
        self, gateway: GatewayProcess, ids: Mapping[str, str], headers: Mapping[str, str]
    ) -> httpx.Response:
        """Ask it with a body that it takes, if it is to take one."""
        more: dict[str, Any] = {}
        kinds = self.description.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in kinds:
            more["files"] = {"file": ("a.wav", make_wav(tone(0.1).tobytes()))}
        elif kinds:
            more["json"] = BODIES.get(self.path, {})
        path = self.path.format_map({**EVERYBODYS, **ids})
        return gateway.http.request(self.method, path, headers=dict(headers), **more)

    @property
    def parameters(self) -> set[str]:
        """Those in its path."""
        told = self.description.get("parameters", ())
        return {each["name"] for each in told if each["in"] == "path"}

    @property
    def filters(self) -> set[str]:
        """Those in its query by which something is named."""
        told = self.description.get("parameters", ())
        return {each["name"] for each in told if each["in"] == "query"} & {
            "job_id",
            "session_id",
            "endpoint_id",
            "delivery_id",
            "key_id",
        }


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
def key_of(gateway_database: Database) -> Callable[..., dict[str, str]]:
    def headers(tenant: str, *scopes: Scope) -> dict[str, str]:
        wanted = scopes or (Scope.READ, Scope.TRANSCRIBE)
        _, text = Keys(gateway_database, tenant).create("a test's", wanted)
        return {"Authorization": f"Bearer {text.reveal()}"}

    return headers


@pytest.fixture
def make_ours(gateway_database: Database) -> Callable[[], dict[str, str]]:
    """Makes one of everything, by the name that paths have for it."""

    def make() -> dict[str, str]:
        steps = make_steps(gateway_database)
        job_id = submit_job(gateway_database, tenant=OURS)
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))
        finish_merge(steps, claim_next(steps))
        session_id = open_stream(gateway_database, tenant=OURS)
        streams = Streams(gateway_database, OURS)
        streams.add(session_id, [new_final(1)])
        streams.close(session_id, audio_ms=2_000, outcome=COMPLETED)
        key, _ = Keys(gateway_database, OURS).create("ours", [Scope.READ])
        url = "https://receiver.example.org/"
        secrets = [{"secret": f"whsec_{b64encode(bytes(24)).decode()}", "until": None}]
        endpoint = WebhookEndpoint(tenant=OURS, url=url, events=[], secrets=secrets)
        with gateway_database.transaction() as session:
            session.add(endpoint)
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
            }

    return make


@pytest.fixture
def named(operations: list[Operation]) -> list[Operation]:
    """The operations on something that somebody has."""
    return [each for each in operations if each.parameters - EVERYBODYS.keys()]


def test_every_parameter_of_a_path_is_known_here(
    named: list[Operation], make_ours: Callable[[], dict[str, str]]
) -> None:
    known = make_ours().keys()
    unknown = {str(each): each.parameters - known for each in named if each.parameters - known}
    assert unknown == {}, "make_ours has to make such things too"
    assert len(named) > 10


def test_without_a_key_nothing_but_the_open_is_answered(
    gateway: GatewayProcess,
    operations: list[Operation],
    make_ours: Callable[[], dict[str, str]],
) -> None:
    ids = make_ours()
    for headers in ({}, {"X-Tenant-Id": OURS}, {"Authorization": "Bearer wrong"}):
        answered = {
            str(each): status
            for each in operations
            if (status := each.ask(gateway, ids, headers).status_code) != 401
        }
        assert {name.partition(" ")[2] for name in answered} <= OPEN, answered


def test_what_is_anothers_is_not_found(
    gateway: GatewayProcess,
    named: list[Operation],
    make_ours: Callable[[], dict[str, str]],
    key_of: Callable[..., dict[str, str]],
) -> None:
    ids = make_ours()
    member, admin = key_of(THEIRS), key_of(THEIRS, Scope.ADMIN)
    assert {
        str(each): status
        for each in named
        if (status := each.ask(gateway, ids, admin).status_code) != 404
    } == {}
    assert {
        str(each): status
        for each in named
        if (status := each.ask(gateway, ids, member).status_code) not in {403, 404}
    } == {}


def test_what_is_ones_own_is_found(
    gateway: GatewayProcess,
    named: list[Operation],
    make_ours: Callable[[], dict[str, str]],
    key_of: Callable[..., dict[str, str]],
) -> None:
    """Or else the others would not be found for the wrong reason."""
    admin = key_of(OURS, Scope.ADMIN)
    refused = {}
    for each in named:
        status = each.ask(gateway, make_ours(), admin).status_code
        if status in {401, 403, 404, 422} or status >= 500:
            refused[str(each)] = status
    assert refused == {}


def test_naming_anothers_tenant_does_not_help(
    gateway: GatewayProcess,
    operations: list[Operation],
    make_ours: Callable[[], dict[str, str]],
    key_of: Callable[..., dict[str, str]],
) -> None:
    ids = make_ours()
    disguised = {**key_of(THEIRS), "X-Tenant-Id": OURS}
    assert {
        str(each): status
        for each in operations
        if each.path not in OPEN
        and (status := each.ask(gateway, ids, disguised).status_code) != 403
    } == {}


def test_lists_and_filters_tell_nothing_of_anothers(
    gateway: GatewayProcess,
    operations: list[Operation],
    make_ours: Callable[[], dict[str, str]],
    key_of: Callable[..., dict[str, str]],
) -> None:
    ids = make_ours()
    theirs = key_of(THEIRS, Scope.ADMIN)
    lists = [each for each in operations if each.method == "get" and not each.parameters]
    assert {"/api/v1/keys", "/api/v1/usage"} <= {each.path for each in lists}
    for each in lists:
        asked = [{}, *({name: ids[name]} for name in each.filters)]
        for params in asked:
            answer = gateway.http.get(each.path, params=params, headers=theirs)
            told = answer.text
            for name, value in params.items():
                told = told.replace(f"{name} {value}", "")
            assert not [name for name, value in ids.items() if value in told], (each, params)


def test_head_is_answered_as_get_without_the_body(
    gateway: GatewayProcess,
    operations: list[Operation],
    make_ours: Callable[[], dict[str, str]],
    key_of: Callable[..., dict[str, str]],
) -> None:
    ids, admin = make_ours(), key_of(OURS, Scope.ADMIN)
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
