"""Storage of recordings, of their peaks and the chunks' audio, and of finished transcripts.

A recording is stored in four steps, in every kind of storage::

    write the file of storage.create(id), which is at storage.incoming(id)
    storage.secure(id)      # make it durable: with S3 it now survives this machine
    commit its row
    storage.keep(id)        # or storage.discard(id), when nothing was committed

So every row has its recording, and a recording without a row was never acknowledged: cleaning up
cannot delete one that a client was told is safe.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import UUID

from common.errors import StorageFull, Unavailable
from common.files import FileAccess

Made = Literal["chunks", "peaks", "results"]
"""What is derived from recordings; a folder a job."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The number and the size in bytes of erased files."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(self.files + other.files, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A recording of ``size`` bytes, to be read in parts.

    ``fetch(start, count)`` returns exactly these bytes, in any thread, or raises NotFound or
    Unavailable.
    """

    size: int
    fetch: Callable[[int, int], bytes]


class Storage(ABC):
    """All methods are thread-safe, and may be repeated after a failure.

    Besides what each method names, they raise:
        StorageFull: no space or no quota is left.
        Unavailable: the storage cannot be reached, or fails.
    """

    _temp: Path
    _access: FileAccess

    @abstractmethod
    def prepare(self) -> None:
        """Create what must exist; once in each process."""

    @abstractmethod
    def check(self) -> None:
        """Raise unless the storage works."""

    # --- recordings -----------------------------------------------------------------------------

    def incoming(self, recording_id: UUID) -> Path:
        """The local file of a recording that is still being received."""
        return self._temp / f"{recording_id}.part"

    def create(self, recording_id: UUID) -> BinaryIO:
        """Create that file, which must not exist, for writing and reading."""
        with storage_errors():
            file: BinaryIO = self._access.open(self.incoming(recording_id), "x+b")
        return file

    def _left_behind(self, older_than_s: float) -> Iterator[UUID]:
        """The recordings of such files that have not grown for a while."""
        with storage_errors():
            for path in self._temp.glob("*.part"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > older_than_s:
                        yield from ids([path.stem])

    @abstractmethod
    def secure(self, recording_id: UUID) -> None:
        """Make a whole recording durable, before its commit.

        May take as long as copying the recording.
        """

    @abstractmethod
    def keep(self, recording_id: UUID) -> None:
        """Move a committed recording to its final place; repeating does nothing."""

    @abstractmethod
    def discard(self, recording_id: UUID) -> None:
        """Delete a recording that was not committed, if there is one."""

    @abstractmethod
    def open_recording(self, recording_id: UUID) -> BinaryIO:
        """Open a committed recording for reading; it is seekable.

        Raises:
            NotFound: it is missing.
        """

    @abstractmethod
    def offer(
        self, recording_id: UUID, *, media_type: str, disposition: str
    ) -> Path | str | Stored:
        """How to send a committed recording to a client: as a file, by a URL, or in parts.

        The URL works for a limited time, for anybody who has it, and answers with these headers.

        Raises:
            NotFound: it is missing.
        """

    @abstractmethod
    def unsettled(self, older_than_s: float) -> Iterator[list[UUID]]:
        """Pages of older recordings that may be neither kept nor discarded."""

    # --- chunks' audio --------------------------------------------------------------------------

    @abstractmethod
    def write_chunk(self, job_id: UUID, index: int, pcm: bytes) -> None:
        """Store a chunk's 16 kHz mono 16-bit PCM atomically.

        Raises:
            NotFound: its place was erased, or never created.
        """

    @abstractmethod
    def read_chunk(self, job_id: UUID, index: int) -> bytes:
        """A chunk's PCM.

        Raises:
            NotFound: it is missing.
        """

    @abstractmethod
    def drop_chunks(self, job_id: UUID) -> None:
        """Delete the chunks' audio of an ended job; the recording stays."""

    # --- peaks ----------------------------------------------------------------------------------

    @abstractmethod
    def write_peaks(self, job_id: UUID, peaks: bytes) -> None:
        """Store the peaks of a job's recording (`common.audio.peaks`) atomically.

        Raises:
            NotFound: its place was erased, or never created.
        """

    @abstractmethod
    def read_peaks(self, job_id: UUID) -> bytes:
        """The peaks of a job's recording.

        Raises:
            NotFound: they are missing.
        """

    # --- finished transcripts -------------------------------------------------------------------

    @abstractmethod
    def write_result(self, job_id: UUID, name: str, content: bytes) -> None:
        """Write a result file of a finished job, for users who collect files.

        Raises:
            NotFound: its place was erased, or never created.
        """

    # --- everything of a job --------------------------------------------------------------------

    @abstractmethod
    def begin(self, made: Made, job_id: UUID) -> None:
        """Create the place for such files of a job; check the claim after that."""

    @abstractmethod
    def erase(self, job_id: UUID, recording_id: UUID | None) -> Erased:
        """Delete a job's recording, chunks' audio, peaks and results; may be repeated."""

    @abstractmethod
    def jobs_with(self, made: Made) -> Iterator[list[UUID]]:
        """Pages of the jobs that have such files, or a place for them."""


def ids(names: Iterable[str]) -> Iterator[UUID]:
    """The ids among ``names``; other names are not ours."""
    for name in names:
        with suppress(ValueError):
            yield UUID(name)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Convert the operating system's errors.

    Raises:
        StorageFull: no space or no quota is left.
        Unavailable: any other error.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageFull from error
        reason, final = _why(error)
        raise Unavailable(what="The storage", reason=reason, final=final) from error


def is_full(error: BaseException) -> bool:
    """Whether the error means that no space, or no quota, is left."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return isinstance(error, OSError) and error.errno in full


def check_space(folder: Path, least: int) -> None:
    """Raise `StorageFull` where fewer than ``least`` bytes are free."""
    with storage_errors():
        if shutil.disk_usage(folder).free < least:
            raise StorageFull


def _why(error: OSError) -> tuple[str, bool]:
    """The reason, and whether it stays until somebody changes the set-up."""
    text = error.strerror or type(error).__name__
    if error.filename is None:
        return text, False
    path = Path(os.fsdecode(error.filename))
    if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{path}: {text}", False
    folder = next(place for place in path.parents if _is_visible(place))
    whose = f"it belongs to user {folder.stat().st_uid}, and this process is {os.geteuid()}"
    return f"{folder} cannot be used: {text}; {whose} (see DATA_DIR and UPLOAD_DIR)", True


def _is_visible(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its parent cannot be read, either
        return False
