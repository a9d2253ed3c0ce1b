"""Classifies texts in a process of its own.

``python -m api.processes.moderator_process GATEWAY SETTINGS``

Its first line says whether the model could be loaded. Then it reads one list of texts a line,
answers one JSON object a line, and ends with its input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from api.processes.inside import load, log_where, pipe_to_gateway, write_line
from common.errors import ModerationFailed, StenoError
from common.moderation.loading import load_moderation
from common.moderation.moderation import Moderation
from common.process.logs import set_up_logging
from common.settings import LogSettings, ModerationSettings


def main(parent: str, settings: str) -> None:
    """Load the model and answer until the input ends."""
    answers = pipe_to_gateway(parent)
    set_up_logging(LogSettings(), "moderation")
    wanted = ModerationSettings(**json.loads(settings))
    moderation = load(
        answers, "the moderation model", lambda: load_moderation(wanted), reason=_reason
    )
    write_line(answers, {"by": moderation.by.to_json()})
    for line in sys.stdin:
        write_line(answers, answer(moderation, json.loads(line)))


def answer(moderation: Moderation, texts: Sequence[str]) -> dict[str, object]:
    """What `api.processes.moderator.ModerationProcess` makes findings, or an error, of."""
    try:
        return {"findings": [finding.to_json() for finding in moderation.classify(texts)]}
    except ModerationFailed as error:
        return {"failed": error.details["reason"]}
    except Exception as error:
        log_where("moderation failed", error)
        return {"failed": "an unexpected error; the log says where"}


def _reason(error: StenoError) -> str:
    """Without the folder, which the gateway adds as clients may see it."""
    return str(error.details.get("reason", error))


if __name__ == "__main__":
    main(*sys.argv[1:])
