"""Proofs that take minutes: ``scripts/test --system NAME [ARGUMENTS]`` runs one of them."""

from __future__ import annotations

import os

import click
import pytest

from tests.system import cancel, cases, chaos, load, revising, rows, webhooks
from tests.system.containers import proofs as containers

PROOFS: dict[str, click.Command] = {
    "cancel": cancel.main,
    "cases": cases.main,
    "chaos": chaos.main,
    "containers": containers.main,
    "load": load.main,
    "revising": revising.main,
    "rows": rows.main,
    "webhooks": webhooks.main,
}


@pytest.mark.system
@pytest.mark.parametrize("name", PROOFS)
def test_proof(name: str) -> None:
    arguments = os.environ.get("SYSTEM_ARGUMENTS", "").splitlines()
    with pytest.raises(SystemExit) as ended:
        PROOFS[name](arguments, prog_name=f"scripts/test --system {name}")
    assert ended.value.code == 0
