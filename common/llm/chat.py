"""The protocol of a language model's server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.domain.chat import Form, Message


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, not blank.

    ``model`` is as the server names it. Tokens are as it counts them; None: it does not say.
    """

    text: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    elapsed_ms: int


class Chat(Protocol):
    """A language model. Its methods may be called by several threads at a time."""

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, form: Form | None = None
    ) -> Answer:
        """The answer to ``messages``, of at most ``max_tokens`` tokens; blocks until it is there.

        A ``form`` is enforced by servers that can do so, and only requested from others: validate
        the answer.

        Raises:
            ChatUnavailable, AnswerBroken, AnswerTruncated: transient, another attempt may succeed.
            ChatRejected, AnswerWithheld, UrlRefused: it would fail again.
        """
        ...
