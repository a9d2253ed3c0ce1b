"""Words that give offence in themselves."""

from __future__ import annotations

from dataclasses import dataclass

from common.domain.moderation import Mark


@dataclass(frozen=True, slots=True)
class Find:
    """A listed word in a text.

    It ``decides`` where it can mean nothing else; else it gives offence only in a text that the
    model finds offensive.
    """

    mark: Mark
    decides: bool


class Lexicon:
    """The word lists."""

    def find(self, text: str) -> tuple[Find, ...]:
        """The listed words in a text, in order, none overlapping another."""
        raise NotImplementedError
