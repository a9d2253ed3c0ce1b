"""Logging by loguru. Messages carry ids, sizes and times: never what was said, never a secret."""

from __future__ import annotations

import logging
import sys
from typing import Any

from loguru import logger

from common.settings import LogSettings

FORMAT = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> <level>{level: <7}</level> "
    "{extra[process]} {extra[request_id]} <level>{message}</level>"
)


class _ToLoguru(logging.Handler):
    """Hands the records of libraries that use `logging` to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.opt(depth=6, exception=record.exc_info).log(record.levelname, record.getMessage())


def set_up_logging(settings: LogSettings, process: str) -> None:
    """Send all logs to one place; ``process`` names the writer in each line."""
    logger.remove()
    logger.configure(extra={"process": process, "request_id": "-"})
    # diagnose would print the values of variables, and they may hold what was said.
    options: dict[str, Any] = {
        "level": settings.level,
        "format": FORMAT,
        "diagnose": False,
        "backtrace": False,
    }
    if settings.file is None:
        logger.add(sys.stderr, **options)
    else:
        logger.add(settings.file, rotation="20 MB", retention=5, enqueue=False, **options)
    for library in ("rq", "alembic"):  # they tell every step they take
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)
