"""A model's config.json, as transformers writes it, with a section of our own.

The section is ``config["stenopool"]``, every key of it optional:

=============  =====================================================================================
`name`         the model's name (the folder's name)
`segmented`    whether it was trained on segmented words (true for a folder with PhoBERT's files)
`normalised`   whether it was trained on normalised text (false)
`max_tokens`   the longest input in tokens (what its position embeddings allow)
`thresholds`   the minimum score of each label except CLEAN (0.5)
=============  =====================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.domain.moderation import Label, ModeratedBy, Thresholds
from common.errors import ModerationUnusable
from common.moderation.phobert_tokenizer import MERGES

CONFIG = "config.json"
OURS = "stenopool"
DEFAULT_THRESHOLD = 0.5
DEFAULT_MAX_TOKENS = 256
_LEAST_MAX_TOKENS = 8

_UNNAMED = re.compile(r"LABEL_\d+")
"""transformers' names for the outputs of a model without labels."""
_PADDING_SHIFTS_POSITIONS = ("roberta", "xlm-roberta", "camembert")
"""Model types that count positions from the padding's id + 1."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder and the content of its config.json."""

    path: Path
    name: str
    labels: tuple[Label, ...]
    """The label of each of the model's outputs, in order."""
    max_tokens: int
    """The longest input in tokens, the first and the last included."""
    padding: int
    segmented: bool
    normalised: bool
    thresholds: Thresholds

    def moderated_by(self, sha256: str, chosen: Thresholds | None) -> ModeratedBy:
        """The model, with its own thresholds overridden by ``chosen``."""
        return ModeratedBy(self.name, sha256, {**self.thresholds, **(chosen or {})})

    def check_outputs(self, outputs: int, of: str) -> None:
        """Raise `ModerationUnusable` unless each of the ``outputs`` has a label."""
        if outputs != len(self.labels):
            named = f"{len(self.labels)} are named: {', '.join(self.labels)}"
            raise unusable(self.path, f"{of} has {outputs} outputs, but {named}")


def read_folder(path: Path, labels: str | None = None) -> ModelFolder:
    """Read ``path``/config.json.

    Args:
        path: the folder.
        labels: the labels of the outputs, in order, separated by commas (MODERATION_LABELS); used
            where config.json has none.

    Raises:
        ModerationUnusable: the folder or config.json is missing or malformed.
    """
    config = _read_config(path)
    try:
        ours = config.get(OURS, {})
        padding = int(config.get("pad_token_id") or 0)
        is_phobert = (path / MERGES).is_file() or config.get("tokenizer_class") == (
            "PhobertTokenizer"
        )
        return ModelFolder(
            path,
            str(ours.get("name", path.absolute().name)),
            _labels(path, config, labels),
            int(ours.get("max_tokens", _max_tokens(config, padding))),
            padding,
            bool(ours.get("segmented", is_phobert)),
            bool(ours.get("normalised", False)),
            _thresholds(ours.get("thresholds", {})),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unusable(path, f"{CONFIG} is malformed: {error}") from error


def unusable(path: Path, reason: object) -> ModerationUnusable:
    """The error for an unusable model in ``path``, on one line."""
    return ModerationUnusable(path=path, reason=" ".join(str(reason).split())[:400])


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise unusable(path, "there is no such folder")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise unusable(path, f"it has no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise unusable(path, f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise unusable(path, f"{CONFIG} is not a JSON object")
    return config


def _labels(path: Path, config: Mapping[str, Any], chosen: str | None) -> tuple[Label, ...]:
    named = config.get("id2label") or {}
    names = [str(named[number]) for number in sorted(named, key=int)]
    found = _as_labels(names)
    if found is None and chosen is not None:
        wanted = [name.strip() for name in chosen.split(",")]
        if names and len(names) != len(wanted):
            raise unusable(
                path,
                f"MODERATION_LABELS has {len(wanted)} labels ({chosen}), the model {len(names)}",
            )
        found = _as_labels(wanted)
        if found is None:
            raise unusable(path, f"MODERATION_LABELS is {chosen!r}; {_RULE}")
    if found is None:
        says = "no id2label" if all(map(_UNNAMED.fullmatch, names)) else f"id2label {names}"
        raise unusable(
            path,
            f"{CONFIG} has {says}; set MODERATION_LABELS to the labels of its outputs, in order, "
            f"such as {','.join(Label)}",
        )
    return found


_RULE = f"it needs {Label.CLEAN} and one of {Label.OFFENSIVE}, {Label.HATE} or both"


def _as_labels(names: list[str]) -> tuple[Label, ...] | None:
    known = {str(label): label for label in Label}
    labels = tuple(known[name.upper()] for name in names if name.upper() in known)
    whole = len(labels) == len(names) and len(set(labels)) > 1 and Label.CLEAN in labels
    return labels if whole else None


def _max_tokens(config: Mapping[str, Any], padding: int) -> int:
    positions = int(config.get("max_position_embeddings", 0))
    if config.get("model_type") in _PADDING_SHIFTS_POSITIONS:
        positions -= padding + 1
    return positions if positions >= _LEAST_MAX_TOKENS else DEFAULT_MAX_TOKENS


def _thresholds(given: Mapping[str, float]) -> Thresholds:
    own = {Label(name.upper()): float(value) for name, value in given.items()}
    if not all(0 < value <= 1 for value in own.values()):
        raise ValueError(f"thresholds must be above 0 and at most 1, not {dict(given)}")
    return {label: own.get(label, DEFAULT_THRESHOLD) for label in Label if label is not Label.CLEAN}
