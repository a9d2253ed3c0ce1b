"""Files and folders that no other user of the host can read, whatever the umask is.

They are made with their modes: changed afterwards, they could be opened in between.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, FOLDER = 0o600, 0o700
SHARED_FILE, SHARED_FOLDER = 0o640, 0o2770
"""For the members of a group, who may add and remove files; what is made inside is the group's."""
UMASK = 0o077
"""For child processes, whose programs choose the modes of their files by themselves."""


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Who may use what is written: this process's user, and the members of ``group`` (its id)."""

    group: int | None = None

    def opener(self, path: str, flags: int) -> int:
        """Open a file as `open` asks its ``opener`` to."""
        descriptor = os.open(path, flags, FILE)
        if self.group is not None and flags & os.O_CREAT:
            status = os.fstat(descriptor)
            if status.st_uid == os.geteuid() and status.st_gid != self.group:
                os.fchown(descriptor, -1, self.group)
            if status.st_uid == os.geteuid():
                os.fchmod(descriptor, SHARED_FILE)
        return descriptor

    def open(self, path: Path, mode: str) -> Any:
        """Open a file, and make it where the mode says so."""
        return open(path, mode, opener=self.opener)

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it; an existing one stays as it is."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        try:
            path.mkdir(FOLDER)
        except FileExistsError:  # by another process, just now
            return
        if self.group is not None:
            os.chown(path, -1, self.group)
            path.chmod(SHARED_FOLDER)


OWN = FileAccess()
"""This process's user alone."""
