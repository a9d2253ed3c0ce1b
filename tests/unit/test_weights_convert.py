from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.weights import convert
from common.weights.checkpoint import read_transformers
from common.weights.ct2 import read_ct2, read_vocabulary, write_ct2
from common.weights.ggml import _q8_0, mel_filters, read_ggml, write_ggml
from common.weights.whisper import NotConvertible, Whisper, tensor_names
from tests.support.checkpoints import write_checkpoint

WIDTH, AUDIO_LAYERS, TEXT_LAYERS, BANDS = 64, 2, 1, 80
VOCABULARY = ("a", "Ġb", "Ã¡", "Ċ", "<|endoftext|>", "<|startoftranscript|>", "<|vi|>", "<|0.00|>")


def shape_of(name: str) -> tuple[int, ...]:
    if name == "decoder.token_embedding.weight":
        return len(VOCABULARY), WIDTH
    if name == "decoder.positional_embedding":
        return 448, WIDTH
    if name == "encoder.positional_embedding":
        return 1500, WIDTH
    if name.startswith("encoder.conv") and name.endswith(".weight"):
        return WIDTH, BANDS if "conv1" in name else WIDTH, 3
    if ".mlp.0." in name:
        return (4 * WIDTH, WIDTH) if name.endswith(".weight") else (4 * WIDTH,)
    if ".mlp.2.weight" in name:
        return WIDTH, 4 * WIDTH
    is_matrix = name.endswith(".weight") and "_ln." not in name and ".ln" not in name
    return (WIDTH, WIDTH) if is_matrix else (WIDTH,)


@pytest.fixture(scope="module")
def toy() -> Whisper:
    """A Whisper of one head, with numbers that float16 holds exactly."""
    random = np.random.default_rng(7)
    names = tensor_names(AUDIO_LAYERS, TEXT_LAYERS)
    tensors = {n: random.standard_normal(shape_of(n)).astype(np.float16) for n in names}
    return Whisper(tensors, VOCABULARY)


@pytest.fixture
def folder(toy: Whisper, tmp_path: Path) -> Path:
    """The toy as a faster-whisper folder."""
    path = tmp_path / "faster-whisper-toy"
    path.mkdir()
    write_ct2(toy, path / "model.bin")
    (path / "vocabulary.json").write_text(json.dumps(VOCABULARY), "utf-8")
    (path / "tokenizer.json").write_text("{}", "utf-8")
    config = {"alignment_heads": [[9, 9]], "lang_ids": [6], "suppress_ids": [], "x": 1}
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return path


def assert_same_tensors(one: Whisper, other: Whisper) -> None:
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.squeeze(), other.tensors[name].squeeze(), name)


def test_the_mel_filters_are_bit_by_bit_those_that_openai_ships() -> None:
    # sha256 of the 80 x 201 little-endian float32 in the header of every official ggml file
    digest = hashlib.sha256(mel_filters(80).astype("<f4").tobytes()).hexdigest()
    assert digest == "85818f156f7e189453901a515e4726d270d307f976e161cf9403e8caab405498"
    assert mel_filters(128).shape == (128, 201)


def test_tensors_survive_the_way_through_ctranslate2(toy: Whisper, folder: Path) -> None:
    read = read_ct2(folder)
    assert_same_tensors(toy, read)
    assert read.vocabulary == VOCABULARY
    assert (read.audio_layers, read.text_layers) == (AUDIO_LAYERS, TEXT_LAYERS)


def test_tensors_survive_the_way_through_ggml(toy: Whisper, tmp_path: Path) -> None:
    write_ggml(toy, tmp_path / "toy.bin")
    read = read_ggml(tmp_path / "toy.bin")
    assert_same_tensors(toy, read)
    assert read.vocabulary == VOCABULARY[: VOCABULARY.index("<|endoftext|>")]


