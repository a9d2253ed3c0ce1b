"""docker-compose.yml and the Dockerfile: what an engine would only find out when they are used."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from api.__main__ import SHUTDOWN_S
from api.app import STREAMS_END_S
from common.settings import ROOT, WorkerSettings
from tests.support.compose import COMPOSE, SERVICES
from tests.support.setting_names import secret_settings, settings_named

ONE_SHOT = {"migrate"}
"""They end when they are done."""
STOP_MARGIN_S = 10
"""What WORKER_STOP_PERIOD asks for on top."""


def ours() -> dict[str, dict[str, Any]]:
    return {name: it for name, it in SERVICES.items() if it["image"].startswith("stenopool-")}


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


@cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, each with its arguments, in order."""
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined) if word]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        elif found:
            list(found.values())[-1].append((word, rest))
    return found


def copied() -> Iterator[str]:
    """What the Dockerfile takes from the build context."""
    for word, rest in instructions():
        parts = rest.split()
        if word == "COPY" and not any(part.startswith("--from=") for part in parts):
            yield from (part for part in parts[:-1] if not part.startswith("--"))


def ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps a path from the build; the last pattern that matches counts."""
    parts = path.split("/")
    with_parents = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    finding = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!"))
        pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, each) for each in with_parents):
            finding = not line.startswith("!")
    return finding


def listed(name: str) -> set[str]:
    """A list of packages in the Dockerfile."""
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    found = re.search(rf'\b{name}="([^"]+)"', text)
    assert found is not None
    return set(found[1].split())


# --- every service --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_write_nowhere_and_gain_nothing(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged", False)
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))


def test_no_container_runs_as_root() -> None:
    for name in SERVICES.keys() - ours().keys():
        assert SERVICES[name]["user"] not in {"", "0", "root"}, name
    users = [rest for word, rest in stages()["gateway"] if word == "USER"]
    assert users[-1] == "10001:10001"
    assert not [word for word, _ in stages()["worker"] if word == "USER"]
    assert not [name for name, service in ours().items() if "user" in service]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_started_again_and_has_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"].startswith("on-failure" if name in ONE_SHOT else "unless-stopped")
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_health_check_unless_it_ends(name: str) -> None:
    check = SERVICES[name].get("healthcheck")
    if name in ONE_SHOT:
        assert check == {"disable": True}
    elif check is not None:
        assert check["test"]
        assert seconds(check["timeout"]) > 0
    else:
        stage = SERVICES[name]["build"]["target"]
        assert [rest for word, rest in stages()[stage] if word == "HEALTHCHECK"]


def test_what_a_service_depends_on_is_there_and_well_or_done() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            state = "completed_successfully" if needed in ONE_SHOT else "healthy"
            assert how == {"condition": f"service_{state}"}, name
            assert needed in SERVICES


def test_postgres_and_redis_are_reached_from_no_other_network_and_no_port() -> None:
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["data"]
        assert "ports" not in SERVICES[name]
    assert COMPOSE["networks"]["data"]["internal"] is True


def test_ports_are_published_to_this_host_alone_unless_one_says_otherwise() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${API_HOST:-127.0.0.1}:"))


# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ours())
def test_the_environment_of_a_service_of_ours_has_settings_and_no_secret(name: str) -> None:
    environment = dict(ours()[name]["environment"])
    url = environment.pop("DATABASE_URL")
    assert environment.keys() <= settings_named().keys() | {"STENO_SERVER"}
    assert not environment.keys() & secret_settings()
    default = re.fullmatch(r"\$\{DATABASE_URL:-(.*)\}", url)
    assert default is not None
    assert urlsplit(default[1]).password is None


def test_secrets_come_as_a_file_where_settings_are_read() -> None:
    assert COMPOSE["secrets"] == {"settings": {"file": ".env"}}
    for service in ours().values():
        assert service["secrets"] == [{"source": "settings", "target": "/app/.env"}]
        assert service["group_add"]
    assert ("WORKDIR", "/app") in stages()["gateway"]


def test_a_container_is_given_the_time_that_it_needs_to_stop() -> None:
    worker, api, live = (ours()[name] for name in ("worker", "api", "live"))
    period = WorkerSettings.model_fields["stop_period"].default
    assert seconds(worker["stop_grace_period"]) >= period + STOP_MARGIN_S
    assert seconds(api["stop_grace_period"]) > SHUTDOWN_S
    assert seconds(live["stop_grace_period"]) >= STREAMS_END_S + SHUTDOWN_S


def test_live_streams_have_a_gateway_with_the_engines_and_the_weights() -> None:
    worker, api, live = (ours()[name] for name in ("worker", "api", "live"))
    assert live["profiles"] == ["live"]
    assert (live["image"], live["build"]) == (worker["image"], worker["build"])
    assert live["environment"] == {**api["environment"], "STREAM_PRELOAD": "true"}
    # The images' own command and check: the worker's are a worker's.
    found = dict(stages()["gateway"])
    assert live["command"] == yaml.safe_load(found["CMD"])
    check = found["HEALTHCHECK"]
    assert live["healthcheck"]["test"] == ["CMD", *yaml.safe_load(check[check.index("[") :])]


def test_models_are_in_a_volume_or_in_a_folder_that_is_prepared() -> None:
    users = ("worker", "live")
    assert all("models:/models" in ours()[name]["volumes"] for name in users)
    assert "models" in COMPOSE["volumes"]
    prepared = yaml.safe_load((ROOT / "docker" / "weights.yml").read_text("utf-8"))["services"]
    assert all(prepared[name]["volumes"][0].endswith(":/models:ro") for name in users)
    # Nothing can be fetched into a folder that is read-only, and gateways must know that.
    fetching = {name: it["environment"]["AUTO_FETCH"] for name, it in prepared.items()}
    assert fetching == {"api": "false", "worker": "false", "live": "false"}


def modules() -> Iterator[str]:
    """What containers run with ``python -m``."""
    for service in ours().values():
        if "command" in service:
            yield service["command"][0]
        test = service.get("healthcheck", {}).get("test", [])
        yield from (after for word, after in pairwise(test) if word == "-m")
    for word, rest in instructions():
        if word == "CMD":
            yield yaml.safe_load(rest)[0]
        elif word == "HEALTHCHECK" and '"-m"' in rest:
            argv = yaml.safe_load(rest[rest.index("[") :])
            yield argv[argv.index("-m") + 1]


def test_every_module_that_containers_run_is_there() -> None:
    found = set(modules())
    assert {"api", "worker", "worker.dispatcher", "worker.health", "scripts"} <= found
    for module in found:
        assert importlib.util.find_spec(module) is not None, module
        if module in {"api", "worker", "scripts"}:
            assert importlib.util.find_spec(f"{module}.__main__") is not None


# --- the build ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(set(copied()) - {"."}))
def test_what_is_copied_into_images_is_there_and_let_through(path: str) -> None:
    assert (ROOT / path).exists()
    assert not ignored(path)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (".env", False),
        (".git/config", False),
        ("api/__pycache__/app.cpython-311.pyc", False),
        ("data/postgres/cluster/PG_VERSION", False),
        ("docker-compose.yml", False),
        ("models/faster-whisper-base/model.bin", False),
        ("tests/conftest.py", False),
        ("api/app.py", True),
        ("common/settings.py", True),
        ("migrations/env.py", True),
        ("models/bert-finetuned-onnx/config.json", True),
        ("models/manifest.toml", True),
        ("pyproject.toml", True),
        ("scripts/__main__.py", True),
        ("worker/__main__.py", True),
    ],
)
def test_what_runs_is_sent_to_the_build_and_nothing_else(path: str, *, sent: bool) -> None:
    assert ignored(path) != sent
    assert (ROOT / path).exists() or not sent


def test_packages_that_the_dockerfile_names_are_in_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", lock, re.MULTILINE))
    assert listed("engines") <= locked
    assert listed("left_out") <= locked
    assert not listed("engines") & listed("left_out")


def test_the_context_and_the_targets_of_builds_are_there() -> None:
    for service in ours().values():
        if "build" in service:
            build = service["build"]
            assert (ROOT / build["context"] / build["dockerfile"]).is_file()
            assert build["target"] in stages()
            args = [shlex.split(rest)[0] for word, rest in instructions() if word == "ARG"]
            assert set(build.get("args", {})) <= {each.partition("=")[0] for each in args}
