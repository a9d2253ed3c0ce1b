"""Storage on a file system that gateways and workers share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, get_args
from uuid import UUID, uuid4

from common.errors import NotFound, StorageFull
from common.files import OWN, FileAccess
from common.storage.storage import Erased, Made, Storage, ids, storage_errors

PEAKS = "peaks.dat"
PAGE = 1000
"""Jobs on a page of `LocalStorage.jobs_with`."""


class LocalStorage(Storage):
    """Files in three folders; ``temp`` must be on the same file system as ``root``.

    A recording moves from ``temp`` to its place after its commit: every file in place has a row.
    """

    def __init__(self, root: Path, temp: Path, results: Path, access: FileAccess = OWN) -> None:
        self._access = access
        self._root = root
        self._temp = temp
        self._results = results

    def prepare(self) -> None:
        """Create the folders, and check that they are writable."""
        ours = (self._root / name for name in ("recordings", "chunks", "peaks"))
        for folder in (*ours, self._temp, self._results):
            with storage_errors():
                self._access.make_folder(folder)
            with suppress(StorageFull):  # reported when something is written
                check_writable(folder)

    def check(self) -> None:
        check_writable(self._temp)

    # --- recordings -----------------------------------------------------------------------------

    def secure(self, recording_id: UUID) -> None:
        """Nothing to do: the writer has synced it, on the file system that it stays on."""

    def keep(self, recording_id: UUID) -> None:
        place = self._place(recording_id)
        with storage_errors():
            try:
                self.incoming(recording_id).rename(place)
            except FileNotFoundError:
                if place.exists():
                    return
                raise
            _sync_folder(place.parent)

    def discard(self, recording_id: UUID) -> None:
        with storage_errors():
            self.incoming(recording_id).unlink(missing_ok=True)

    def open_recording(self, recording_id: UUID) -> BinaryIO:
        with storage_errors():
            return self._found(recording_id).open("rb")

    def offer(self, recording_id: UUID, *, media_type: str, disposition: str) -> Path:  # noqa: ARG002
        return self._found(recording_id)

    def unsettled(self, older_than_s: float) -> Iterator[list[UUID]]:
        """Recordings in ``temp`` that have not grown for a while; one page, as they are few."""
        if found := list(self._left_behind(older_than_s)):
            yield found

    def _found(self, recording_id: UUID) -> Path:
        """Its file; moves it into place if the gateway crashed before that."""
        place = self._place(recording_id)
        if not place.exists():
            if not self.incoming(recording_id).exists():
                raise NotFound(what="stored recording", value=recording_id)
            self.keep(recording_id)
        return place

    def _place(self, recording_id: UUID) -> Path:
        return self._root / "recordings" / str(recording_id)

    # --- chunks' audio --------------------------------------------------------------------------

    def write_chunk(self, job_id: UUID, index: int, pcm: bytes) -> None:
        with _fenced(job_id):
            write_atomically(self._chunks(job_id) / f"{index}.pcm", pcm, self._access)

    def read_chunk(self, job_id: UUID, index: int) -> bytes:
        path = self._chunks(job_id) / f"{index}.pcm"
        with storage_errors():
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                raise NotFound(what="stored audio of chunk", value=index) from error

    def drop_chunks(self, job_id: UUID) -> None:
        with storage_errors():
            _erase_folder(self._chunks(job_id))

    def _chunks(self, job_id: UUID) -> Path:
        return self._root / "chunks" / str(job_id)

    # --- peaks ----------------------------------------------------------------------------------

    def write_peaks(self, job_id: UUID, peaks: bytes) -> None:
        with _fenced(job_id):
            write_atomically(self._peaks(job_id) / PEAKS, peaks, self._access)

    def read_peaks(self, job_id: UUID) -> bytes:
        with storage_errors():
            try:
                return (self._peaks(job_id) / PEAKS).read_bytes()
            except FileNotFoundError as error:
                raise NotFound(what="peaks of job", value=job_id) from error

    def _peaks(self, job_id: UUID) -> Path:
        return self._root / "peaks" / str(job_id)

    # --- finished transcripts -------------------------------------------------------------------

    def write_result(self, job_id: UUID, name: str, content: bytes) -> None:
        with _fenced(job_id):
            write_atomically(self._results / str(job_id) / name, content, self._access)

    # --- everything of a job --------------------------------------------------------------------

    def begin(self, made: Made, job_id: UUID) -> None:
        with storage_errors():
            self._access.make_folder(self._all(made) / str(job_id))

    def erase(self, job_id: UUID, recording_id: UUID | None) -> Erased:
        with storage_errors():
            folders = (self._all(made) / str(job_id) for made in get_args(Made))
            erased = sum(map(_erase_folder, folders), Erased())
            if recording_id is not None:
                erased += _erase_file(self._place(recording_id))
                erased += _erase_file(self.incoming(recording_id))
        return erased

    def jobs_with(self, made: Made) -> Iterator[list[UUID]]:
        with storage_errors(), os.scandir(self._all(made)) as entries:
            found = ids(entry.name for entry in entries)
            while page := list(islice(found, PAGE)):
                yield page

    def _all(self, made: Made) -> Path:
        return self._results if made == "results" else self._root / made


@contextmanager
def _fenced(job_id: UUID) -> Iterator[None]:
    """Convert a missing folder to an error: its job was erased.

    Raises:
        NotFound: the folder is missing.
    """
    with storage_errors():
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(what="place for files of job", value=job_id) from error


def check_writable(folder: Path) -> None:
    """Raise `StorageFull` or `Unavailable` unless a file can be written in ``folder``."""
    path = folder / f".check-{os.getpid()}-{threading.get_ident()}"
    with storage_errors():
        try:
            with OWN.open(path, "wb") as file:
                file.write(b"is there space?")
        finally:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, access: FileAccess) -> None:
    """Write a file durably and atomically."""
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with access.open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _erase_folder(folder: Path) -> Erased:
    try:
        files = list(folder.iterdir())
    except FileNotFoundError:
        return Erased()
    erased = sum(map(_erase_file, files), Erased())
    with suppress(FileNotFoundError):
        folder.rmdir()
    return erased


def _erase_file(path: Path) -> Erased:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return Erased()
    return Erased(1, size)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
