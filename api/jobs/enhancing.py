"""The resolved requests of the second AI step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.domain.enhancing.options import EnhancementOptions
from common.domain.enhancing.tasks import Task
from common.errors import OptionConflict, UnknownOption
from common.llm.openai_chat import configured_server
from common.settings import Settings

NEED_MORE = (Task.TRANSLATE, Task.PROMPT)
"""The tasks that need a language or a prompt."""
WITH_JOBS = tuple(task for task in Task if task not in NEED_MORE)
"""The tasks that an upload can ask for."""


def enhancement_options(
    settings: Settings, task: Task, model: str | None = None, **others: Any
) -> EnhancementOptions:
    """The options with the settings' defaults; ``others`` as of `EnhancementOptions`.

    Raises:
        EnhancementOff: the settings name no server; the error names the setting.
        UnknownOption, FieldMissing, OutOfRange, OptionConflict, SchemaRefused: an option is wrong.
    """
    server = configured_server(settings)
    return EnhancementOptions(
        task=task,
        model=model or server.model,
        context_tokens=settings.enhanced_ai.context_tokens,
        max_output_tokens=settings.enhanced_ai.max_output_tokens,
        **others,
    ).checked()


def enhancements_of(
    settings: Settings, asked: str | None, terms: tuple[str, ...]
) -> tuple[Mapping[str, Any], ...]:
    """The stored requests of an upload that asks for these tasks, separated by commas.

    Raises:
        EnhancementOff: as `enhancement_options`.
        UnknownOption: one of them is no task.
        OptionConflict: one of them needs more than its name.
    """
    names = dict.fromkeys(name for each in (asked or "").split(",") if (name := each.strip()))
    allowed = ", ".join(WITH_JOBS)
    for name in names:
        if name in NEED_MORE:
            needed = "a request of its own: POST /api/v1/enhanced-ai"
            raise OptionConflict(field="enhance", value=name, needed=needed)
        if name not in WITH_JOBS:
            raise UnknownOption(field="enhance", allowed=allowed, value=name[:200])
    return tuple(enhancement_options(settings, Task(name), terms=terms).to_json() for name in names)
