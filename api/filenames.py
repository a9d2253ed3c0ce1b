"""Names of the files that are answered."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote

from common.filenames import NAMELESS


def attachment(name: str | None, ending: str) -> str:
    """The Content-Disposition of a file made from the recording ``name`` (RFC 6266)."""
    full = f"{PurePosixPath(name or NAMELESS).stem}.{ending}"
    plain = unicodedata.normalize("NFKD", full).encode("ascii", "ignore").decode()
    plain = "".join("_" if letter in '"\\%' else letter for letter in plain)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(full, safe='')}"
