"""Who may ask the gateway, for whom, and what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import psycopg
import pytest
from click.testing import CliRunner, Result
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from common.db.database import Database
from common.db.keys import AllKeys, Keys, Tenants
from common.domain.keys import KeyText, Scope
from scripts.cli.cli import steno as steno_command
from tests.support.audio_files import make_wav
from tests.support.factories import submit_job
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import wait_until

FILES = {"file": ("a.wav", make_wav(bytes(16_000)))}
OPERATOR = "the-operators-own-key-0123456789"
NOWHERE = uuid4()
PUBLIC = "0.0.0.0"  # noqa: S104 - a key is set, or it must not be listened on
EVERYTHING = (Scope.TRANSCRIBE, Scope.READ)

Make = Callable[..., KeyText]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"GATEWAY_API_KEY": OPERATOR, "API_WORKERS": "1"}


@pytest.fixture
def make(gateway_database: Database) -> Make:
    def make_key(
        tenant: str = "acme", scopes: Iterable[Scope] = EVERYTHING, **more: Any
    ) -> KeyText:
        return Keys(gateway_database, tenant).create("a test's", scopes, **more)[1]

    return make_key


def text_of(key: KeyText | str) -> str:
    return key if isinstance(key, str) else key.reveal()


def bearer(key: KeyText | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text_of(key)}"}


def ask(
    gateway: GatewayProcess,
    key: KeyText | str | None,
    path: str = f"status/{NOWHERE}",
    method: str = "GET",
    **more: Any,
) -> httpx.Response:
    headers = {} if key is None else bearer(key)
    headers |= more.pop("headers", {})
    return gateway.http.request(method, f"/api/v1/{path}", headers=headers, **more)


# --- with and without a key -------------------------------------------------------------------


def test_without_a_key_the_answer_is_401_and_how_to_send_one(gateway: GatewayProcess) -> None:
    answer = ask(gateway, None)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "X-API-Key" in answer.json()["detail"]


def test_a_large_body_without_a_key_is_answered_once(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/moderation", content=b"[" * 5_000_000)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
    assert "Traceback" not in gateway.log_file.read_text()


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/health"])
def test_public_paths_need_no_key(gateway: GatewayProcess, path: str) -> None:
    assert gateway.http.get(path).status_code == 200


def test_a_key_is_accepted_in_either_header(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    assert ask(gateway, key).status_code == 404
    assert ask(gateway, None, headers={"X-API-Key": key.reveal()}).status_code == 404
    proxied = {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": key.reveal()}
    assert ask(gateway, None, headers=proxied).status_code == 404


@pytest.mark.parametrize("wrong", ["", "x", "steno_", OPERATOR + "x", OPERATOR[:-1], "steno_ă"])
def test_a_malformed_key_is_refused(gateway: GatewayProcess, wrong: str) -> None:
    answer = ask(gateway, None, headers={"X-API-Key": wrong.encode()})
    assert answer.status_code == 401


def test_the_right_id_with_another_secret_is_refused(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    assert ask(gateway, key).status_code == 404
    forged = KeyText(key.id, KeyText.make().secret)
    unknown = KeyText.make()
    answers = [ask(gateway, each) for each in (forged, unknown)]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


def test_a_key_that_expires_or_is_revoked_is_refused_also_where_it_is_cached(
    gateway: GatewayProcess, make: Make, gateway_database: Database
) -> None:
    assert ask(gateway, make(lasts_s=3600)).status_code == 404
    assert ask(gateway, make(lasts_s=-1)).status_code == 401
    expiring, revoked = make(lasts_s=1), make()
    for key in (expiring, revoked):
        assert ask(gateway, key).status_code == 404
    Keys(gateway_database, "acme").revoke(revoked.id)
    for key, reason in ((expiring, "expired"), (revoked, "revoked")):
        wait_until(lambda: ask(gateway, key).status_code == 401, reason)  # noqa: B023
        assert reason in ask(gateway, key).json()["detail"]


def test_the_key_of_the_environment_may_do_everything(gateway: GatewayProcess) -> None:
    assert ask(gateway, OPERATOR).status_code == 404
    assert ask(gateway, OPERATOR, "keys").status_code == 200


# --- scopes and tenants -----------------------------------------------------------------------


def test_a_key_does_what_its_scopes_say_and_no_more(gateway: GatewayProcess, make: Make) -> None:
    reader, writer = make(scopes=[Scope.READ]), make(scopes=[Scope.TRANSCRIBE])
    cancel = (f"jobs/{NOWHERE}/cancel", "POST")
    assert ask(gateway, reader).status_code == 404
    assert ask(gateway, writer, *cancel).status_code == 404
    for answer, scope in (
        (ask(gateway, reader, *cancel), "transcribe"),
        (ask(gateway, writer), "read"),
        (ask(gateway, reader, "upload", "POST", files={"file": b"x"}), "transcribe"),
        (ask(gateway, make(), "keys"), "admin"),
        (
            gateway.http.post("/moderation", json={"text": "a"}, headers=bearer(reader)),
            "transcribe",
        ),
        (ask(gateway, writer, "models"), "read"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert scope in answer.json()["detail"]


def test_the_tenant_may_be_named_and_only_an_admin_may_name_another(
    gateway: GatewayProcess, gateway_database: Database, make: Make
) -> None:
    path = f"status/{submit_job(gateway_database, tenant='acme')}"
    to_acme = {"X-Tenant-Id": "acme"}
    assert ask(gateway, make("acme"), path, headers=to_acme).status_code == 200
    assert ask(gateway, OPERATOR, path, headers=to_acme).status_code == 200
    assert ask(gateway, OPERATOR, path).status_code == 404
    assert ask(gateway, make("other", [Scope.ADMIN]), path, headers=to_acme).status_code == 200
    refused = ask(gateway, make("other"), path, headers=to_acme)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "X-Tenant-Id" in refused.json()["detail"]


def test_an_impossible_tenant_is_refused_after_the_key(gateway: GatewayProcess) -> None:
    odd = {"X-Tenant-Id": "a b"}
    assert ask(gateway, None, headers=odd).status_code == 401
    answer = ask(gateway, OPERATOR, headers=odd)
    assert (answer.status_code, answer.json()["field"]) == (422, "X-Tenant-Id")


def test_an_upload_belongs_to_the_keys_tenant_and_names_the_key(
    gateway: GatewayProcess, gateway_database: Database, make: Make
) -> None:
    key = make("acme")
    accepted = ask(gateway, key, "upload", "POST", files=FILES)
    assert accepted.status_code == 200, accepted.text
    job_id = accepted.json()["job_id"]
    with gateway_database.transaction() as session:
        row = session.connection().exec_driver_sql(
            "SELECT tenant, key_id FROM jobs WHERE id = %s", (UUID(job_id),)
        )
        assert row.one() == ("acme", key.id)


# --- created and revoked ----------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked_over_http(gateway: GatewayProcess) -> None:
    wanted = {"name": "call centre", "scopes": ["read"], "expires_in_seconds": 3600}
    acme = {"X-Tenant-Id": "one-more"}
    made = ask(gateway, OPERATOR, "keys", "POST", json=wanted, headers=acme)
    assert made.status_code == 201, made.text
    key = made.json()
    assert (key["tenant"], key["scopes"], key["state"]) == ("one-more", ["read"], "active")
    assert ask(gateway, key["key"]).status_code == 404
    (listed,) = ask(gateway, OPERATOR, "keys", headers=acme).json()["keys"]
    assert listed == {name: value for name, value in key.items() if name != "key"}
    for _ in range(2):
        revoked = ask(gateway, OPERATOR, f"keys/{key['id']}", "DELETE", headers=acme)
        assert (revoked.status_code, revoked.content) == (204, b"")
    assert ask(gateway, key["key"]).status_code == 401
    (listed,) = ask(gateway, OPERATOR, "keys", headers=acme).json()["keys"]
    assert listed["state"] == "revoked"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a", "scopes": ["write"]}, "scopes[0]"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "limits": {"requests_per_hour": 1}}, "limits.requests_per_hour"),
        ({"name": "a", "limits": {"concurrent_jobs": -1}}, "limits.concurrent_jobs"),
        ({"name": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
    ],
)
def test_wrong_fields_of_a_key_are_named(
    gateway: GatewayProcess, wanted: dict[str, Any], field: str
) -> None:
    answer = ask(gateway, OPERATOR, "keys", "POST", json=wanted)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_no_key_is_in_the_log_or_in_the_database(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    made = ask(gateway, OPERATOR, "keys", "POST", json={"name": "shown once"}).json()["key"]
    for each in (key, made, OPERATOR, KeyText(key.id, "x" * 43)):
        ask(gateway, each)
        ask(gateway, None, headers={"X-API-Key": text_of(each)})
    dump = everything_stored(gateway.database_url)
    log = gateway.log_file.read_text()
    assert key.id in dump
    for secret in (key.secret, made[-43:], OPERATOR, "x" * 43):
        assert secret not in dump
        assert secret not in log


def test_the_last_use_of_a_key_is_recorded(gateway_database: Database, make: Make) -> None:
    key = make()
    keys = AllKeys(gateway_database)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for at in (noon, noon - timedelta(hours=1)):
        keys.used({key.id: at, KeyText.make().id: at})
        found = keys.find(key.id)
        assert found is not None
        assert found.last_used_at == noon


# --- without any key --------------------------------------------------------------------------


@pytest.fixture
def keyless(alone: StartGateway) -> GatewayProcess:
    """A gateway without a key, whose setting is to listen on every address."""
    return alone(API_HOST=PUBLIC)


LOCAL: list[tuple[dict[str, str], int]] = [
    ({"X-Tenant-Id": "acme"}, 404),
    ({"Authorization": "Bearer sk-whatever-a-client-sends"}, 404),
    ({"Host": "localhost"}, 404),
    ({"Host": "localhost:8000"}, 404),
    ({"Host": "127.0.0.1:1"}, 404),
    ({"Host": "[::1]:8000"}, 404),
    ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example:8000"}, 403),
    ({"Host": "["}, 403),
    ({"Host": "localhost@evil.example"}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:5173"}, 404),
    ({"X-Forwarded-For": "127.0.0.1"}, 403),
    ({"X-Forwarded-For": "93.184.216.34"}, 403),
    ({"X-Forwarded-For": "127.0.0.1, 93.184.216.34"}, 403),
    ({"X-Forwarded-For": "unknown"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "navigate"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:5173"}, 404),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 404),
    ({"Sec-Fetch-Site": "none"}, 404),
]
"""Headers of requests without a key, and their answers: 404 is that of a job."""


def test_without_any_key_loopback_is_answered_until_there_is_one(
    keyless: GatewayProcess, database: Database
) -> None:
    for headers, status in ({}, 404), ({"Origin": keyless.url}, 404), *LOCAL:
        answer = ask(keyless, None, headers=headers)
        code = {403: "forbidden", 404: "not_found"}[status]
        assert (answer.status_code, answer.json()["code"]) == (status, code), headers
    _, key = Keys(database, "acme").create("the first", [Scope.READ])
    wait_until(lambda: ask(keyless, None).status_code == 401, "the end of the keyless mode")
    assert ask(keyless, key, headers={"X-Real-IP": "10.0.0.7"}).status_code == 404
    Keys(database, "acme").revoke(key.id)
    wait_until(lambda: ask(keyless, key).status_code == 401, "the revocation")
    assert ask(keyless, None).status_code == 401


PROXIED = (
    *("X-Real-IP", "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "x-forwarded-by"),
    *("X-Forwarded", "X-Original-Forwarded-For"),
    *("X-Forwarded-Proto", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP"),
)
PATHS = ("/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/health", "/api/v1/jobs")


def test_without_any_key_the_gateway_listens_on_loopback_and_rejects_proxies(
    keyless: GatewayProcess,
) -> None:
    assert listens_on(keyless) == {"127.0.0.1"}
    log = keyless.log_file.read_text()
    assert "steno keys create" in log
    assert "GATEWAY_API_KEY" in log
    for header in PROXIED:
        sent = {header: "127.0.0.1"}
        assert [keyless.http.get(path, headers=sent).status_code for path in PATHS] == [403] * 7
        with pytest.raises(InvalidStatus) as caught:
            connect(
                keyless.url.replace("http", "ws") + "/ws/transcribe",
                additional_headers=sent,
                proxy=None,
            )
        assert caught.value.response.status_code == 403
        assert caught.value.response.headers["cross-origin-resource-policy"] == "same-origin"
    refused = keyless.http.post("/api/v1/upload", files=FILES, headers={"Via": "1.1 squid"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for said in ("through a proxy (via)", "steno keys create", "GATEWAY_API_KEY"):
        assert said in refused.json()["detail"]


def test_with_a_key_every_process_listens_on_the_configured_address(
    alone: StartGateway, database: Database
) -> None:
    _, key = Keys(database, "acme").create("the first", [Scope.READ])
    gateway = alone(API_HOST=PUBLIC, API_WORKERS="2")
    assert listens_on(gateway) == {PUBLIC}
    models = f"{gateway.url}/api/v1/models"
    for _ in range(4):
        assert httpx.get(models, trust_env=False).status_code == 401
        assert httpx.get(models, headers=bearer(key), trust_env=False).status_code == 200


def test_a_database_without_migrations_is_an_error_that_names_the_command(
    alone: StartGateway, empty_database_url: str
) -> None:
    answer = ask(alone(database_url=empty_database_url), None)
    assert answer.status_code == 503
    assert "steno migrate" in answer.json()["detail"]


# --- the command line -------------------------------------------------------------------------


def steno(database_url: str, *arguments: str, **env: str) -> Result:
    environment = {"DATABASE_URL": database_url, "COLUMNS": "200", **env}
    return CliRunner().invoke(steno_command, list(arguments), env=environment)


def test_the_command_line_makes_keys_that_are_accepted(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    options = ("--tenant", "cli", "--scope", "read", "--expires-in", "90d")
    limits = ("--limit", "requests_per_minute=600", "--limit", "audio_hours_per_day=1.5")
    made = steno(gateway.database_url, "keys", "create", "--name", "mine", *options, *limits)
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    assert ask(gateway, key).status_code == 404
    (stored,) = Keys(gateway_database, "cli").all()
    assert stored.limits == {"requests_per_minute": 600, "audio_hours_per_day": 1.5}
    assert stored.expires_at is not None
    assert timedelta(days=89) < stored.expires_at - stored.created_at <= timedelta(days=90)
    listed = steno(gateway.database_url, "keys", "list").stdout
    assert stored.id in listed
    assert key not in listed
    refused = steno(gateway.database_url, "status", str(NOWHERE), "--server", gateway.url)
    assert refused.exit_code == 1
    assert "STENO_API_KEY" in refused.stderr
    shown = ("status", str(NOWHERE), "--server", gateway.url)
    for way in ((*shown, "--key", key), shown):
        found = steno(gateway.database_url, *way, STENO_API_KEY=key)
        assert "There is no job" in found.stderr
    assert steno(gateway.database_url, "keys", "revoke", stored.id).exit_code == 0
    wait_until(lambda: ask(gateway, key).status_code == 401, "the revocation")
    forget = ("keys", "revoke", "--forget", stored.id)
    assert steno(gateway.database_url, *forget).exit_code == 0
    assert Keys(gateway_database, "cli").all() == []
    assert steno(gateway.database_url, "keys", "revoke", stored.id).exit_code == 1


def test_keys_can_be_made_by_way_of_a_gateway(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    at_gateway = ("--server", gateway.url, "--key", OPERATOR)

    def keys(*arguments: str) -> Result:
        return steno("", "keys", *arguments, *at_gateway)

    made = keys("create", "--name", "mine", "--tenant", "far", "--expires-in", "1h")
    assert made.exit_code == 0, made.stderr
    assert ask(gateway, made.stdout.strip()).status_code == 404
    (stored,) = Keys(gateway_database, "far").all()
    assert stored.id in keys("list", "--tenant", "far").stdout
    assert stored.id not in keys("list").stdout
    assert keys("revoke", stored.id).exit_code == 1
    assert keys("revoke", stored.id, "--tenant", "far").exit_code == 0
    assert Keys(gateway_database, "far").all()[0].state == "revoked"


def test_doctor_examines_a_gateway_from_outside(gateway: GatewayProcess) -> None:
    done = steno("", "doctor", "--server", gateway.url, "--key", OPERATOR)
    assert done.exit_code == 1
    assert f"answers at {gateway.url}" in done.stdout
    assert "postgres    ok" in done.stdout
    assert "-> start one with: steno worker" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("--expires-in", "0d"),
        ("--expires-in", "soon"),
        ("--limit", "jobs=1"),
        ("--limit", "concurrent_jobs=1.5"),
        ("--scope", "write"),
        ("--tenant", "a b"),
    ],
)
def test_wrong_options_of_a_key_are_one_line_on_the_command_line(
    gateway: GatewayProcess, wrong: tuple[str, ...]
) -> None:
    made = steno(gateway.database_url, "keys", "create", "--name", "mine", *wrong)
    assert made.exit_code != 0
    assert made.stdout == ""
    assert len(made.stderr.splitlines()) == 1


def test_the_command_line_sets_the_tier_and_the_retention_of_a_tenant(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    url = gateway.database_url
    assert steno(url, "tenants", "set", "gold", "--tier", "premium").exit_code == 0
    assert steno(url, "tenants", "set", "gold", "--delete-after", "30d").exit_code == 0
    (gold,) = Tenants(gateway_database).all()
    assert (gold.id, gold.tier, gold.delete_after_s) == ("gold", "premium", 30 * 86_400)
    assert "premium" in steno(url, "tenants", "list").stdout
    assert steno(url, "tenants", "set", "gold", "--delete-after", "none").exit_code == 0
    assert Tenants(gateway_database).all()[0].delete_after_s is None


def test_the_command_line_decides_whether_a_tenants_jobs_are_reviewed(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    for word, review in (("--review", True), ("--no-review", False)):
        assert steno(gateway.database_url, "tenants", "set", "gold", word).exit_code == 0
        found = {it.id: it.review for it in Tenants(gateway_database).all()}
        assert found["gold"] is review


# --- helpers ----------------------------------------------------------------------------------


def listens_on(gateway: GatewayProcess) -> set[str]:
    """The addresses at which a gateway's processes listen on its port."""
    process = psutil.Process(gateway.process.pid)
    return {
        connection.laddr.ip
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == gateway.port
    }


def everything_stored(database_url: str) -> str:
    """All rows of all tables, as text."""
    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        return "\n".join(
            str(row)
            for (table,) in tables
            for row in connection.execute(f'SELECT t::text FROM "{table}" t')  # noqa: S608
        )
