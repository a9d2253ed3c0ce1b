"""File names for display and for archives; here they never become part of a path."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import count

MAX_BYTES = 255
NAMELESS = "recording"

_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}
_BIDI_CONTROLS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They can make ``gpj.exe`` look like ``exe.jpg``."""
_NOT_IN_FILES = str.maketrans(dict.fromkeys('<>:"|?*/\\', "_"))
"""Characters that Windows has in no name of a file."""


def display_name(sent: str | None) -> str:
    """The name to show for a recording sent as ``sent``: one line, no folders, <= 255 bytes."""
    last = unicodedata.normalize("NFC", sent or "").replace("\\", "/").rpartition("/")[2]
    visible = "".join(
        letter
        for letter in last
        if unicodedata.category(letter) not in _INVISIBLE and letter not in _BIDI_CONTROLS
    ).strip()
    name = _cut(visible, MAX_BYTES)
    return name if name.strip(".") else NAMELESS


def distinct_names(stems: Iterable[str], ending: str) -> list[str]:
    """Names of files with this ending, of <= 255 bytes, that no system takes for the same.

    A later one of the same name gets a number: ``talk.txt``, ``talk (2).txt``.
    """
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for stem in stems:
        safe = display_name(stem).translate(_NOT_IN_FILES).rstrip(". ") or NAMELESS
        for number in count(numbers.get(safe, 1)):
            suffix = f".{ending}" if number == 1 else f" ({number}).{ending}"
            name = _cut(safe, MAX_BYTES - len(suffix)) + suffix
            if name.casefold() not in names:
                names[name.casefold()] = name
                numbers[safe] = number + 1
                break
    return list(names.values())


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore").rstrip()
