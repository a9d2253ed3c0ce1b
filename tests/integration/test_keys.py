"""Who may ask the gateway, for whom, and what."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from common.db.keys import AllKeys, Keys
from common.db.tenants import Tenants
from common.domain.keys import KeyText, Scope
from scripts.cli.cli import steno as steno_command
from tests.support.audio_files import tone
from tests.support.factories import submit_job
from tests.support.gateway import GatewayProcess
from tests.support.service import wait_until

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


def bearer(key: KeyText | str) -> dict[str, str]:
    text = key if isinstance(key, str) else key.reveal()
    return {"Authorization": f"Bearer {text}"}


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


# --- knocking ---------------------------------------------------------------------------------


def test_without_a_key_nothing_is_answered_but_how_to_show_one(gateway: GatewayProcess) -> None:
    answer = ask(gateway, None)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "X-API-Key" in answer.json()["detail"]


def test_what_comes_after_a_refusal_is_refused_no_second_time(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/moderation", content=b"[" * 5_000_000)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
    assert "Traceback" not in gateway.log_file.read_text()


def test_what_tells_nothing_stays_open(gateway: GatewayProcess) -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/health"):
        assert gateway.http.get(path).status_code == 200


def test_a_key_opens_either_way_it_is_shown(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    assert ask(gateway, key).status_code == 404
    assert ask(gateway, None, headers={"X-API-Key": key.reveal()}).status_code == 404
    proxied = {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": key.reveal()}
    assert ask(gateway, None, headers=proxied).status_code == 404


@pytest.mark.parametrize("wrong", ["", "x", "steno_", OPERATOR + "x", OPERATOR[:-1], "steno_ă"])
def test_what_is_no_key_is_refused(gateway: GatewayProcess, wrong: str) -> None:
    answer = ask(gateway, None, headers={"X-API-Key": wrong.encode()})
    assert answer.status_code == 401


def test_the_right_id_with_another_secret_is_refused(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    assert ask(gateway, key).status_code == 404
    forged = KeyText(key.id, KeyText.make().secret)
    unknown = KeyText.make()
    told = [ask(gateway, each) for each in (forged, unknown)]
    assert [answer.status_code for answer in told] == [401, 401]
    assert told[0].json() == told[1].json()


def test_a_key_is_good_until_it_expires(gateway: GatewayProcess, make: Make) -> None:
    assert ask(gateway, make(lasts_s=3600)).status_code == 404
    gone = ask(gateway, make(lasts_s=-1))
    assert gone.status_code == 401
    assert "expired" in gone.json()["detail"]


def test_a_key_expires_though_the_gateway_remembers_it(gateway: GatewayProcess, make: Make) -> None:
    key = make(lasts_s=1)
    assert ask(gateway, key).status_code == 404
    wait_until(lambda: ask(gateway, key).status_code == 401, "the key's end")


def test_a_revoked_key_is_soon_refused_everywhere(
    gateway: GatewayProcess, make: Make, gateway_database: Database
) -> None:
    key = make()
    assert ask(gateway, key).status_code == 404
    Keys(gateway_database, "acme").revoke(key.id)
    wait_until(lambda: ask(gateway, key).status_code == 401, "the revocation to be noticed")
    assert "revoked" in ask(gateway, key).json()["detail"]


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


def test_a_keys_jobs_are_its_tenants_alone(
    gateway: GatewayProcess, gateway_database: Database, make: Make
) -> None:
    job_id = submit_job(gateway_database, tenant="acme")
    path = f"status/{job_id}"
    assert ask(gateway, make("acme"), path).status_code == 200
    assert ask(gateway, make("other"), path).status_code == 404
    assert ask(gateway, OPERATOR, path).status_code == 404


def test_the_tenant_may_be_named_and_only_an_admin_may_name_another(
    gateway: GatewayProcess, gateway_database: Database, make: Make
) -> None:
    path = f"status/{submit_job(gateway_database, tenant='acme')}"
    to_acme = {"X-Tenant-Id": "acme"}
    assert ask(gateway, make("acme"), path, headers=to_acme).status_code == 200
    assert ask(gateway, OPERATOR, path, headers=to_acme).status_code == 200
    assert ask(gateway, make("other", [Scope.ADMIN]), path, headers=to_acme).status_code == 200
    refused = ask(gateway, make("other"), path, headers=to_acme)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "X-Tenant-Id" in refused.json()["detail"]


def test_a_name_that_no_tenant_has_is_refused_after_the_key(gateway: GatewayProcess) -> None:
    odd = {"X-Tenant-Id": "a b"}
    assert ask(gateway, None, headers=odd).status_code == 401
    answer = ask(gateway, OPERATOR, headers=odd)
    assert (answer.status_code, answer.json()["field"]) == (422, "X-Tenant-Id")


def test_what_is_sent_belongs_to_the_keys_tenant_and_names_the_key(
    gateway: GatewayProcess, gateway_database: Database, make: Make
) -> None:
    key = make("acme")
    clip = make_wav(tone(0.5).tobytes())
    accepted = ask(gateway, key, "upload", "POST", files={"file": ("a.wav", clip)})
    assert accepted.status_code == 200, accepted.text
    job_id = accepted.json()["job_id"]
    assert ask(gateway, make("other"), f"status/{job_id}").status_code == 404
    with gateway_database.transaction() as session:
        row = session.connection().exec_driver_sql(
            "SELECT tenant, key_id FROM jobs WHERE id = %s", (UUID(job_id),)
        )
        assert row.one() == ("acme", key.id)


# --- making and taking back -------------------------------------------------------------------


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
        gone = ask(gateway, OPERATOR, f"keys/{key['id']}", "DELETE", headers=acme)
        assert (gone.status_code, gone.content) == (204, b"")
    assert ask(gateway, key["key"]).status_code == 401
    (listed,) = ask(gateway, OPERATOR, "keys", headers=acme).json()["keys"]
    assert listed["state"] == "revoked"


def test_another_tenants_key_is_not_found(gateway: GatewayProcess, make: Make) -> None:
    key = make("acme")
    answer = ask(gateway, make("other", [Scope.ADMIN]), f"keys/{key.id}", "DELETE")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a", "scopes": ["write"]}, "0"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "limits": {"requests_per_hour": 1}}, "requests_per_hour"),
        ({"name": "a", "limits": {"concurrent_jobs": -1}}, "concurrent_jobs"),
        ({"name": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_name(
    gateway: GatewayProcess, wanted: dict[str, Any], field: str
) -> None:
    answer = ask(gateway, OPERATOR, "keys", "POST", json=wanted)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_no_key_is_in_the_log_or_in_the_database(gateway: GatewayProcess, make: Make) -> None:
    key = make()
    made = ask(gateway, OPERATOR, "keys", "POST", json={"name": "told once"}).json()["key"]
    for each in (key, made, OPERATOR, KeyText(key.id, "x" * 43)):
        ask(gateway, each)
        ask(gateway, None, headers={"X-API-Key": each if isinstance(each, str) else each.reveal()})
    dump = everything_stored(gateway.database_url)
    log = gateway.log_file.read_text()
    assert key.id in dump
    for secret in (key.secret, made[-43:], OPERATOR, "x" * 43):
        assert secret not in dump
        assert secret not in log


def test_it_is_noted_when_a_key_was_used_last(gateway_database: Database, make: Make) -> None:
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
def keyless(tmp_path: Path, database_url: str, redis_url: str) -> Iterable[GatewayProcess]:
    with GatewayProcess(tmp_path, database_url, redis_url) as gateway:
        yield gateway


def test_without_any_key_loopback_is_answered_until_there_is_one(
    keyless: GatewayProcess, database_url: str
) -> None:
    assert ask(keyless, None).status_code == 404
    assert ask(keyless, "sk-whatever-a-client-sends").status_code == 404
    assert ask(keyless, None, headers={"X-Tenant-Id": "acme"}).status_code == 404
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert ask(keyless, None, headers={"Host": host}).status_code == 404
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "[", "localhost@evil.example"):
        answer = ask(keyless, None, headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:5173", 404),
        (keyless.url, 404),
    ):
        assert ask(keyless, None, headers={"Origin": origin}).status_code == status
    for sender in ("127.0.0.1", "93.184.216.34", "127.0.0.1, 93.184.216.34", "unknown"):
        assert ask(keyless, None, headers={"X-Forwarded-For": sender}).status_code == 403
    for page, status in (
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:5173"}, 404),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({"Sec-Fetch-Site": "none"}, 404),
    ):
        assert ask(keyless, None, headers=page).status_code == status
    with Database(database_url) as database:
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


def test_without_any_key_nobody_is_answered_through_a_proxy(keyless: GatewayProcess) -> None:
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
    files = {"file": ("a.wav", make_wav(bytes(1_000)))}
    refused = keyless.http.post("/api/v1/upload", files=files, headers={"Via": "1.1 squid"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for said in ("through a proxy (via)", "steno keys create", "GATEWAY_API_KEY"):
        assert said in refused.json()["detail"]


def test_without_any_key_a_public_address_is_not_listened_on(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with GatewayProcess(tmp_path, database_url, redis_url, API_HOST=PUBLIC) as gateway:
        assert gateway.process is not None
        assert listens_on(gateway.process.pid, gateway.port) == {"127.0.0.1"}
        assert ask(gateway, None).status_code == 404
        log = gateway.log_file.read_text()
        assert "steno keys create" in log
        assert "GATEWAY_API_KEY" in log


def test_with_a_key_every_process_listens_where_it_was_told_to(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with Database(database_url) as database:
        _, key = Keys(database, "acme").create("the first", [Scope.READ])
    with GatewayProcess(
        tmp_path, database_url, redis_url, API_HOST=PUBLIC, API_WORKERS="2"
    ) as gateway:
        assert gateway.process is not None
        assert listens_on(gateway.process.pid, gateway.port) == {PUBLIC}
        for _ in range(4):
            status = httpx.get(f"{gateway.url}/api/v1/models", trust_env=False).status_code
            assert status == 401
            shown = httpx.get(f"{gateway.url}/api/v1/models", headers=bearer(key), trust_env=False)
            assert shown.status_code == 200


def test_a_database_that_is_behind_is_said_so(
    tmp_path: Path, empty_database_url: str, redis_url: str
) -> None:
    with GatewayProcess(tmp_path, empty_database_url, redis_url) as gateway:
        answer = ask(gateway, None)
        assert answer.status_code == 503
        assert "steno migrate" in answer.json()["detail"]


# --- the command line -------------------------------------------------------------------------


def steno(database_url: str, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(
        steno_command,
        list(arguments),
        env={"DATABASE_URL": database_url, "COLUMNS": "200", **env},
    )


def test_the_command_line_makes_keys_that_open(
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
    told = steno(gateway.database_url, "status", str(NOWHERE), "--server", gateway.url)
    assert told.exit_code == 1
    assert "STENO_API_KEY" in told.stderr
    shown = ("status", str(NOWHERE), "--server", gateway.url)
    for way in ((*shown, "--key", key), shown):
        found = steno(gateway.database_url, *way, STENO_API_KEY=key)
        assert "There is no job" in found.stderr
    assert steno(gateway.database_url, "keys", "revoke", stored.id).exit_code == 0
    wait_until(lambda: ask(gateway, key).status_code == 401, "the revocation")
    gone = steno(gateway.database_url, "keys", "revoke", "--forget", stored.id)
    assert gone.exit_code == 0
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
def test_the_command_line_says_what_is_wrong_with_a_key(
    gateway: GatewayProcess, wrong: tuple[str, ...]
) -> None:
    made = steno(gateway.database_url, "keys", "create", "--name", "mine", *wrong)
    assert made.exit_code != 0
    assert made.stdout == ""
    assert len(made.stderr.splitlines()) == 1


def test_tenants_are_given_what_is_particular_to_them(
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


# --- helpers ----------------------------------------------------------------------------------


def listens_on(pid: int, port: int) -> set[str]:
    """The addresses at which a process or its children listen on a port."""
    process = psutil.Process(pid)
    return {
        connection.laddr.ip
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


def make_wav(pcm: bytes) -> bytes:
    """A 16 kHz mono recording."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm)
    return target.getvalue()


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
