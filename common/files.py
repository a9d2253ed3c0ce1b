"""Files and folders that other users of the host cannot read, whatever the umask.

They are created with their modes: set afterwards, they could be opened in between.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, FOLDER = 0o600, 0o700
SHARED_FILE, SHARED_FOLDER = 0o640, 0o2770
"""For a group, whose members may add and remove files; what is created inside is the group's."""
UMASK = 0o077
"""For child processes that choose the modes of their files themselves."""


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Who may use the files: this process's user, and the members of ``group`` (its id)."""

    group: int | None = None

    def opener(self, path: str, flags: int) -> int:
        """Open a file, as an ``opener`` for `open`."""
        descriptor = os.open(path, flags, FILE)
        if self.group is not None and flags & os.O_CREAT:
            status = os.fstat(descriptor)
            if status.st_uid == os.geteuid() and status.st_gid != self.group:
                os.fchown(descriptor, -1, self.group)
            if status.st_uid == os.geteuid():
                os.fchmod(descriptor, SHARED_FILE)
        return descriptor

    def open(self, path: Path, mode: str) -> Any:
        """Open a file, and create it where the mode says so."""
        return open(path, mode, opener=self.opener)

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents; an existing one stays as it is."""
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
"""Access for this process's user only."""
