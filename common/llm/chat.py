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

    @property
    def cost(self) -> dict[str, int]:
        """What it took, for the error of whoever rejects it (`StenoError.cost`)."""
        return cost_of(self.input_tokens, self.output_tokens, self.elapsed_ms)


def cost_of(input_tokens: int | None, output_tokens: int | None, elapsed_ms: int) -> dict[str, int]:
    """What is known of it, by these names."""
    known = {"input_tokens": input_tokens, "output_tokens": output_tokens, "elapsed_ms": elapsed_ms}
    return {name: number for name, number in known.items() if number is not None}


class Chat(Protocol):
    """A language model. Its methods may be called by several threads at a time."""

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, form: Form | None = None
    ) -> Answer:
        """The answer to ``messages``, of at most ``max_tokens`` tokens; blocks until it is there.

        A ``form`` is enforced by servers that can do so, and only requested from others: validate
        the answer.

        What an incomplete answer took is the `cost` of its error, as far as the server says.

        Raises:
            ChatUnavailable, AnswerBroken, AnswerTruncated: transient, another attempt may succeed.
            ChatRejected, AnswerWithheld, UrlRefused: it would fail again.
        """
        ...
