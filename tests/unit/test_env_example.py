""".env.example: it has what the settings do."""

from __future__ import annotations

import re
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic_settings import BaseSettings

from common.settings import ROOT, AsrSettings
from scripts.env_example import TARGET, names, render
from tests.support.programs import run_python
from tests.support.setting_names import every_name, groups

SAMPLES = {
    "API_PUBLIC_URL": "https://steno.example.org",
    "API_ROOT_PATH": "/steno",
    "ENHANCED_AI_BASE_URL": "http://ollama:11434/v1",
}
"""Of settings that are unset, and not anything."""


def lines_with_values() -> dict[str, str | None]:
    lines = re.findall(r"^#([A-Z][A-Z0-9_]*=.*)$", TARGET.read_text("utf-8"), re.MULTILINE)
    return dotenv_values(stream=StringIO("\n".join(lines)), interpolate=False)


def test_it_has_every_setting_once() -> None:
    listed = re.findall(r"^#([A-Z][A-Z0-9_]*)=", TARGET.read_text("utf-8"), re.MULTILINE)
    assert listed == [names(group, field)[0] for group in groups() for field in group.model_fields]
    assert len(listed) == len(set(listed))


def test_a_shell_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(TARGET.read_text("utf-8").replace("\n#", "\n").replace("\n ", "\n# "))
    done = subprocess.run(
        ["sh", "-euc", f'. {file}; printf %s "$MODEL_FOR"'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", AsrSettings().model_for)


def test_it_names_nothing_of_the_machine_it_was_made_on() -> None:
    assert str(ROOT) not in render()


def test_uncommented_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, _, name in every_name():
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "env"
    file.write_text(TARGET.read_text("utf-8").replace("\n#", "\n"))
    for group in groups():
        by_default = group(_env_file=None)
        from_file = group(_env_file=file)
        assert from_file == by_default


@pytest.mark.parametrize(("group", "field", "name"), every_name())
def test_every_name_in_it_reaches_its_setting(
    group: type[BaseSettings], field: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in names(group, field):
        monkeypatch.delenv(each, raising=False)
    value = lines_with_values()[names(group, field)[0]] or SAMPLES.get(name, "1")
    monkeypatch.setenv(name, value)
    assert field in group(_env_file=None).model_fields_set


def test_it_is_up_to_date_and_a_check_finds_when_it_is_not(tmp_path: Path) -> None:
    old = tmp_path / ".env.example"
    old.write_text("#API_PORT=1\n")
    check = ("-m", "scripts.env_example", "--check")
    done = run_python(*check, old)
    assert done.returncode == 1
    assert "python -m scripts.env_example" in done.stderr
    assert old.read_text() == "#API_PORT=1\n"
    done = run_python(*check)
    assert (done.returncode, done.stderr) == (0, "")
