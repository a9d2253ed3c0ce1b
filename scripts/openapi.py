"""Compare two OpenAPI documents: ``python -m scripts.openapi OLD.json [NEW.json]``.

Without NEW.json the old document is compared with the gateway's own. Any structural difference
fails. Differences of texts, which no generated client depends on, are listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

TEXTS = frozenset({"description", "summary", "title", "example", "examples"})
"""Keys whose values are for people, where they are not the names of properties."""
NAMED = frozenset({"properties", "schemas", "headers", "responses", "paths"})
"""Objects whose keys are names that the API has chosen."""

MISSING = object()
"""Stands for a value that one document lacks: null is a value."""

Difference = tuple[str, Any, Any]


@click.command()
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
def main(old: Path, new: Path | None) -> None:
    """Exit with 1 where the documents differ in more than texts."""
    found = list(differences(json.loads(old.read_text("utf-8")), _document(new)))
    texts = [each for each in found if is_text(each[0])]
    for place, before, after in found:
        click.echo(f"{place}\n  - {_shown(before)}\n  + {_shown(after)}")
    if len(texts) < len(found):
        raise click.ClickException(f"{len(found) - len(texts)} structural differences")
    click.echo(f"no difference but {len(texts)} texts")


def differences(old: Any, new: Any, place: str = "") -> Iterator[Difference]:
    """Where the documents differ, as a JSON pointer, and both values (or `MISSING`)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            name = key.replace("~", "~0").replace("/", "~1")
            yield from differences(old.get(key, MISSING), new.get(key, MISSING), f"{place}/{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{place}/{index}")
    elif old != new:
        yield place, old, new


def is_text(place: str) -> bool:
    """Whether what is at ``place`` is for people alone."""
    names = place.split("/")[1:]
    return any(
        name in TEXTS and (index == 0 or names[index - 1] not in NAMED)
        for index, name in enumerate(names)
    )


def _document(path: Path | None) -> Any:
    if path is not None:
        return json.loads(path.read_text("utf-8"))
    from api.app import create_app  # it takes a while

    return json.loads(json.dumps(create_app().openapi()))


def _shown(value: Any) -> str:
    return "(none)" if value is MISSING else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
