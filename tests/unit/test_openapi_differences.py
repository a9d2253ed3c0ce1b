"""The comparison of two OpenAPI documents separates texts from structure."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scripts.openapi import main

DOCUMENT: dict[str, Any] = {
    "paths": {"/jobs/{id}": {"get": {"summary": "See a job", "responses": {"200": {}}}}},
    "components": {"schemas": {"Job": {"properties": {"title": {"type": "string"}}}}},
}


def compared(tmp_path: Path, new: dict[str, Any]) -> tuple[int, str]:
    for name, document in (("old", DOCUMENT), ("new", new)):
        (tmp_path / name).write_text(json.dumps(document))
    result = CliRunner().invoke(main, [str(tmp_path / "old"), str(tmp_path / "new")])
    return result.exit_code, result.output


def test_the_same_document_has_no_difference(tmp_path: Path) -> None:
    assert compared(tmp_path, DOCUMENT) == (0, "no difference but 0 texts\n")


def test_another_text_is_listed_and_passes(tmp_path: Path) -> None:
    new = copy.deepcopy(DOCUMENT)
    new["paths"]["/jobs/{id}"]["get"]["summary"] = "Get a job"
    code, output = compared(tmp_path, new)
    assert code == 0
    assert "Get a job" in output
    assert "no difference but 1 texts" in output


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "string", "default": None}])
def test_another_schema_of_a_property_title_fails(tmp_path: Path, schema: dict[str, Any]) -> None:
    new = copy.deepcopy(DOCUMENT)
    new["components"]["schemas"]["Job"]["properties"]["title"] = schema
    code, output = compared(tmp_path, new)
    assert code == 1
    assert "1 structural differences" in output
