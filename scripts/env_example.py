"""``.env.example``, made from `common.settings`: every setting with its meaning and its default.

``python -m scripts.env_example`` writes it; with ``--check`` it fails when the file differs, with
``--print`` it goes to stdout.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from common.settings import ROOT, Settings

TARGET = ROOT / ".env.example"
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most"}
"""The limits that a type may have, by their names in its metadata."""

HEADER = """\
# Every setting of Stenopool. Copy this file to .env and remove the # from a line to change it.
# Environment variables take precedence, and an empty value means the default. The environment
# variable STENO_ENV_FILE names another file than .env.
# Generated from common/settings.py by `python -m scripts.env_example`: do not edit it by hand.
"""


def render() -> str:
    """The whole file."""
    groups = [field.annotation for field in Settings.model_fields.values()]
    return HEADER + "".join(
        _group(group)
        for group in groups
        if inspect.isclass(group) and issubclass(group, BaseSettings)
    )


def names(group: type[BaseSettings], name: str) -> tuple[str, ...]:
    """The names of a setting in the environment; the first is the one to write."""
    alias = group.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice).upper() for choice in alias.choices)
    return (f"{group.model_config.get('env_prefix', '')}{name}".upper(),)


def _group(group: type[BaseSettings]) -> str:
    settings = "".join(
        f"\n{_comment(field)}#{names(group, name)[0]}={_value(field)}\n"
        for name, field in group.model_fields.items()
    )
    return f"\n\n# --- {inspect.cleandoc(group.__doc__ or '')}\n{settings}"


def _comment(field: FieldInfo) -> str:
    return "".join(
        f"# {line}\n" for line in [*(field.description or "").splitlines(), *_facts(field)]
    )


def _facts(field: FieldInfo) -> Iterator[str]:
    """What the type says: choices, limits, the default folder."""
    if choices := list(_choices(field.annotation)):
        yield f"One of: {', '.join(choices)}."
    limits = [
        f"{words} {getattr(fact, name)}"
        for fact in field.metadata
        for name, words in LIMITS.items()
        if hasattr(fact, name)
    ]
    if limits:
        yield f"{', '.join(limits).capitalize()}."
    if _lies_in_checkout(field.default):
        yield f"By default {field.default.relative_to(ROOT)}/ in the checkout."


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in {Union, types.UnionType}:
        for part in get_args(annotation):
            yield from _choices(part)


def _value(field: FieldInfo) -> str:
    """The default; empty if it is unset, or a folder that differs between machines.

    One with spaces is in quotes: shells read the file too.
    """
    if field.default is None or _lies_in_checkout(field.default):
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    text = str(field.default)
    return f'"{text}"' if " " in text else text


def _lies_in_checkout(default: object) -> bool:
    return isinstance(default, Path) and default.is_relative_to(ROOT)


@click.command()
@click.option("--check", is_flag=True, help="Only fail when .env.example is not up to date.")
@click.option("--print", "to_stdout", is_flag=True, help="Print it and leave the file alone.")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False), default=TARGET)
def main(check: bool, to_stdout: bool, target: Path) -> None:
    """Write .env.example (or TARGET) from the settings."""
    content = render()
    if to_stdout:
        click.echo(content, nl=False)
    elif not check:
        target.write_text(content, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != content:
        raise click.ClickException(
            f"{target.name} is not up to date; run: python -m scripts.env_example"
        )


if __name__ == "__main__":
    main()
