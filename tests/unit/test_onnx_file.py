from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from common.weights.onnx_file import read_metadata


def model(**metadata: str) -> Any:
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "graph", [], [])
    made = helper.make_model(graph, producer_name="a test", doc_string="of all kinds of fields")
    helper.set_model_props(made, metadata)
    return made


@given(metadata=st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_metadata_is_read_as_it_was_written(
    metadata: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    path.write_bytes(model(**metadata).SerializeToString())
    assert read_metadata(path) == metadata


def test_wherever_a_file_is_cut_it_is_rejected_or_lacks_what_comes_last(tmp_path: Path) -> None:
    whole = model(first="1", last="2").SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with suppress(ValueError):
            assert read_metadata(path) != {"first": "1", "last": "2"}


@pytest.mark.parametrize("content", [b"", b"{}" * 100, b"\0" * 64, b"\xff" * 64, b"PK\x03\x04" * 9])
def test_what_is_no_onnx_model_is_rejected_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.onnx is"):
        read_metadata(path)
