from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from common.errors import SetupProblem
from common.settings import ROOT, ApiSettings, DatabaseSettings, load_settings
from tests.support.programs import run_python


def address(url: str, password: str) -> str | None:
    return DatabaseSettings.model_validate({"url": url, "password": password}).address


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; nobody may not."""
    ours = os.geteuid()
    if ours == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(ours)


@pytest.mark.parametrize(
    ("url", "password", "found"),
    [
        ("postgresql://steno@pg/steno", "a/b@c", "postgresql://steno:a%2Fb%40c@pg/steno"),
        # One in the URL goes before it, and without a user there is no place for it.
        ("postgresql://steno:mine@pg:5432/steno?sslmode=require", "other", None),
        ("postgresql:///steno", "other", None),
    ],
)
def test_a_password_beside_the_url_is_put_into_it(
    url: str, password: str, found: str | None
) -> None:
    assert address(url, password) == (found or url)


@pytest.mark.parametrize("password", ["a/b", "a?b#c", "a:b", "50%zz", "a[b]c", "a%2Fb", ""])
def test_all_that_read_the_databases_address_read_the_same_password(password: str) -> None:
    found = address(f"postgresql+psycopg://steno:{password}@postgres:5432/steno", "other")
    assert found is not None
    by_libpq = conninfo_to_dict(found.replace("+psycopg", ""))
    by_sqlalchemy = make_url(found)
    assert by_libpq.get("password", "") == by_sqlalchemy.password == unquote(password)
    assert by_libpq["host"] == by_sqlalchemy.host == "postgres"


def test_a_password_is_not_shown_with_the_settings() -> None:
    assert "s3cret" not in repr(DatabaseSettings.model_validate({"password": "s3cret"}))


@pytest.mark.parametrize(("name", "value"), [("WORKER_LEASE", "soon"), ("LOG_JSON", "maybe")])
def test_a_wrong_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupProblem, match=f"{name} is wrong"):
        load_settings()


@pytest.mark.parametrize("name", ["DEFAULT_LANGUAGE", "ASR_LANGUAGE"])
def test_an_unknown_default_language_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "english")
    with pytest.raises(SetupProblem, match=r"DEFAULT_LANGUAGE.* auto, .*en, .*'english'"):
        load_settings()


@pytest.mark.parametrize(("given", "language"), [("EN", "en"), ("Auto", "auto"), ("haw", "haw")])
def test_a_default_language_is_a_code_or_auto(
    given: str, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_LANGUAGE", given)
    assert load_settings().asr.default_language == language


def test_an_unreadable_env_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("API_PORT=1\n")
    file.chmod(0)
    monkeypatch.setitem(ApiSettings.model_config, "env_file", file)
    with as_nobody(), pytest.raises(SetupProblem, match=r"\.env cannot be read by user"):
        load_settings()


def test_another_file_of_settings_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "mine.env").write_text("API_PORT=1234\n")
    show = "from common.settings import ApiSettings; print(ApiSettings().port)"
    environment = {"STENO_ENV_FILE": str(tmp_path / "mine.env"), "PYTHONPATH": str(ROOT)}
    done = run_python("-c", show, env=environment)
    assert done.stdout == "1234\n"


def test_secrets_are_files_by_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "DATABASE_PASSWORD").write_text("s3cret\n")
    monkeypatch.setitem(DatabaseSettings.model_config, "secrets_dir", tmp_path)
    password = DatabaseSettings().password
    assert password is not None
    assert password.get_secret_value() == "s3cret"
