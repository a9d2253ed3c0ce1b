from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest

from common.errors import UnknownOption, WeightsCorrupt, WeightsMissing, WeightsUnusable
from common.weights.manifest import EVERY_LANGUAGE, FileSpec, Manifest, WeightsSpec
from common.weights.sherpa import find_parts
from common.weights.store import WeightsStore
from tests.support.offline_networks import (
    write_moonshine,
    write_nemo_ctc,
    write_offline_zipformer2,
)
from tests.support.streaming_networks import (
    write_tokens,
    write_zipformer2,
    write_zipformer2_ctc,
)

TENSORS, CONFIG = b"tensors of a toy", b"{}"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spec(engine: str, language: str, files: Mapping[str, bytes | None]) -> WeightsSpec:
    """Weights called toy; of files without content no hash is published."""
    specs = [
        FileSpec(name) if content is None else FileSpec(name, len(content), sha256(content))
        for name, content in files.items()
    ]
    return WeightsSpec(engine, "toy", (language,), "MIT", tuple(specs), ())


FOLDER = spec("faster-whisper", "vi", {"model.bin": TENSORS, "config.json": CONFIG})
FILE = spec("whisper.cpp", "*", {"ggml-toy.bin": TENSORS})
STREAMING = spec("zipformer", "vi", {"encoder.onnx": TENSORS, "tokens.txt": None})


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    put(tmp_path / "faster-whisper-toy", {"model.bin": TENSORS, "config.json": CONFIG})
    put(tmp_path, {"ggml-toy.bin": TENSORS})
    return WeightsStore(tmp_path, Manifest((FOLDER, FILE)))


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def put_named(folder: Path, *names: str) -> None:
    """Files whose content is their name."""
    put(folder, {name: name.encode() for name in names})


def states(store: WeightsStore) -> dict[tuple[str, str], str]:
    return {(line.engine, line.model): line.state for line in store.states()}


