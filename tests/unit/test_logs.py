"""How lines of the log look."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from loguru import logger

from common.process.logs import set_up_logging
from common.settings import LogSettings


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    logger.remove()
    logging.basicConfig(force=True)


def test_a_json_line_has_the_ids_that_are_known_as_fields(log: Path) -> None:
    set_up_logging(LogSettings(file=log, as_json=True), "worker:7")
    job_id = uuid4()
    with logger.contextualize(request_id="abc", chunk=None):
        logger.info("job {job_id} has {} {{parts}}", 3, job_id=job_id)
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "process": "worker:7",
        "request_id": "abc",
        "job_id": str(job_id),
        "message": f"job {job_id} has 3 {{parts}}",
    }


def test_an_exception_is_on_the_same_json_line_without_values_of_variables(log: Path) -> None:
    set_up_logging(LogSettings(file=log, as_json=True), "worker")

    def fail(secret: str) -> None:
        raise ValueError(len(secret))

    try:
        fail("hush")
    except ValueError:
        logger.exception("it failed")
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: 4\n")
    # The line that called it is shown, and no value but those that stand there.
    assert line["exception"].count("hush") == 1


def test_a_line_of_text_shows_the_ids_once(log: Path) -> None:
    set_up_logging(LogSettings(file=log), "gateway")
    with logger.contextualize(request_id="abc"):
        logger.info("job {job_id} <b>accepted</b>", job_id="123-456")
    line = log.read_text().split("gateway ")[1]
    assert line == "request_id=abc job 123-456 <b>accepted</b>\n"


def test_libraries_that_warn_are_logged(log: Path) -> None:
    set_up_logging(LogSettings(file=log, as_json=True), "gateway")
    logging.getLogger("boto3").info("a step")
    logging.getLogger("boto3").warning("a {warning} with %s", "<braces>")
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line["message"] == "a {warning} with <braces>"


def test_what_clients_send_makes_no_lines_of_its_own(log: Path) -> None:
    set_up_logging(LogSettings(file=log), "gateway")
    logger.info("GET /odd", job_id="1\n2026-01-01 ERROR forged")
    assert len(log.read_text().splitlines()) == 1
