"""Wheels that pip installs, made on the spot."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_wheel(
    folder: Path, name: str, members: Mapping[str, bytes], version: str = "1.0"
) -> Path:
    """Write a package of these files into ``folder``, as pip looks for it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
        for file, text in texts.items():
            wheel.writestr(f"{name}-{version}.dist-info/{file}", text)
    return path
