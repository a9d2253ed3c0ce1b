"""The folder of weights: where they are, whether they are whole, and the hash that names them.

On disk, under one root: `faster-whisper-<model>/`, `sherpa-onnx-<model>/`, `zipformer-<model>/` and
`diarization-<model>/` folders, and `ggml-<model>.bin` files. Weights that the user adds are found
under their own names: any folder with `model.bin` and `config.json`, or with a network of
sherpa-onnx (`common.weights.sherpa`), and any `ggml-*.bin`.

Beside them are `.hashes.json`, a cache that may be deleted, and `weights.lock.json`: for files
whose hash the manifest lacks, the hash of their first pull.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UnknownOption, WeightsCorrupt, WeightsMissing, WeightsUnusable
from common.weights.manifest import (
    DIARIZATION,
    ENGINES,
    EVERY_LANGUAGE,
    FASTER_WHISPER,
    SHERPA_ONNX,
    WHISPER_CPP,
    ZIPFORMER,
    FileSpec,
    Manifest,
    WeightsSpec,
    is_model_name,
)
from common.weights.sherpa import TOKENS, Network, network_in, networks_in

State = Literal["present", "missing", "corrupt"]

Tick = Callable[[int], None]
"""Called with the number of bytes just processed."""

_FOLDER_PREFIXES = {
    FASTER_WHISPER: "faster-whisper-",
    SHERPA_ONNX: "sherpa-onnx-",
    ZIPFORMER: "zipformer-",
    DIARIZATION: "diarization-",
}
_GGML_PREFIX, _GGML_SUFFIX = "ggml-", ".bin"
_OWN_LICENCE = "own"
_OWN_FILES = (FileSpec("model.bin"), FileSpec("config.json"))
"""The files that faster-whisper requires."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that are installed and whole.

    ``path`` is a file for whisper.cpp and a folder for the others. ``sha256`` is that of the
    tensors' file (`model.bin`, the ggml file itself, or a network's encoder or CTC model).
    ``size`` is the sum of the files', in bytes.
    """

    engine: str
    model: str
    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class WeightsState:
    """One line of `steno models list`. ``size`` in bytes: on disk where present, else to download.

    ``own`` marks weights that the manifest does not list. ``problem`` says why weights that are
    present cannot be used, where that is known.
    """

    engine: str
    model: str
    languages: tuple[str, ...]
    size: int
    licence: str
    state: State
    own: bool = False
    problem: str | None = None


class WeightsStore:
    """The weights under one folder.

    Several processes may use the folder. It may be read-only, as in a container: then each process
    computes the hashes that it needs, once.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._hashes = _Sidecar(root / ".hashes.json")
        self._lock = _Sidecar(root / "weights.lock.json")
        self._checked: dict[Path, tuple[object, Network | str]] = {}

    def location(self, engine: str, model: str) -> Path:
        """The path of these weights, installed or not."""
        if engine == WHISPER_CPP:
            return self.root / f"{_GGML_PREFIX}{model}{_GGML_SUFFIX}"
        prefixed = self.root / f"{_FOLDER_PREFIXES[engine]}{model}"
        if self.manifest.get(engine, model) is None and not prefixed.is_dir():
            return self.root / model
        return prefixed

    def spec(self, engine: str, model: str) -> WeightsSpec:
        """The manifest's entry, or one made up for weights that it does not list."""
        published = self.manifest.get(engine, model)
        if published is not None:
            return published
        files = self._own_files(engine, model)
        return WeightsSpec(engine, model, EVERY_LANGUAGE, _OWN_LICENCE, files, ())

    def resolve(self, engine: str, model: str) -> Weights:
        """The weights for an engine to load.

        Takes a few milliseconds where they were resolved before and are unchanged; else the time
        to hash them (about 1 s per GB).

        Raises:
            UnknownOption: no engine has this name.
            WeightsMissing: a file is missing.
            WeightsCorrupt: the size or the hash of a file is wrong.
            WeightsUnusable: the user's own network for sherpa-onnx is incomplete or malformed.
        """
        return self._check(engine, model, every_hash=False)

    def verify(self, engine: str, model: str, tick: Tick = lambda _: None) -> Weights:
        """Like `resolve`, but hash every file again."""
        return self._check(engine, model, every_hash=True, tick=tick)

    def states(self) -> list[WeightsState]:
        """All weights of the manifest, in its order, then the user's own, by name.

        Hashes nothing: ``corrupt`` means a wrong size, or an earlier result of `resolve` or
        `verify`.
        """
        published = [self._state(spec) for spec in self.manifest.specs]
        by_hand = dict.fromkeys(self._by_hand())  # with and without the prefix it is one name
        own = [self._state(self.spec(engine, model), own=True) for engine, model in by_hand]
        return published + own

    def present(self) -> list[tuple[str, str]]:
        """Engine and model of all weights that are present, whole or corrupt."""
        return [(s.engine, s.model) for s in self.states() if s.state != "missing"]

    def trust(self, engine: str, model: str, origin: str, hashes: Mapping[str, str]) -> None:
        """Record ``hashes`` (sha256 by file name) that these weights must have from now on."""
        self._lock.put(f"{engine}/{model}", {"origin": origin, "sha256": dict(hashes)})

    def trusted(self, engine: str, model: str) -> Mapping[str, str]:
        """The hashes recorded by `trust`, by file name."""
        entry = self._lock.read().get(f"{engine}/{model}", {})
        return dict(entry.get("sha256", {}))

    def _check(
        self, engine: str, model: str, *, every_hash: bool, tick: Tick = lambda _: None
    ) -> Weights:
        if engine not in ENGINES:
            raise UnknownOption(field="engine", allowed=", ".join(ENGINES), value=engine)
        if not is_model_name(model):
            raise WeightsMissing(model=model, engine=engine)
        spec = self.spec(engine, model)
        if self.location(engine, model).is_dir() and (problem := self._problem(spec)):
            raise WeightsUnusable(model=model, engine=engine, reason=problem)
        expected = self.trusted(engine, model)
        identity, size = "", 0
        for index, (file, path) in enumerate(self._files(spec)):
            if not path.is_file():
                raise WeightsMissing(model=model, engine=engine)
            want = file.sha256 or expected.get(file.name)
            if file.size not in (None, path.stat().st_size):
                found = self._hash(path, anew=every_hash, tick=tick)
                expected_text = want or f"that of a file of {file.size} bytes"
                raise WeightsCorrupt(path=path, found=found, expected=expected_text)
            size += path.stat().st_size
            if index > 0 and not every_hash:
                continue
            found = self._hash(path, anew=every_hash, tick=tick)
            if want is not None and found != want:
                raise WeightsCorrupt(path=path, found=found, expected=want)
            identity = identity or found
        return Weights(engine, model, self.location(engine, model), identity, size)

    def _state(self, spec: WeightsSpec, *, own: bool = False) -> WeightsState:
        files = list(self._files(spec))
        expected = self.trusted(spec.engine, spec.model)
        state: State = "present"
        size = 0
        for file, path in files:
            if not path.is_file():
                state, size = "missing", spec.size
                break
            size += path.stat().st_size
            known = self._known_hash(path)
            want = file.sha256 or expected.get(file.name)
            if file.size not in (None, path.stat().st_size) or (known and want and known != want):
                state = "corrupt"
        problem = self._problem(spec)
        return WeightsState(
            *(spec.engine, spec.model, spec.languages, size, spec.licence),
            state="corrupt" if problem else state,
            own=own,
            problem=problem,
        )

    def _own_files(self, engine: str, model: str) -> tuple[FileSpec, ...]:
        if engine == WHISPER_CPP:
            return (FileSpec(f"{_GGML_PREFIX}{model}{_GGML_SUFFIX}"),)
        if engine == FASTER_WHISPER:
            return _OWN_FILES
        network = self._network(self.location(engine, model))
        if isinstance(network, str):
            return (FileSpec(TOKENS),)
        return tuple(FileSpec(path.name) for path in network.parts.files)

    def _problem(self, spec: WeightsSpec) -> str | None:
        """What is wrong with the user's own network for sherpa-onnx."""
        published = self.manifest.get(spec.engine, spec.model) is not None
        if published or spec.engine not in (SHERPA_ONNX, ZIPFORMER):
            return None
        network = self._network(self.location(spec.engine, spec.model))
        if isinstance(network, str):
            return network
        wanted = ZIPFORMER if network.kind.is_streaming else SHERPA_ONNX
        return None if spec.engine == wanted else f"a {network.kind} network is for {wanted}"

    def _network(self, folder: Path) -> Network | str:
        """The network for sherpa-onnx in a folder, or what is wrong with it.

        It is checked once, and again when one of its files has changed.
        """
        try:
            files = sorted([*networks_in(folder), *folder.glob(TOKENS)])
            state = [(path.name, *_fingerprint(path)) for path in files]
            known, network = self._checked.get(folder, (None, ""))
            if known != state:
                network = _checked_network(folder)
                self._checked[folder] = state, network
        except OSError as error:
            return error.strerror or "it cannot be read"
        return network

    def _files(self, spec: WeightsSpec) -> Iterator[tuple[FileSpec, Path]]:
        place = self.location(spec.engine, spec.model)
        for file in spec.files:
            path = place if spec.engine == WHISPER_CPP else place / file.name
            yield file.as_found(path), path

    def _by_hand(self) -> Iterator[tuple[str, str]]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            if path.name.startswith("."):
                continue
            if all((path / file.name).is_file() for file in _OWN_FILES):
                key = FASTER_WHISPER, path.name.removeprefix(_FOLDER_PREFIXES[FASTER_WHISPER])
            elif path.is_dir() and networks_in(path):
                engine = self._engine_of(path)
                key = engine, path.name.removeprefix(_FOLDER_PREFIXES[engine])
            elif path.is_file() and path.match(f"{_GGML_PREFIX}?*{_GGML_SUFFIX}"):
                key = WHISPER_CPP, path.name[len(_GGML_PREFIX) : -len(_GGML_SUFFIX)]
            else:
                continue
            if is_model_name(key[1]) and self.manifest.get(*key) is None:
                yield key

    def _engine_of(self, folder: Path) -> str:
        """The engine for a folder with a network for sherpa-onnx, whole or not."""
        network = self._network(folder)
        streams = (
            folder.name.startswith(_FOLDER_PREFIXES[ZIPFORMER])
            if isinstance(network, str)
            else network.kind.is_streaming
        )
        return ZIPFORMER if streams else SHERPA_ONNX

    def _hash(self, path: Path, *, anew: bool, tick: Tick) -> str:
        known = None if anew else self._known_hash(path)
        if known is not None:
            return known
        before = _fingerprint(path)
        digest = sha256_of(path, tick)
        self._hashes.put(self._key(path), [*before, digest])
        return digest

    def _known_hash(self, path: Path) -> str | None:
        """The cached hash of ``path``, if the file has not changed since."""
        match self._hashes.read().get(self._key(path)):
            case [int(), int(), int(), str(digest)] as entry if entry[:3] == _fingerprint(path):
                return digest
            case _:
                return None

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _checked_network(folder: Path) -> Network | str:
    try:
        return network_in(folder)
    except ValueError as error:
        return str(error)


def _fingerprint(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def sha256_of(path: Path, tick: Tick = lambda _: None) -> str:
    """The SHA-256 of a file in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()


class _Sidecar:
    """A small JSON object on disk; processes write it whole, the last one wins.

    What cannot be written is kept in this process's memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: dict[str, object] = {}

    def read(self) -> dict[str, Any]:
        """The object; a file that is missing or no JSON object counts as empty."""
        with suppress(OSError, ValueError):
            value = json.loads(self._path.read_text("utf-8"))
            if isinstance(value, dict):
                return value | self._unwritten
        return dict(self._unwritten)

    def put(self, key: str, value: object) -> None:
        """Set one key."""
        try:
            self._write(self.read() | {key: value})
        except OSError:
            self._unwritten[key] = value

    def _write(self, whole: dict[str, Any]) -> None:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(whole, indent=1, sort_keys=True) + "\n")
            Path(name).chmod(0o644)
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
