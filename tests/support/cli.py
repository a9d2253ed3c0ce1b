"""The command `steno` in processes of its own, without the settings of this environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from common.settings import ROOT

OURS = {"DATABASE_URL", "REDIS_URL", "REDIS_HOST", "API_PORT", "API_HOST", "STENO_SERVER"}


def start_steno(
    data_dir: Path,
    *arguments: str | Path,
    text: bool = True,
    settings: Mapping[str, str] | None = None,
) -> Popen[Any]:
    """Start it over a data directory, with pipes; ``settings`` are environment variables."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    environment = {
        "DATA_DIR": str(data_dir),
        "MODELS_DIR": str(ROOT / "models"),
        "PYTHONPATH": str(ROOT),
    }
    return Popen(
        [sys.executable, "-m", "scripts", *map(str, arguments)],
        env={**kept, **environment, **(settings or {})},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        text=text,
    )
