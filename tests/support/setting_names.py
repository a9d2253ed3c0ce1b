"""The settings by their names in the environment, for tests of what sets them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from common.settings import Settings
from scripts.env_example import names


def groups() -> Iterator[type[BaseSettings]]:
    """The groups of settings."""
    for field in Settings.model_fields.values():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseSettings)
        yield field.annotation


def every_name() -> list[tuple[type[BaseSettings], str, str]]:
    """The group, the field and a name of each setting."""
    return [
        (group, field, name)
        for group in groups()
        for field in group.model_fields
        for name in names(group, field)
    ]


@cache
def settings_named() -> dict[str, Any]:
    """What each setting holds, by every name that it has."""
    return {name: group.model_fields[field].annotation for group, field, name in every_name()}


def secret_settings() -> set[str]:
    """Those that are never shown."""
    return {name for name, kind in settings_named().items() if kind == SecretStr | None}
