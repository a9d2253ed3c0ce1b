"""Files inside packages of PyPI and npm, downloaded by pip and npm.

Their own settings apply: indexes, mirrors, proxies and credentials are the user's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from common.weights.manifest import Packages, WeightsSpec
from common.weights.transfer import DownloadOptions, Progress, SourceFailed, is_whole

_BLOCK = 1 << 18
_STARTED_BYTES = 1 << 17
"""More than clients write before they are connected: logs and empty caches."""
_ERROR_MARKS = ("reason:", "connection broken", "notarget", "error")
"""Marks of the line in which pip or npm explains a failure, most specific first."""

Report = Callable[[int], None]
"""Called with the bytes that a client has written so far."""


def fetch(
    source: Packages, spec: WeightsSpec, into: Path, network: DownloadOptions, progress: Progress
) -> None:
    """Download the files of ``spec`` to the folder ``into``.

    A package that was downloaded whole is not downloaded again after an interruption.

    Raises:
        SourceFailed: the client is missing, fails or stalls, or a package lacks a file.
    """
    download = {"pypi": _download_wheel, "npm": _download_tarball}[source.registry]
    folder = into / f".{source.registry}"
    archives = []
    for index, package in enumerate(source.packages):
        done = folder / str(index)
        before = spec.size * index // len(source.packages)

        def report(size: int, before: int = before, package: str = package) -> None:
            progress(min(before + size, spec.size), spec.size, package)

        if not done.is_dir():
            part = folder / f"{index}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            download(package, part, network, report)
            part.replace(done)
        archives += [path for path in sorted(done.iterdir()) if path.suffix in (".whl", ".tgz")]
    try:
        for file in spec.files:
            if not is_whole(into / file.name, file):
                progress(spec.size, spec.size, f"unpacking {file.name}")
                _extract(archives, source.members[file.name], into / file.name)
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as problem:
        raise SourceFailed(f"cannot be unpacked: {problem!r}") from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(package: str, into: Path, network: DownloadOptions, report: Report) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed("pip is not installed in this Python")
    # wheels only: a source distribution would run its own code
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--progress-bar=off", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=1"]
    command += [f"--timeout={network.connect_timeout_s:g}", f"--dest={into}", package]
    _run(command, {"TMPDIR": str(into)}, into, network, report)


def _download_tarball(package: str, into: Path, network: DownloadOptions, report: Report) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceFailed("npm is not installed")
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", f"--pack-destination={into}"]
    settings = {
        "npm_config_cache": str(into / "cache"),
        "npm_config_fetch_retries": "1",
        "npm_config_fetch_retry_mintimeout": "500",
        "npm_config_update_notifier": "false",
    }
    _run([*command, package], settings, into, network, report)


def _run(
    command: list[str],
    settings: dict[str, str],
    into: Path,
    network: DownloadOptions,
    report: Report,
) -> None:
    """Run a client, and watch what it writes under ``into``."""
    with (
        (into / "log").open("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            _watch(process, into, network, report)
        finally:
            process.kill()
    if process.returncode != 0:
        raise SourceFailed(_reason(into / "log"))


def _watch(
    process: subprocess.Popen[bytes], into: Path, network: DownloadOptions, report: Report
) -> None:
    """Wait for a client to end, as long as it makes progress.

    npm waits minutes for a host that does not answer. Three connect timeouts cover its start, the
    package's metadata and one retry.
    """
    size, since = -1, time.monotonic()
    while process.poll() is None:
        now = _bytes_under(into)
        timeout_s = network.stall_timeout_s
        if now < _STARTED_BYTES:
            timeout_s = min(timeout_s, 3 * network.connect_timeout_s)
        if now != size:
            size, since = now, time.monotonic()
            report(size)
        elif time.monotonic() - since > timeout_s:
            raise SourceFailed(f"no data came for {timeout_s:g} s")
        time.sleep(0.1)


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    for mark in _ERROR_MARKS:
        for line in lines:
            if mark in line.lower():
                return line[:200]
    return "its client failed without a reason"


def _bytes_under(folder: Path) -> int:
    total = 0
    # `os.walk`, unlike `Path.rglob`, tolerates folders that are deleted meanwhile.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _extract(archives: Sequence[Path], members: Sequence[str], target: Path) -> None:
    """Write ``members`` of the archives, one after the other, to ``target``."""
    with target.open("wb") as out:
        for member in members:
            if not any(_copy_member(archive, member, out) for archive in archives):
                raise KeyError(member)


def _copy_member(archive: Path, member: str, out: IO[bytes]) -> bool:
    """Append one member to ``out``; False where the archive lacks it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            if member not in wheel.namelist():
                return False
            with wheel.open(member) as part:
                shutil.copyfileobj(part, out, _BLOCK)
            return True
    with tarfile.open(archive) as tarball:
        for info in tarball:
            content = tarball.extractfile(info) if info.name == member else None
            if content is not None:
                shutil.copyfileobj(content, out, _BLOCK)
                return True
    return False
