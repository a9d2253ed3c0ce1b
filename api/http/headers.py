"""Names of the files that are answered."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote

from common.filenames import NAMELESS


def attachment(name: str | None, ending: str) -> str:
    """The Content-Disposition of a file made from the recording ``name`` (RFC 6266)."""
    return disposition(f"{PurePosixPath(name or NAMELESS).stem}.{ending}")


def disposition(full: str) -> str:
    """The Content-Disposition of a file that is to be saved as ``full``."""
    plain = unicodedata.normalize("NFKD", full).encode("ascii", "ignore").decode()
    plain = "".join("_" if letter in '"\\%' else letter for letter in plain)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(full, safe='')}"
