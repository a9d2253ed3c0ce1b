"""Tenants' own servers of language models: set, asked, kept apart, and their keys kept secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select, text

from common.db.chat_servers import ChatServers, NewChatServer, key_of
from common.db.database import Database
from common.db.flow import NewPart
from common.db.jobs import Jobs
from common.db.steps import Steps
from common.db.tables import Base, Job, Step, StoredChatServer
from common.db.vault import CHAT_KEYS, Cipher
from common.domain.enhancing.options import EnhancementOptions
from common.domain.enhancing.tasks import Task
from common.domain.pipeline import CHAT_ENGINE, ENHANCEMENT, StepKind
from common.errors import ChatKeyLocked
from scripts.bench.scripted_chat import ChatScript, Scripted, SeenChat, answer, error
from scripts.cli.cli import steno
from tests.support.api import Api
from tests.support.factories import make_steps, new_job
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.obedient_chat import obedient
from tests.support.service import Service, Start, wait_until
from tests.support.transcripts import completed_job

KEY = "sk-tenants-own-0123456789"
OTHER_KEY = "sk-rotated-9876543210"
SECRETS_KEY = "s" * 32
TEXTS = ["Lan calls Minh.", "Minh says yes."]
ACME = {"X-Tenant-Id": "acme"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}


class Chat(ChatScript):
    def reset(self, respond: Callable[[SeenChat], Scripted] = obedient) -> None:
        self.respond, self.seen = respond, []


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Chat, Chat]]:
    with Chat(obedient) as one, Chat(obedient) as other:
        yield one, other


@pytest.fixture
def own(servers: tuple[Chat, Chat]) -> Chat:
    servers[0].reset()
    return servers[0]


@pytest.fixture
def other(servers: tuple[Chat, Chat]) -> Chat:
    servers[1].reset()
    return servers[1]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    """Without a server of the operator's."""
    return {"SECRETS_KEY": SECRETS_KEY, "EGRESS_ALLOW": "127.0.0.1", "MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def workers(gateway: GatewayProcess, gateway_settings: dict[str, str]) -> Iterator[Service]:
    url, redis_url, folder = gateway.database_url, gateway.redis_url, gateway.folder
    with Service(url, redis_url, folder, **gateway_settings) as service:
        yield service.serve()


@pytest.fixture(autouse=True)
def no_servers(module_database_url: str) -> None:
    with Database(module_database_url) as database, database.transaction() as session:
        session.execute(text("TRUNCATE chat_servers"))


@pytest.fixture
def job_id(api: Api) -> UUID:
    return completed_job(api.database, TEXTS, tenant="acme")


def put(api: Api, status: int = 200, **wanted: Any) -> Any:
    body = {"model": "own"} | wanted
    return api.ask("PUT", "enhanced-ai/server", status, json=body, headers=ACME).json()


def enhance(api: Api, job_id: UUID, status: int = 202, tenant: str = "acme") -> Any:
    body = {"job_id": str(job_id), "task": "summary"}
    headers = {"X-Tenant-Id": tenant}
    return api.ask("POST", "enhanced-ai", status, json=body, headers=headers).json()


def ended(api: Api, made: Any) -> Any:
    path = f"enhanced-ai/{made['enhanced_job_id']}"

    def look() -> Any:
        found = api.ask("GET", path, headers=ACME).json()
        return found if found["status"] in ENDED else None

    return wait_until(look, "the end")


def retried(api: Api, made: Any) -> Any:
    api.ask("POST", f"enhanced-ai/{made['enhanced_job_id']}/retry", headers=ACME)
    return ended(api, made)


def cipher(key: str = SECRETS_KEY) -> Cipher:
    return Cipher(CHAT_KEYS, [key])


@pytest.mark.usefixtures("workers")
def test_a_tenant_with_a_server_of_its_own_needs_none_of_the_settings(
    api: Api, own: Chat, job_id: UUID
) -> None:
    assert "ENHANCED_AI_BASE_URL" in enhance(api, job_id, 422)["detail"]
    api.ask("GET", "enhanced-ai/server", 404, headers=ACME)
    stored = put(api, base_url=f"{own.base_url}/", api_key=KEY, context_tokens=4096)
    assert stored.pop("updated_at")
    assert stored == {
        "base_url": own.base_url,
        "model": "own",
        "has_key": True,
        "context_tokens": 4096,
        "max_output_tokens": None,
    }
    found = ended(api, enhance(api, job_id))
    assert (found["status"], found["model"]) == ("COMPLETED", "m-1")
    (seen,) = own.seen
    assert (seen.headers["authorization"], seen.body["model"]) == (f"Bearer {KEY}", "own")
    with api.database.transaction() as session:
        options = session.get_one(Job, UUID(found["enhanced_job_id"])).options[ENHANCEMENT.kind]
    assert (options["context_tokens"], options["server"]) == (4096, own.base_url)

    others = completed_job(api.database, TEXTS)
    assert "ENHANCED_AI_BASE_URL" in enhance(api, others, 422, "default")["detail"]
    body = {"enhance": "summary"}
    assert api.ask("POST", "jobs", 422, json=body).json()["code"] == "enhancement_off"
    made = api.ask("POST", "jobs", 201, json=body, headers=ACME).json()["job_id"]
    with api.database.transaction() as session:
        (wanted,) = session.get_one(Job, UUID(made)).options["enhance"]
    assert (wanted["model"], wanted["server"]) == ("own", own.base_url)

    api.ask("DELETE", "enhanced-ai/server", 204, headers=ACME)
    api.ask("DELETE", "enhanced-ai/server", 404, headers=ACME)
    assert "ENHANCED_AI_BASE_URL" in enhance(api, job_id, 422)["detail"]


def test_the_key_is_nowhere_in_the_clear(
    api: Api, workers: Service, own: Chat, job_id: UUID
) -> None:
    own.reset(lambda _: error(401, f"Incorrect API key provided: {KEY}"))
    answers = [put(api, base_url=own.base_url, api_key=KEY)]
    answers.append(api.ask("GET", "enhanced-ai/server", headers=ACME).json())
    answers.append(ended(api, enhance(api, job_id)))
    assert answers[-1]["status"] == "FAILED"
    assert "check the key (api_key of the tenant's server)" in answers[-1]["error_message"]
    answers.append(put(api, 422, base_url=own.base_url, api_key=f"{KEY} with spaces"))
    answers.append(put(api, 422, base_url=own.base_url, api_key=KEY * 100))
    answers.append(put(api, 422, base_url=own.base_url, api_key={"key": KEY}))
    answers.append(put(api, 422, base_url=own.base_url, api_key=[KEY]))
    answers.append(put(api, 422, base_url=own.base_url, api_key=KEY, model=""))
    answers.append(put(api, 422, base_url=own.base_url, api_key=KEY, more=1))
    assert all("api_key" in it["detail"] for it in answers[3:7])
    assert KEY not in json.dumps(answers)
    assert KEY not in workers.log()
    assert KEY not in api.gateway.log_file.read_text()
    with api.database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            assert KEY not in str(session.execute(select(table)).all()), table.name


@pytest.mark.usefixtures("workers")
def test_a_retry_asks_the_same_server_with_its_newest_key(
    api: Api, own: Chat, job_id: UUID
) -> None:
    own.reset(lambda seen: obedient(seen) if OTHER_KEY in str(seen.headers) else error(401, "no"))
    put(api, base_url=own.base_url, api_key=KEY)
    made = enhance(api, job_id)
    assert ended(api, made)["status"] == "FAILED"
    put(api, base_url=own.base_url, api_key=OTHER_KEY, model="newer", context_tokens=100_000)
    assert retried(api, made)["status"] == "COMPLETED"
    assert [it.body["model"] for it in own.seen] == ["own", "own"]


@pytest.mark.usefixtures("workers")
def test_a_retry_sends_the_text_to_no_other_server(
    api: Api, own: Chat, other: Chat, job_id: UUID
) -> None:
    own.reset(lambda _: error(400, "no"))
    put(api, base_url=own.base_url)
    made = enhance(api, job_id)
    assert ended(api, made)["status"] == "FAILED"
    put(api, base_url=other.base_url)
    found = retried(api, made)
    assert found["status"] == "FAILED"
    assert "no longer the tenant's server" in found["error_message"]
    assert own.base_url in found["error_message"]
    api.ask("DELETE", "enhanced-ai/server", 204, headers=ACME)
    assert "no longer the tenant's server" in retried(api, made)["error_message"]
    assert len(own.seen) == 1
    assert other.seen == []


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({}, "base_url"),
        ({"base_url": "no URL"}, "base_url"),
        ({"base_url": "ftp://models.example.org"}, "base_url"),
        ({"base_url": "https://key@models.example.org/v1"}, "base_url"),
        ({"base_url": "https://models.example.org/v1?api-key=1"}, "base_url"),
        ({"base_url": "https://models.example.org/v1#1"}, "base_url"),
        ({"base_url": "http://169.254.169.254/v1"}, "base_url"),
        ({"base_url": "http://10.0.0.1/v1"}, "base_url"),
        ({"base_url": f"https://models.example.org/{'v' * 2_000}"}, "base_url"),
        ({"model": " "}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two words"}, "api_key"),
        ({"api_key": 5}, "api_key"),
        ({"context_tokens": 100}, "context_tokens"),
        ({"context_tokens": 10**9}, "context_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"concurrency": 3}, "concurrency"),
    ],
)
def test_a_server_that_cannot_be_is_named_by_its_field(
    api: Api, wanted: dict[str, Any], field: str
) -> None:
    there = {"base_url": "https://93.184.216.34/v1"} if wanted and "base_url" not in wanted else {}
    assert field in put(api, 422, **there, **wanted)["detail"]
    assert api.count(StoredChatServer) == 0


def test_only_administrators_set_it(alone: StartGateway, database_url: str) -> None:
    gateway = alone(GATEWAY_API_KEY="an-admin-key-0123456789")
    admin = {"X-API-Key": "an-admin-key-0123456789"}
    made = gateway.http.post("/api/v1/keys", json={"name": "mine"}, headers=admin).json()
    for method in ("GET", "PUT", "DELETE"):
        body = {"base_url": "https://93.184.216.34/v1", "model": "m"}
        answer = gateway.http.request(
            method, "/api/v1/enhanced-ai/server", json=body, headers={"X-API-Key": made["key"]}
        )
        assert answer.status_code == 403, method
    with Database(database_url) as database, database.transaction() as session:
        assert session.scalars(select(StoredChatServer)).all() == []


def test_a_lost_secrets_key_is_named(
    alone: StartGateway, start: Start, database: Database, own: Chat
) -> None:
    new = NewChatServer(own.base_url, "m", KEY)
    ChatServers(database, "default", cipher()).put(new)
    job_id = completed_job(database, TEXTS)
    body = {"job_id": str(job_id), "task": "summary"}
    settings = {"EGRESS_ALLOW": "127.0.0.1", "MAX_RETRIES": "0"}
    for lost, named in (({}, "is not set"), ({"SECRETS_KEY": "t" * 32}, "lacks the key")):
        answer = alone(**settings, **lost).http.post("/api/v1/enhanced-ai", json=body)
        assert answer.status_code == 503
        assert f"SECRETS_KEY {named}" in answer.json()["detail"]
    gateway = alone(**settings, SECRETS_KEY=SECRETS_KEY)
    made = gateway.http.post("/api/v1/enhanced-ai", json=body).json()["enhanced_job_id"]
    service = start(**settings, SECRETS_KEY="t" * 32).serve()
    service.notify()
    job = service.ended(UUID(made))
    assert (job.error_code, own.seen) == ("chat_key_locked", [])
    assert "SECRETS_KEY lacks the key" in (job.error_message or "")


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SECRETS_KEY", SECRETS_KEY)
    monkeypatch.setenv("EGRESS_ALLOW", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, given: str | None = None) -> Result:
        return CliRunner().invoke(steno, arguments, input=given)

    return run


def test_the_command_line_sets_shows_and_removes_it(
    cli: Callable[..., Result], database: Database, tmp_path: Path
) -> None:
    servers = ChatServers(database, "acme", cipher())
    there = ("--base-url", "http://127.0.0.1:8080/v1", "--model", "own")
    done = cli("tenants", "set-model", "acme", *there, "--key-file", "-", given=f"{KEY}\n")
    assert done.exit_code == 0, done.output
    stored = servers.find()
    assert stored is not None
    assert cipher().open(stored.api_key or "") == KEY
    assert (stored.base_url, stored.model) == (there[1], "own")
    listed = cli("tenants", "list").stdout
    assert "own at http://127.0.0.1:8080/v1" in listed
    assert KEY not in done.output + listed

    file = tmp_path / "key"
    file.write_text(OTHER_KEY)
    done = cli("tenants", "set-model", "acme", *there, "--key-file", str(file))
    assert done.exit_code == 0
    stored = servers.find()
    assert stored is not None
    assert cipher().open(stored.api_key or "") == OTHER_KEY
    for wrong, named in (
        (("--base-url", "http://10.0.0.1/v1", "--model", "own"), "base_url"),
        ((*there, "--context-tokens", "1"), "context_tokens"),
        ((*there, "--key-file", str(Path(__file__))), "api_key"),
    ):
        done = cli("tenants", "set-model", "acme", *wrong)
        assert (done.exit_code, named in done.stderr) == (1, True), done.output
    assert cli("tenants", "remove-model", "acme").exit_code == 0
    assert servers.find() is None
    assert cli("tenants", "remove-model", "acme").exit_code == 1


def test_another_secrets_key_takes_over(
    cli: Callable[..., Result], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = ChatServers(database, "acme", Cipher(CHAT_KEYS))
    servers.put(NewChatServer("http://127.0.0.1:8080/v1", "own", KEY))
    ChatServers(database, "free", cipher()).put(NewChatServer("http://127.0.0.1:8080/v1", "own"))
    done = cli("keys", "encrypt-secrets")
    assert (done.exit_code, "1 keys of language models" in done.output) == (0, True), done.output
    stored = servers.find()
    assert stored is not None
    assert KEY not in str(stored.api_key)
    monkeypatch.setenv("SECRETS_KEY", f"{'n' * 32},{SECRETS_KEY}")
    assert cli("keys", "encrypt-secrets").exit_code == 0
    stored = servers.find()
    assert stored is not None
    assert cipher("n" * 32).open(stored.api_key or "") == KEY
    monkeypatch.setenv("SECRETS_KEY", "x" * 32)
    done = cli("keys", "encrypt-secrets")
    assert (done.exit_code, "1 could not be decrypted" in done.output) == (1, True)


def test_the_doctor_opens_every_key_and_asks_only_the_tenants_that_it_is_told(
    cli: Callable[..., Result], database: Database, own: Chat, other: Chat
) -> None:
    for tenant, server in (("acme", own), ("bolt", other)):
        new = NewChatServer(server.base_url, "own", KEY)
        ChatServers(database, tenant, cipher()).put(new)
    assert "ok  tenants     2 with a language model of their own" in cli("doctor").output
    assert own.seen == other.seen == []
    own.reset(lambda _: answer("Yes."))
    assert "acme: m-1 answers" in cli("doctor", "--tenant", "acme").output
    assert (len(own.seen), other.seen) == (1, [])
    assert "-> run: steno tenants set-model none" in cli("doctor", "--tenant", "none").output
    own.reset(lambda _: error(401, f"wrong key {KEY}"))
    told = cli("doctor", "--tenant", "acme").output
    assert "api_key of the tenant's server" in told
    assert KEY not in told
    ChatServers(database, "bolt", cipher("x" * 32)).put(NewChatServer(own.base_url, "own", KEY))
    assert "of which 1 have a key that cannot be decrypted" in cli("doctor").output


# --- how many are asked at once -------------------------------------------------------------------


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def asking(database: Database, steps: Steps, servers: Mapping[str, str | None]) -> list[UUID]:
    """A divided enhancement of each tenant, for this server; five requests of each wait."""
    jobs = []
    for tenant, server in servers.items():
        source = completed_job(database, TEXTS, tenant=tenant)
        options = EnhancementOptions(Task.CHAPTERS, "m", 8192, 4096, server=server)
        job = new_job(
            id=uuid4(),
            kind=ENHANCEMENT.kind,
            source_id=source,
            engine=CHAT_ENGINE,
            model="m",
            own_options={ENHANCEMENT.kind: options.to_json()},
        )
        jobs.append(Jobs(database, tenant).create_from_source(job).job_id)
    for step_id in handed_out(steps, len(jobs)):
        claim = steps.claim(step_id, "worker")
        assert claim is not None
        parts = [NewPart(at, 1_000, [0, at, 5, at, at], f"{step_id}-{at}") for at in range(5)]
        steps.finish(claim, parts=parts)
    return jobs


def handed_out(
    steps: Steps, limit: int, *, limited: int | None = None, each: int = 1000
) -> list[UUID]:
    found: list[UUID] = []
    steps.publish(
        limit,
        lambda rows: found.extend(row.step_id for row in rows),
        limited=limited,
        at_once={StepKind.ASK: each},
    )
    return found


def jobs_of(database: Database, step_ids: list[UUID]) -> list[UUID]:
    with database.transaction() as session:
        return [session.get_one(Step, it).job_id for it in step_ids]


def test_each_server_is_asked_so_many_at_once(database: Database, steps: Steps) -> None:
    own = {"acme": "https://acme.example/v1", "bolt": "https://bolt.example/v1"}
    acme, bolt, *shared = asking(database, steps, own | {"one": None, "two": None})
    found = jobs_of(database, handed_out(steps, 50, each=2))
    assert (found.count(acme), found.count(bolt)) == (2, 2)
    assert sum(map(found.count, shared)) == 2
    assert handed_out(steps, 50, each=2) == []
    assert len(handed_out(steps, 50, each=3)) == 3


def test_tenants_servers_do_not_hold_all_workers(database: Database, steps: Steps) -> None:
    theirs = {name: f"https://{name}.example/v1" for name in ("acme", "bolt", "cord")}
    *own, shared = asking(database, steps, theirs | {"one": None})
    found = jobs_of(database, handed_out(steps, 8, limited=2, each=3))
    assert sum(map(found.count, own)) == 2
    assert found.count(shared) == 3
    assert handed_out(steps, 8, limited=2, each=3) == []


def test_a_key_that_cannot_be_decrypted_says_why(database: Database) -> None:
    new = NewChatServer("http://models.example/v1", "m", KEY)
    stored = ChatServers(database, "acme", cipher()).put(new)
    assert key_of(stored, cipher()) == KEY
    for lost, named in (([], "SECRETS_KEY is not set"), (["t" * 32], "SECRETS_KEY lacks")):
        with pytest.raises(ChatKeyLocked, match=named):
            key_of(stored, Cipher(CHAT_KEYS, lost))
