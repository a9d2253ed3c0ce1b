from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.settings import ROOT
from tests.support.programs import run_python

SWITCH = "ORT_DISABLE_TELEMETRY"

LOAD = f"""
import os, sys

import common

print(os.environ["{SWITCH}"], "onnxruntime" in sys.modules)
from common.audio.silero import SileroNetwork

SileroNetwork()
print("onnxruntime" in sys.modules)
"""


@pytest.mark.parametrize(("wanted", "switch"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_by_default(tmp_path: Path, wanted: str | None, switch: str) -> None:
    """It reads the switch when it is imported, and keeps what it would send below the home.

    Whether it does so when it may is its own affair (it looks at the machine): not asserted.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != SWITCH},
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        **({} if wanted is None else {SWITCH: wanted}),
    }
    done = run_python("-c", LOAD, env=environment)
    assert done.stdout.split() == [switch, "False", "True"]
    if switch == "1":
        assert not list(tmp_path.rglob("*onnxruntime*"))
