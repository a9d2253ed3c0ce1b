"""The settings by their names in the environment, for tests of what sets them."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from common.settings import Settings
from scripts.env_example import names


@cache
def settings_named() -> dict[str, Any]:
    """What each setting holds, by every name that it has."""
    return {
        name: group.model_fields[field].annotation
        for each in Settings.model_fields.values()
        if isinstance(group := each.annotation, type) and issubclass(group, BaseSettings)
        for field in group.model_fields
        for name in names(group, field)
    }


def secret_settings() -> set[str]:
    """Those that are never shown."""
    return {name for name, kind in settings_named().items() if kind == SecretStr | None}