def change_unnoticed(path: Path, content: bytes) -> None:
    """Change bytes the way a failing disk does: size, time and inode stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_are_found_with_the_hash_that_names_them(store: WeightsStore) -> None:
    folder = store.resolve("faster-whisper", "toy")
    assert folder.path == store.root / "faster-whisper-toy"
    assert folder.sha256 == sha256(TENSORS)
    file = store.resolve("whisper.cpp", "toy")
    assert file.path == store.root / "ggml-toy.bin"
    assert [state.languages for state in store.states()] == [("vi",), EVERY_LANGUAGE]


def test_a_hash_is_computed_once_for_all_processes(store: WeightsStore) -> None:
    first = store.resolve("whisper.cpp", "toy")
    change_unnoticed(first.path, b"T")
    assert WeightsStore(store.root, store.manifest).resolve("whisper.cpp", "toy") == first


def test_verify_reads_the_disk_whatever_was_known(store: WeightsStore) -> None:
    path = store.resolve("whisper.cpp", "toy").path
    change_unnoticed(path, b"T")
    with pytest.raises(WeightsCorrupt, match=f"{sha256(b'T' + TENSORS[1:])}.*{sha256(TENSORS)}"):
        store.verify("whisper.cpp", "toy")
    assert states(store)["whisper.cpp", "toy"] == "corrupt"
    with pytest.raises(WeightsCorrupt):
        store.resolve("whisper.cpp", "toy")


def test_verify_reads_every_file_of_a_folder(store: WeightsStore) -> None:
    config = store.root / "faster-whisper-toy" / "config.json"
    config.write_bytes(b"[]")
    assert store.resolve("faster-whisper", "toy").sha256 == sha256(TENSORS)
    with pytest.raises(WeightsCorrupt, match=r"config\.json"):
        store.verify("faster-whisper", "toy")


def test_a_changed_file_is_hashed_again(store: WeightsStore) -> None:
    store.resolve("whisper.cpp", "toy")
    (store.root / "ggml-toy.bin").write_bytes(TENSORS.upper())
    with pytest.raises(WeightsCorrupt, match=sha256(TENSORS.upper())):
        store.resolve("whisper.cpp", "toy")


def test_a_file_of_the_wrong_size_is_corrupt_at_sight(store: WeightsStore) -> None:
    (store.root / "ggml-toy.bin").write_bytes(TENSORS[:-1])
    assert states(store)["whisper.cpp", "toy"] == "corrupt"
    with pytest.raises(WeightsCorrupt, match=sha256(TENSORS[:-1])):
        store.resolve("whisper.cpp", "toy")


def test_weights_that_lack_a_file_are_missing(store: WeightsStore) -> None:
    (store.root / "faster-whisper-toy" / "config.json").unlink()
    assert states(store)["faster-whisper", "toy"] == "missing"
    with pytest.raises(WeightsMissing, match="steno models pull toy --engine faster-whisper"):
        store.resolve("faster-whisper", "toy")


@pytest.mark.parametrize("name", ["../toy", "/etc", "a/b", "", "x\0y"])
def test_no_name_leads_out_of_the_folder(store: WeightsStore, name: str) -> None:
    with pytest.raises(WeightsMissing):
        store.resolve("whisper.cpp", name)


def test_an_unknown_engine_is_named_with_those_there_are(store: WeightsStore) -> None:
    with pytest.raises(UnknownOption, match="one of faster-whisper"):
        store.resolve("vosk", "toy")


@pytest.mark.parametrize("folder", ["mine", "faster-whisper-mine"])
def test_own_weights_are_listed_and_usable(store: WeightsStore, folder: str) -> None:
    put(store.root / folder, {"model.bin": b"fine", "config.json": CONFIG})
    put(store.root, {"ggml-mine.bin": b"tuned"})
    assert states(store)["faster-whisper", "mine"] == "present"
    assert states(store)["whisper.cpp", "mine"] == "present"
    assert [line.own for line in store.states()] == [False, False, True, True]
    assert store.resolve("faster-whisper", "mine").sha256 == sha256(b"fine")
    assert store.resolve("faster-whisper", "mine").path == store.root / folder
    assert store.verify("whisper.cpp", "mine").sha256 == sha256(b"tuned")


def test_published_streaming_weights_have_a_folder_of_their_own(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path, Manifest((STREAMING,)))
    assert states(store) == {("zipformer", "toy"): "missing"}
    put(tmp_path / "zipformer-toy", {"encoder.onnx": TENSORS, "tokens.txt": b"a 0"})
    weights = store.verify("zipformer", "toy")
    assert (weights.path, weights.sha256) == (tmp_path / "zipformer-toy", sha256(TENSORS))
    assert states(store) == {("zipformer", "toy"): "present"}


OWN_NETWORKS = {
    "zipformer": (write_zipformer2, write_zipformer2_ctc),
    "sherpa-onnx": (write_offline_zipformer2, write_nemo_ctc, write_moonshine),
}


@pytest.mark.parametrize(
    ("engine", "write"), [(engine, each) for engine, them in OWN_NETWORKS.items() for each in them]
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_own_networks_are_usable_by_their_engine(
    store: WeightsStore, engine: str, write: Callable[[Path], None], prefixed: bool
) -> None:
    folder = store.root / (f"{engine}-mine" if prefixed else "mine")
    folder.mkdir()
    write(folder)
    weights = store.resolve(engine, "mine")
    assert weights.path == folder
    assert weights.sha256 in {sha256(path.read_bytes()) for path in folder.glob("*.onnx")}
    (mine,) = [state for state in store.states() if state.own]
    assert (mine.engine, mine.model, mine.state) == (engine, "mine", "present")
    assert (mine.languages, mine.problem) == (EVERY_LANGUAGE, None)
    assert store.verify(engine, "mine") == weights


def test_own_networks_that_are_unusable_are_listed_with_the_reason(store: WeightsStore) -> None:
    for name in ("half", "zipformer-streams", "wrong-tokens"):
        (store.root / name).mkdir()
        write_offline_zipformer2(store.root / name)
    (store.root / "half" / "joiner.onnx").unlink()
    write_tokens(store.root / "wrong-tokens", ["<blk>"])
    found = {state.model: state for state in store.states() if state.own}
    problems = {
        "half": "half lacks joiner.onnx",
        "wrong-tokens": "tokens.txt has 1 tokens, the network 6",
    }
    for model, problem in problems.items():
        assert (found[model].engine, found[model].state) == ("sherpa-onnx", "corrupt")
        assert found[model].problem == problem
        with pytest.raises(WeightsUnusable, match=problem):
            store.resolve("sherpa-onnx", model)
    assert found["zipformer-streams"].engine == "sherpa-onnx", "whatever its folder is called"
    with pytest.raises(WeightsMissing, match="steno models pull nowhere --engine zipformer"):
        store.resolve("zipformer", "nowhere")


def test_an_own_network_is_checked_again_when_it_changes(store: WeightsStore) -> None:
    folder = store.root / "mine"
    folder.mkdir()
    write_offline_zipformer2(folder)
    assert states(store)["sherpa-onnx", "mine"] == "present"
    tokens = (folder / "tokens.txt").read_bytes()
    write_tokens(folder, ["<blk>"])
    assert states(store)["sherpa-onnx", "mine"] == "corrupt"
    (folder / "tokens.txt").write_bytes(tokens)
    assert states(store)["sherpa-onnx", "mine"] == "present"


def test_a_network_for_streams_is_for_no_other_engine(store: WeightsStore) -> None:
    (store.root / "mine").mkdir()
    write_zipformer2(store.root / "mine")
    with pytest.raises(WeightsUnusable, match="a streaming transducer network is for zipformer"):
        store.resolve("sherpa-onnx", "mine")


NETWORKS = ("encoder", "decoder", "joiner")
PUBLISHED = list(product(sorted(NETWORKS, reverse=True), (128, 64), ("", ".int8", ".fp16")))


def export(network: str, left: int, bits: str) -> str:
    return f"{network}-epoch-99-avg-1-chunk-16-left-{left}{bits}.onnx"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [export(network, left, bits) for network, left, bits in PUBLISHED],
            [export(network, 128, ".int8") for network in NETWORKS],
        ),
        (
            [
                export(network, left, bits)
                for network, left, bits in PUBLISHED
                if (left, bits) in {(64, ".int8"), (128, ".fp16")}
            ],
            [export(network, 64, ".int8") for network in NETWORKS],
        ),
        (
            ["encoder.int8.onnx", "encoder.onnx", "decoder.onnx", "joiner.int8.onnx"],
            ["encoder.int8.onnx", "decoder.onnx", "joiner.int8.onnx"],
        ),
        (["model.onnx", "model.int8.onnx", "encoder.onnx"], ["model.int8.onnx"]),
        (["model-streaming.onnx", "models.onnx"], ["model-streaming.onnx"]),
    ],
)
def test_of_several_networks_those_of_one_export_in_8_bits_are_chosen(
    tmp_path: Path, names: list[str], chosen: list[str]
) -> None:
    put_named(tmp_path, *names, "tokens.txt")
    parts = find_parts(tmp_path)
    assert parts is not None
    assert [path.name for path in parts.files] == [*chosen, "tokens.txt"]


def test_other_things_in_the_folder_are_no_weights(store: WeightsStore) -> None:
    (store.root / "README.md").write_text("about")
    (store.root / "notes").mkdir()
    (store.root / "ggml-.bin").write_bytes(b"")
    assert len(store.states()) == 2


def test_an_empty_or_absent_folder_lists_what_could_be_there(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "nowhere", Manifest((FOLDER,)))
    (line,) = store.states()
    assert (line.state, line.size) == ("missing", len(TENSORS) + len(CONFIG))
    assert store.present() == []


def test_recorded_hashes_hold_where_none_is_published(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path, Manifest((spec("whisper.cpp", "*", {"ggml-toy.bin": None}),)))
    put(tmp_path, {"ggml-toy.bin": b"first"})
    store.trust("whisper.cpp", "toy", "a test", {"ggml-toy.bin": sha256(b"first")})
    assert store.resolve("whisper.cpp", "toy").sha256 == sha256(b"first")
    put(tmp_path, {"ggml-toy.bin": b"other"})
    with pytest.raises(WeightsCorrupt, match=sha256(b"first")):
        store.resolve("whisper.cpp", "toy")


def test_a_damaged_cache_of_hashes_is_made_anew(store: WeightsStore) -> None:
    for damaged in ("{", '{"ggml-toy.bin": "nonsense"}'):
        (store.root / ".hashes.json").write_text(damaged)
        assert store.resolve("whisper.cpp", "toy").sha256 == sha256(TENSORS)


def test_without_a_cache_of_hashes_each_process_computes_them_once(store: WeightsStore) -> None:
    (store.root / ".hashes.json").mkdir()  # whoever we are, no file can take its place
    files = {path.name for path in store.root.iterdir()}
    path = store.resolve("whisper.cpp", "toy").path
    change_unnoticed(path, TENSORS[::-1])
    assert store.resolve("whisper.cpp", "toy").sha256 == sha256(TENSORS), "hashed anew"
    assert {path.name for path in store.root.iterdir()} == files
    os.utime(path)
    with pytest.raises(WeightsCorrupt):
        store.resolve("whisper.cpp", "toy")
