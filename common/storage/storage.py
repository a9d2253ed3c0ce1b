"""Where recordings, the sound cut from them and finished transcripts are kept.

A recording comes in four steps, whoever takes it in, and whatever the storage::

    write the file of storage.create(id), which is at storage.incoming(id)
    storage.secure(id)      # it survives this machine, if that is what the storage is for
    commit its row
    storage.keep(id)        # or storage.discard(id), when nothing was committed

So whatever has a row is there, and what has none was never promised to anyone: cleaning up can
never touch what a client was told is safe.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol
from uuid import UUID

from common.errors import StorageFull, Unavailable

Made = Literal["chunks", "results"]
"""What workers make of recordings, a folder a job."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased; nothing, when nothing was left."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(self.files + other.files, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A recording of ``size`` bytes that whoever asks for it is passed in parts.

    ``fetch(start, count)`` gives all it is asked for, in any thread, or raises NotFound or
    Unavailable.
    """

    size: int
    fetch: Callable[[int, int], bytes]


class Storage(Protocol):
    """Everything may be called from any thread, and repeated after a failure.

    Raises, beside what each method names:
        StorageFull: no space or no quota is left.
        Unavailable: it cannot be reached, or does not work.
    """

    def prepare(self) -> None:
        """Make ready what has to be there; once in each process."""
        ...

    def check(self) -> None:
        """Raise unless it can be used."""
        ...

    # --- recordings -----------------------------------------------------------------------------

    def incoming(self, recording_id: UUID) -> Path:
        """The file on this machine that a recording is written to while it comes in."""
        ...

    def create(self, recording_id: UUID) -> BinaryIO:
        """Make that file, which does not exist yet, to write and read."""
        ...

    def secure(self, recording_id: UUID) -> None:
        """Have a whole recording where no failure of this process can lose it, before its commit.

        May take as long as the recording takes to copy.
        """
        ...

    def keep(self, recording_id: UUID) -> None:
        """Settle a committed recording; does nothing when that was done before."""
        ...

    def discard(self, recording_id: UUID) -> None:
        """Forget a recording that was not committed; does nothing when there is none."""
        ...

    def open_recording(self, recording_id: UUID) -> BinaryIO:
        """A committed recording, to be read and closed; it can seek.

        Raises:
            NotFound: it is not there.
        """
        ...

    def offer(
        self, recording_id: UUID, *, media_type: str, disposition: str
    ) -> Path | str | Stored:
        """How a client is given a committed recording: as a file, by a URL, or in parts.

        The URL is good for a while, for whoever has it, and answers with these headers.

        Raises:
            NotFound: it is not there.
        """
        ...

    def unsettled(self, older_than_s: float) -> Iterator[list[UUID]]:
        """Recordings, page by page, that came in before and may be neither kept nor discarded."""
        ...

    # --- sound cut for workers ------------------------------------------------------------------

    def begin_chunks(self, job_id: UUID) -> None:
        """Make the place for a job's chunks; the claim is to be checked after that."""
        ...

    def write_chunk(self, job_id: UUID, index: int, pcm: bytes) -> None:
        """Store a chunk's 16 kHz mono 16-bit PCM, whole or not at all.

        Raises:
            NotFound: its place was erased, or never made.
        """
        ...

    def read_chunk(self, job_id: UUID, index: int) -> bytes:
        """A chunk's PCM.

        Raises:
            NotFound: it is not there.
        """
        ...

    def drop_chunks(self, job_id: UUID) -> None:
        """Delete the sound cut for a job that has ended; the recording itself stays."""
        ...

    # --- finished transcripts -------------------------------------------------------------------

    def begin_results(self, job_id: UUID) -> None:
        """Make the place for a job's results; the claim is to be checked after that."""
        ...

    def write_result(self, job_id: UUID, name: str, content: bytes) -> None:
        """Leave a file of a finished job for those who collect files and not answers.

        Raises:
            NotFound: its place was erased, or never made.
        """
        ...

    # --- all there is of a job ------------------------------------------------------------------

    def erase(self, job_id: UUID, recording_id: UUID | None) -> Erased:
        """Delete a job's recording, sound and results; may be repeated until nothing is left."""
        ...

    def jobs_with(self, made: Made) -> Iterator[list[UUID]]:
        """The jobs that have such files, or a place for them, page by page."""
        ...


def ids(names: Iterable[str]) -> Iterator[UUID]:
    """Those of ``names`` that are ids; others are somebody else's."""
    for name in names:
        with suppress(ValueError):
            yield UUID(name)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the operating system's errors into ours.

    Raises:
        StorageFull: no space or no quota is left.
        Unavailable: anything else went wrong.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageFull from error
        reason, final = _why(error)
        raise Unavailable(what="The storage", reason=reason, final=final) from error


def is_full(error: BaseException) -> bool:
    """Whether it says that no space, or no quota, is left."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return isinstance(error, OSError) and error.errno in full


def check_space(folder: Path, least: int) -> None:
    """Raise `StorageFull` where fewer than ``least`` bytes are free."""
    with storage_errors():
        if shutil.disk_usage(folder).free < least:
            raise StorageFull


def _why(error: OSError) -> tuple[str, bool]:
    """What went wrong, and whether somebody has to do something about it."""
    said = error.strerror or type(error).__name__
    if error.filename is None:
        return said, False
    path = Path(os.fsdecode(error.filename))
    if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{path}: {said}", False
    folder = next(place for place in path.parents if _is_seen(place))
    whose = f"it belongs to user {folder.stat().st_uid}, and this process is {os.geteuid()}"
    return f"{folder} cannot be used: {said}; {whose} (see DATA_DIR and UPLOAD_DIR)", True


def _is_seen(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # nor may its parent be looked into
        return False
