from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.settings import ROOT

LOAD = "from common.audio.vad import load_network; load_network()"


@pytest.mark.parametrize("off", [True, False])
def test_a_library_that_would_tell_its_makers_of_our_use_is_told_not_to(
    tmp_path: Path, off: bool
) -> None:
    """Where it may, it keeps what it is going to send below the home directory."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        **({} if off else {"ORT_DISABLE_TELEMETRY": "0"}),
    }
    subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True)
    assert bool(list(tmp_path.rglob("*onnxruntime*"))) is not off
