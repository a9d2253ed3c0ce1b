"""The resolved request of the second AI step: stored with its job, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from common.domain.enhancement import Budget, Enhancement, checked
from common.domain.enhancing.answers import is_storable
from common.domain.enhancing.tasks import Task
from common.domain.languages import LANGUAGES
from common.errors import FieldMissing, SchemaRefused


@dataclass(frozen=True, slots=True)
class EnhancementOptions:
    """What is wanted of a transcript, before it is read.

    ``model`` is as the server names it. ``language`` None: the transcript's. ``terms`` are names
    and words as they are written. ``server`` is the URL of the tenant's own server, whose key is
    not stored with a job; None: that of the settings. Tokens as of `Budget`; the rest as of
    `Enhancement`.
    """

    task: Task
    model: str
    context_tokens: int
    max_output_tokens: int
    language: str | None = None
    prompt: str | None = None
    schema: Mapping[str, Any] | None = None
    terms: tuple[str, ...] = ()
    server: str | None = None

    def checked(self) -> EnhancementOptions:
        """The same with its schema as it is used.

        Raises:
            UnknownOption, FieldMissing, OutOfRange, OptionConflict, SchemaRefused: an option is
                wrong.
        """
        if self.task is Task.TRANSLATE and self.language is None:
            raise FieldMissing(field="language")
        work = checked(self.work(next(iter(LANGUAGES))))
        for field, text in (("prompt", work.prompt or ""), ("schema", json.dumps(work.schema))):
            if not is_storable(text):
                raise SchemaRefused(field=field, reason="it has characters that are no text")
        return replace(self, schema=work.schema)

    def work(self, spoken: str) -> Enhancement:
        """What is wanted of a transcript in the language ``spoken``."""
        return Enhancement(
            self.task,
            self.language or spoken,
            Budget(self.context_tokens, self.max_output_tokens),
            self.prompt,
            self.schema,
            self.terms,
        )

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        document = asdict(self)
        if self.server is None:  # as versions without it read and write them
            del document["server"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        values = dict(document)
        terms = tuple(values.pop("terms"))
        return cls(Task(values.pop("task")), terms=terms, **values)
