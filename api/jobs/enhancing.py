"""The resolved requests of the second AI step."""

from __future__ import annotations

from typing import Any

from common.domain.enhancing.options import EnhancementOptions
from common.domain.enhancing.tasks import Task
from common.errors import OptionConflict, UnknownOption
from common.llm.servers import ServerInUse

NEED_MORE = (Task.TRANSLATE, Task.PROMPT)
"""The tasks that need a language or a prompt."""
WITH_JOBS = tuple(task for task in Task if task not in NEED_MORE)
"""The tasks that an upload can ask for."""


def enhancement_options(
    used: ServerInUse, task: Task, model: str | None = None, **others: Any
) -> EnhancementOptions:
    """The options with the defaults of a server; ``others`` as of `EnhancementOptions`.

    Raises:
        UnknownOption, FieldMissing, OutOfRange, OptionConflict, SchemaRefused: an option is wrong.
    """
    return EnhancementOptions(
        task=task,
        model=model or used.server.model,
        context_tokens=used.context_tokens,
        max_output_tokens=used.max_output_tokens,
        server=used.server.base_url if used.is_own else None,
        **others,
    ).checked()


def tasks_of(asked: str | None) -> tuple[Task, ...]:
    """The tasks that an upload asks for, separated by commas.

    Raises:
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
    return tuple(map(Task, names))
