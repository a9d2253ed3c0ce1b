"""Who can read what is written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import SetupProblem
from common.files import OWN, FileAccess
from common.settings import StorageSettings
from common.storage.opening import open_storage


@pytest.fixture(params=[0o000, 0o077], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def another_group() -> int:
    """One that files of this process are not made with."""
    groups = [group for group in os.getgroups() if group != os.getegid()]
    return groups[0] if groups else os.getegid() + (1 if os.geteuid() == 0 else 0)


def written(settings: StorageSettings) -> Path:
    """A storage with a file of each kind."""
    storage = open_storage(settings)
    for keep in (True, False):
        recording_id = uuid4()
        storage.create(recording_id).close()
        if keep:
            storage.keep(recording_id)
    job_id = uuid4()
    storage.begin("chunks", job_id)
    storage.write_chunk(job_id, 0, b"123")
    storage.begin("results", job_id)
    storage.write_result(job_id, "transcript.txt", b"hello")
    return settings.data_dir


def test_what_is_stored_is_its_owners_alone(tmp_path: Path) -> None:
    folder = written(StorageSettings(data_dir=tmp_path / "made" / "data"))
    for path in [folder.parent, folder, *folder.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_group_may_use_what_is_stored(tmp_path: Path) -> None:
    group = another_group()
    folder = written(StorageSettings(data_dir=tmp_path / "data", data_group=str(group)))
    for path in [folder, *folder.rglob("*")]:
        expected = 0o2770 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
        assert path.stat().st_gid == group


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="no-such-group"):
        open_storage(StorageSettings(data_dir=tmp_path, data_group="no-such-group"))


def test_a_folder_that_was_there_keeps_its_modes(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o775)
    OWN.make_folder(folder / "ours")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o775
    assert stat.S_IMODE((folder / "ours").stat().st_mode) == 0o700


def test_a_file_is_private_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    change = os.fchmod

    def fchmod(descriptor: int, mode: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        change(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)
    with FileAccess(another_group()).open(tmp_path / "a", "w"):
        assert seen == [0o600]
