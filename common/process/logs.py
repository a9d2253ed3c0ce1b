"""Logging by loguru. Messages carry ids, sizes and times: never transcribed text, never a secret.

Ids are fields, from the context (``with logger.contextualize(job_id=...)``) or from the message
(``logger.info("job {job_id} ...", job_id=...)``).
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loguru import logger

from common.files import OWN
from common.settings import LogSettings

if TYPE_CHECKING:
    from loguru import Record

TEXT = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> <level>{level: <7}</level> "
    "{extra[process]}{extra[_fields]} <level>{message}</level>\n{exception}"
)
JSON = "{extra[_json]}\n"


class _ToLoguru(logging.Handler):
    """Passes the records of libraries that use `logging` to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(depth=6, exception=record.exc_info).log(record.levelname, record.getMessage())


def set_up_logging(settings: LogSettings, process: str) -> None:
    """Send all logs to one place; ``process`` names the writer in each line."""
    logger.remove()
    logger.configure(extra={"process": process})
    # diagnose would print the values of variables, which may hold transcribed text.
    options: dict[str, Any] = {
        "level": settings.level,
        "format": _as_json if settings.as_json else _as_text,
        "diagnose": False,
        "backtrace": False,
    }
    if settings.file is None:
        logger.add(sys.stderr, **options)
    else:
        OWN.make_folder(settings.file.absolute().parent)
        file: dict[str, Any] = {"rotation": "20 MB", "retention": 5, "opener": OWN.opener}
        logger.add(settings.file, **file, **options)
    for library in ("rq", "alembic"):  # they log every step
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)


def _as_text(record: Record) -> str:
    """Fields before the message, without the ids that are in it."""
    fields = "".join(
        f" {name}={str(value).encode('unicode_escape').decode()}"
        for name, value in _fields(record).items()
        if not (name.endswith("_id") and str(value) in record["message"])
    )
    record["extra"]["_fields"] = fields
    return TEXT


def _as_json(record: Record) -> str:
    """One JSON object a line."""
    document = {
        "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "process": record["extra"].get("process"),
        **_fields(record),
        "message": record["message"],
    }
    if (error := record["exception"]) is not None:
        document["exception"] = "".join(
            traceback.format_exception(error.type, error.value, error.traceback)
        )
    record["extra"]["_json"] = json.dumps(document, ensure_ascii=False, default=str)
    return JSON


def _fields(record: Record) -> dict[str, Any]:
    return {
        name: value
        for name, value in record["extra"].items()
        if value is not None and name != "process" and not name.startswith("_")
    }
