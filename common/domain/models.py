"""Which model a job uses that asks for ``auto``: those of its language, in order of preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

WHISPER_ENGINES: Final = ("faster-whisper", "whisper.cpp")
"""The engines whose models detect languages, and can be converted into each other's."""
BATCH_ENGINES: Final = (*WHISPER_ENGINES, "sherpa-onnx")
"""The engines for recordings."""
AUTO_MODEL: Final = "auto"
ANY_LANGUAGE: Final = "*"
"""The key of the models for all languages without a list of their own."""
FALLBACK_MODEL: Final = "fallback_model"
"""The warning of a job whose best model is not installed."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model, and the engine that runs it."""

    engine: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name in ``engine/model``.

        Raises:
            ValueError: it is not of this form.
        """
        engine, slash, model = (part.strip() for part in text.partition("/"))
        if not (engine and slash and model):
            raise ValueError(f"must be like faster-whisper/base; got {text.strip()!r}")
        return cls(engine, model)

    def __str__(self) -> str:
        return f"{self.engine}/{self.model}"

    @property
    def pull_command(self) -> str:
        """What installs it."""
        return f"steno models pull {self.model} --engine {self.engine}"


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """A model that a plan chose, and the hash of its weights: every chunk must use the same."""

    name: ModelName
    weights_sha256: str

    def to_json(self) -> dict[str, str]:
        return {"model": str(self.name), "weights_sha256": self.weights_sha256}

    @classmethod
    def from_json(cls, document: Mapping[str, str]) -> Self:
        """Read the output of `to_json`."""
        return cls(ModelName.parse(document["model"]), document["weights_sha256"])


EMBEDDING_NETWORK: Final = ModelName("diarization", "campplus-zh-en")
"""What describes voices; only embeddings of the same network can be compared."""
SPEAKER_NETWORKS: Final = (
    ModelName("diarization", "pyannote-segmentation-3.0"),
    EMBEDDING_NETWORK,
)
"""What diarization needs: the segmentation, and the embedding of voices."""

Names = tuple[ModelName, ...]
Table = Mapping[str, Names]
"""The models of each language, best first; `ANY_LANGUAGE` is one of the keys."""


def parse_table(text: str) -> Table:
    """The table in ``vi = sherpa-onnx/vi-68m, faster-whisper/base; * = faster-whisper/base``.

    Raises:
        ValueError: it is not of this form, or lacks the models of `ANY_LANGUAGE`.
    """
    table = {}
    for entry in filter(str.strip, text.split(";")):
        language, equals, models = (part.strip() for part in entry.partition("="))
        if not (language and equals and models):
            raise ValueError(f"must have entries like vi = faster-whisper/base; got {entry!r}")
        table[language.lower()] = tuple(ModelName.parse(each) for each in models.split(","))
    if ANY_LANGUAGE not in table:
        raise ValueError(f"must have an entry {ANY_LANGUAGE} = ..., for all other languages")
    return table


def candidates(table: Table, language: str) -> Names:
    """The models of a language, best first."""
    return table[language if language in table else ANY_LANGUAGE]
