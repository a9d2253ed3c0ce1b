"""Classifies texts in a process of its own.

``python -m api.processes.moderator_process GATEWAY SETTINGS``

Its first line says whether the model could be loaded. Then it reads one list of texts a line,
answers one JSON object a line, and ends with its input.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence

from loguru import logger

from api.processes.inside import pipe_to_gateway, write_line
from common.errors import ModerationFailed, ModerationUnusable
from common.logs import set_up_logging
from common.moderation.loading import load_moderation
from common.moderation.moderation import Moderation
from common.settings import LogSettings, ModerationSettings


def main(parent: str, settings: str) -> None:
    """Load the model and answer until there is no more to read."""
    answers = pipe_to_gateway(parent)
    set_up_logging(LogSettings(), "moderation")
    try:
        moderation = load_moderation(ModerationSettings(**json.loads(settings)))
    except ModerationUnusable as error:
        write_line(answers, {"unusable": error.details["reason"]})
        return
    except Exception as error:
        logger.opt(exception=error).error("the moderation model cannot be loaded")
        write_line(answers, {"unusable": "loading it failed; the log says why"})
        return
    write_line(answers, {"by": moderation.by.to_json()})
    for line in sys.stdin:
        write_line(answers, answer(moderation, json.loads(line)))


def answer(moderation: Moderation, texts: Sequence[str]) -> dict[str, object]:
    """What `api.processes.moderator.Judge` makes verdicts, or an error, of."""
    try:
        return {"verdicts": [verdict.to_json() for verdict in moderation.judge(texts)]}
    except ModerationFailed as error:
        return {"failed": error.details["reason"]}
    except Exception as error:
        # Its message may quote the text, and logs carry none.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        logger.error("judging failed: {} in {}:{}", kind, frame.filename, frame.lineno)
        return {"failed": "it met something that nobody thought of"}


if __name__ == "__main__":
    main(*sys.argv[1:])
