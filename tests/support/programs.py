"""Programs that tests run to their end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from common.settings import ROOT


def run_program(
    *command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a program printed, and its exit code."""
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def run_python(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same of Python, in the project's folder."""
    return run_program(sys.executable, *arguments, env=env)