def test_there_and_back_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    convert.ct2_to_ggml(folder, tmp_path / "toy.bin")
    (tmp_path / "back").mkdir()
    convert.ggml_to_ct2(tmp_path / "toy.bin", tmp_path / "back", folder)
    for name in ("model.bin", "vocabulary.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((tmp_path / "back" / "config.json").read_text("utf-8"))
    assert config["lang_ids"] == [6]
    assert config["alignment_heads"] == [[0, 0]]


def test_eight_bits_stay_within_half_a_step_of_every_weight(toy: Whisper, tmp_path: Path) -> None:
    write_ggml(toy, tmp_path / "f16.bin")
    convert.quantize_ggml(tmp_path / "f16.bin", tmp_path / "q8_0.bin")
    assert (tmp_path / "q8_0.bin").stat().st_size < 0.9 * (tmp_path / "f16.bin").stat().st_size
    tensor = toy.tensors["encoder.blocks.0.mlp.0.weight"]
    packed = np.frombuffer(_q8_0(tensor), np.uint8).reshape(-1, 34)
    scales = packed[:, :2].copy().view("<f2").astype(np.float32)
    restored = packed[:, 2:].copy().view(np.int8) * scales
    blocks = tensor.astype(np.float32).reshape(-1, 32)
    # half a step of rounding, and the scale itself is rounded to float16
    assert (np.abs(restored - blocks) <= scales * (0.5 + 127 * 2**-11)).all()


def test_a_block_of_zeros_stays_zero() -> None:
    assert _q8_0(np.zeros((1, 32), np.float16)) == bytes(34)


def test_progress_counts_every_byte_of_the_tensors(toy: Whisper, tmp_path: Path) -> None:
    written: list[int] = []
    write_ct2(toy, tmp_path / "model.bin", tick=written.append)
    tensors = sum(tensor.nbytes for tensor in toy.tensors.values())
    assert tensors <= sum(written) <= (tmp_path / "model.bin").stat().st_size


# --- what is rejected --------------------------------------------------------------------------


def test_a_quantized_file_is_no_source(toy: Whisper, tmp_path: Path) -> None:
    write_ggml(toy, tmp_path / "q8_0.bin", q8_0=True)
    with pytest.raises(NotConvertible, match="quantized"):
        read_ggml(tmp_path / "q8_0.bin")


@pytest.mark.parametrize("keep", [3, 40, 60, 65_000, 400_000])
def test_a_cut_file_is_rejected(toy: Whisper, folder: Path, tmp_path: Path, keep: int) -> None:
    write_ggml(toy, tmp_path / "toy.bin")
    for path in (tmp_path / "toy.bin", folder / "model.bin"):
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NotConvertible):
        read_ggml(tmp_path / "toy.bin")
    with pytest.raises(NotConvertible):
        read_ct2(folder)


def test_something_else_altogether_is_rejected(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "song.bin").write_bytes(b"la la la" * 100)
    (folder / "model.bin").write_bytes(b"la la la" * 100)
    with pytest.raises(NotConvertible, match="not a ggml file"):
        read_ggml(tmp_path / "song.bin")
    with pytest.raises(NotConvertible, match="not a CTranslate2 Whisper"):
        read_ct2(folder)


def test_another_vocabulary_is_rejected(toy: Whisper, folder: Path, tmp_path: Path) -> None:
    write_ggml(toy, tmp_path / "toy.bin")
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY[:-1]), "utf-8")
    with pytest.raises(NotConvertible, match="have different vocabularies"):
        convert.ggml_to_ct2(tmp_path / "toy.bin", tmp_path, folder)


# --- PyTorch checkpoints -----------------------------------------------------------------------


def write_toy_checkpoint(toy: Whisper, folder: Path) -> None:
    """The toy as transformers would save it."""
    shaped = {name: tensor.reshape(shape_of(name)) for name, tensor in toy.tensors.items()}
    write_checkpoint(shaped, folder)
    tokenizer = {
        "model": {"vocab": {text: index for index, text in enumerate(VOCABULARY[:4])}},
        "added_tokens": [{"id": index, "content": VOCABULARY[index]} for index in (4, 5, 6)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    generation = {"suppress_tokens": [1, 2], "begin_suppress_tokens": [0, 4]}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")


def test_a_checkpoint_gives_the_same_weights(toy: Whisper, folder: Path, tmp_path: Path) -> None:
    write_toy_checkpoint(toy, tmp_path / "checkpoint")
    result = tmp_path / "result"
    result.mkdir()
    convert.transformers_to_ct2(tmp_path / "checkpoint", result)
    assert (result / "model.bin").read_bytes() == (folder / "model.bin").read_bytes()
    assert read_vocabulary(result) == VOCABULARY
    assert json.loads((result / "config.json").read_text("utf-8")) == {
        "alignment_heads": [[0, 0]],
        "lang_ids": [6],
        "suppress_ids": [1, 2],
        "suppress_ids_begin": [0, 4],
    }


def checkpoint_with(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/data.pkl", pickled)
    return path


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.makedirs, (str(trace),)

    with pytest.raises(NotConvertible, match=r"uses os\.makedirs"):
        read_transformers(checkpoint_with(pickle.dumps(Attack(), protocol=2), tmp_path))
    assert not trace.exists()


def test_a_tensor_that_reaches_out_of_its_storage_is_rejected(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(5)}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        pickled = archive.read("whole/data.pkl")
    with pytest.raises(NotConvertible, match="outside its storage"):
        read_transformers(checkpoint_with(pickled, tmp_path))
