"""File names for display; they never become part of a path."""

from __future__ import annotations

import unicodedata

MAX_BYTES = 255
NAMELESS = "recording"

_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}
_BIDI_CONTROLS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They can make ``gpj.exe`` look like ``exe.jpg``."""


def display_name(sent: str | None) -> str:
    """The name to show for a recording sent as ``sent``: one line, no folders, <= 255 bytes."""
    last = unicodedata.normalize("NFC", sent or "").replace("\\", "/").rpartition("/")[2]
    visible = "".join(
        letter
        for letter in last
        if unicodedata.category(letter) not in _INVISIBLE and letter not in _BIDI_CONTROLS
    ).strip()
    name = visible.encode()[:MAX_BYTES].decode(errors="ignore").strip()
    return name if name.strip(".") else NAMELESS
