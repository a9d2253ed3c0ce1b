"""What several of these tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripted_gateway import ScriptedGateway


@pytest.fixture
def server() -> Iterator[ScriptedGateway]:
    with ScriptedGateway() as server:
        yield server


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Give the handlers back that a command in this process replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder
