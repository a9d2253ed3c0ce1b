"""What ``python -m worker.health`` and GET /health report of workers and dispatchers."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from functools import partial
from urllib.parse import urlsplit

import pytest
from redis import Redis

from common.redis import presence
from common.settings import ROOT
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from tests.support.frozen import frozen_worker
from tests.support.gateway import GatewayProcess
from tests.support.service import Start, shut, wait_until
from worker.health import main

ROLES = ["worker", "dispatcher"]


def health(role: str, database_url: str, redis_url: str) -> tuple[int, str]:
    """The exit status, and the message."""
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.setenv("DATABASE_URL", database_url)
        patch.setenv("REDIS_URL", redis_url)
        status = main([role])
    message = error.getvalue().strip()
    assert len(message.splitlines()) <= 1, message
    return status, message


def is_healthy(role: str, database_url: str, redis_url: str) -> bool:
    return health(role, database_url, redis_url) == (0, "")


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:{password}@{host}").geturl()


def test_both_are_healthy_while_they_work(start: Start, database_url: str, redis_url: str) -> None:
    start().serve()

    for role in ROLES:
        wait_until(partial(is_healthy, role, database_url, redis_url), f"a {role} that is healthy")
        command = [sys.executable, "-m", "worker.health", role]
        env = {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.usefixtures("weights_dir")
def test_a_worker_in_a_long_step_is_healthy_though_redis_lost_its_registration(
    start: Start, database_url: str, redis_url: str
) -> None:
    _, engine, _ = frozen_worker(start())
    with Redis.from_url(redis_url) as redis:
        redis.flushall()

    wait_until(partial(is_healthy, "worker", database_url, redis_url), "a worker that is known")
    engine.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("role", ROLES)
def test_one_missing_on_this_host_is_reported(role: str, database_url: str, redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        send_heartbeat(redis, role, "elsewhere-1-abcdef", 0)
    status, message = health(role, database_url, redis_url)
    assert status == 1
    assert f"no {role} of this host" in message


@pytest.mark.parametrize("role", ROLES)
def test_one_without_heartbeats_is_reported(role: str, database_url: str, redis_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        send_heartbeat(redis, role, presence.own_name(), 70)
        status, message = health(role, database_url, redis_url)
        assert status == 1
        assert re.search(r"7\d s (old|ago)", message), message
        send_heartbeat(redis, role, presence.own_name(), 0)  # it was started again
    assert is_healthy(role, database_url, redis_url)


def send_heartbeat(redis: Redis, role: str, name: str, age_s: float) -> None:
    """Write a heartbeat of this age."""
    if role == "dispatcher":
        redis.zadd(presence.DISPATCHERS, {name: redis.time()[0] - age_s})
    else:
        key = f"rq:worker:{name}"
        redis.sadd(f"rq:workers:{presence.QUEUE_NAME}", key)
        redis.hset(key, "last_heartbeat", "by a clock of its own")
        redis.pexpire(key, round((presence.RECORD_S - age_s) * 1000))


@pytest.mark.parametrize("role", ROLES)
def test_a_failed_servers_setting_is_named(role: str, database_url: str, redis_url: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    wrong_redis = redis_url.replace(f":{urlsplit(redis_url).password}@", ":wrong-sesame@")
    wrong_database = with_password(database_url, "wrong-sesame")
    for database, queue, words in [
        (database_url, f"redis://{nowhere}/0", ["Redis", "refused", "REDIS_HOST"]),
        (database_url, wrong_redis, ["Redis", "password", "REDIS_PASSWORD"]),
        (database_url, "redis://:wrong-sesame@h:x/0", ["REDIS_URL", "read"]),
        (f"postgresql://a:wrong-sesame@{nowhere}/x", redis_url, ["database", "refused"]),
        (wrong_database, redis_url, ["database", "password", "DATABASE_PASSWORD"]),
    ]:
        with Redis.from_url(redis_url) as redis:
            send_heartbeat(redis, role, presence.own_name(), 70 if role == "dispatcher" else 0)
        status, message = health(role, database, queue)
        assert status == 1
        assert all(word in message for word in words), message
        assert "wrong-sesame" not in message


def test_a_dispatcher_without_its_database_is_not_healthy(
    start: Start, postgres: EmbeddedPostgres, database_url: str, redis_url: str
) -> None:
    service = start()
    dispatcher = service.start_dispatcher()
    wait_until(partial(is_healthy, "dispatcher", database_url, redis_url), "a start")

    shut(postgres, database_url, allow=False)
    wait_until(lambda: "waiting for a service" in service.log(), "its first trouble")
    with Redis.from_url(redis_url) as redis:
        redis.delete(presence.DISPATCHERS)
    seen = service.log().count("waiting for a service")
    wait_until(lambda: service.log().count("waiting for a service") > seen + 1, "more trouble")
    status, message = health("dispatcher", database_url, redis_url)
    assert status == 1
    assert "not currently accepting connections" in message

    shut(postgres, database_url, allow=True)
    wait_until(partial(is_healthy, "dispatcher", database_url, redis_url), "its recovery")
    dispatcher.terminate()
    wait_until(
        lambda: "no dispatcher" in health("dispatcher", database_url, redis_url)[1], "its end"
    )


def test_the_gateway_counts_both(gateway: GatewayProcess, valkey: EmbeddedValkey) -> None:
    with Redis.from_url(valkey.url) as redis:
        redis.flushall()
        assert counted(gateway) == {"workers": 0, "dispatchers": 0}
        for role, name, age_s in [
            ("worker", "a-1-abcdef", 0.0),
            ("worker", "b-1-abcdef", 70.0),
            ("dispatcher", "a-2-abcdef", 0.0),
            ("dispatcher", "b-2-abcdef", 1.0),
            ("dispatcher", "c-2-abcdef", 100.0),
        ]:
            send_heartbeat(redis, role, name, age_s)
    assert counted(gateway) == {"workers": 1, "dispatchers": 2}
    schema = gateway.http.get("/openapi.json").json()["components"]["schemas"]["Health"]
    assert all("0:" in schema["properties"][name]["description"] for name in counted(gateway))


def counted(gateway: GatewayProcess) -> dict[str, int | None]:
    answer = gateway.http.get("/health").json()
    return {name: answer[name] for name in ("workers", "dispatchers")}
