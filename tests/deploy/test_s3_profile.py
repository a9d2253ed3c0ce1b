"""The profile ``s3`` of Compose, and how ``docker/secrets.sh s3`` makes its settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from common.settings import ROOT, StorageSettings
from tests.support.compose import SERVICES

SERVICE = SERVICES["s3"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "secrets.sh", tmp_path / "docker")
    return tmp_path


def secrets(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "docker/secrets.sh", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def settings(checkout: Path) -> StorageSettings:
    return StorageSettings(_env_file=checkout / ".env")  # type: ignore[call-arg]


def test_its_settings_are_made_on_request(checkout: Path) -> None:
    secrets(checkout).check_returncode()
    assert settings(checkout).storage_backend == "local"
    assert settings(checkout).s3_access_key_id is None
    secrets(checkout, "s3").check_returncode()
    made = settings(checkout)
    assert made.storage_backend == "s3"
    assert made.s3_endpoint_url == "http://s3:8333"
    assert made.s3_bucket == "stenopool"
    assert made.s3_addressing_style == "path"
    assert made.s3_access_key_id
    assert made.s3_secret_access_key is not None
    assert len(made.s3_secret_access_key.get_secret_value()) >= 32
    assert not made.s3_links, "no client reaches a server in a network of its own"


def test_what_was_made_once_stays(checkout: Path) -> None:
    (checkout / ".env").write_text("# mine\nS3_BUCKET=mine\nSTORAGE_BACKEND=local\n")
    secrets(checkout, "s3").check_returncode()
    before = (checkout / ".env").read_text()
    secrets(checkout, "s3").check_returncode()
    secrets(checkout).check_returncode()
    assert sorted((checkout / ".env").read_text().splitlines()) == sorted(before.splitlines())
    assert before.startswith("# mine\n")
    assert settings(checkout).s3_bucket == "mine"
    assert settings(checkout).storage_backend == "s3"


def test_settings_of_another_s3_stay(checkout: Path) -> None:
    (checkout / ".env").write_text("STORAGE_BACKEND=s3\nS3_BUCKET=at-amazon\n")
    done = secrets(checkout, "s3")
    assert done.returncode == 1
    assert "another S3" in done.stderr
    assert settings(checkout).s3_endpoint_url is None
    assert settings(checkout).s3_access_key_id is None


def test_only_the_s3_api_is_reached_and_only_by_services_that_store() -> None:
    assert SERVICE["profiles"] == ["s3"]
    assert "ports" not in SERVICE
    assert SERVICE["networks"] == ["data"]
    command = SERVICE["command"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(command)
    bound = {word for word in command if "0.0.0.0" in word}  # noqa: S104 - in a container
    assert bound == {"-s3.ip.bind=0.0.0.0"}


def test_its_user_may_do_what_the_service_does_and_nothing_else() -> None:
    script = SERVICE["entrypoint"][-2]
    assert "-s3.config=/tmp/s3.json" in SERVICE["command"]
    actions = re.search(r'"actions": \[(.*?)\]', script)
    assert actions is not None
    assert re.findall(r'"(\w+):%s"', actions[1]) == ["Read", "Write", "List"]
