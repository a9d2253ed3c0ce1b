"""Glossaries and suggestions for them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from unicodedata import category
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from api.http.fields import Document, NoDirection, RequestDocument, Word
from api.http.pagination import NextCursor
from common.domain.glossary import (
    LONGEST_WORD,
    MOST_ENTRIES,
    MOST_SPELLINGS,
    NO_GLOSSARY,
    Entry,
    Glossary,
    cleaned,
)
from common.domain.languages import LANGUAGES

LONGEST_NAME = 100


def _clean(value: object) -> object:
    return cleaned(value) if isinstance(value, str) else value


def _without_controls(text: str) -> str:
    # Most of category Cf stay: Persian and Hindi words need them. Cs: halves of a character.
    if any(category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError("text without control characters")
    return text


def _with_letters(text: str) -> str:
    if not any(category(letter)[0] in "LN" for letter in text):
        raise ValueError("text with a letter or a digit")
    return text


def _without_commas(text: str) -> str:
    if "," in text:
        raise ValueError("text without commas, which separate hotwords and names")
    return text


def _not_none(text: str) -> str:
    if text.lower() == NO_GLOSSARY:
        raise ValueError(f"another name than {NO_GLOSSARY}, which means that no glossary is used")
    return text


def _known(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError("a Whisper code, such as vi")
    return code


Spelling = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_WORD),
    BeforeValidator(_clean),
    AfterValidator(_without_controls),
    NoDirection,
    AfterValidator(_with_letters),
]
GlossaryName = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME),
    BeforeValidator(_clean),
    AfterValidator(_without_controls),
    NoDirection,
    AfterValidator(_without_commas),
    AfterValidator(_not_none),
]


class EntryDocument(RequestDocument):
    """A word, or several that belong together, and spellings to replace."""

    word: Annotated[Spelling, AfterValidator(_without_commas)] = Field(examples=["Nguyễn Văn An"])
    """As it is to be written."""
    instead_of: list[Spelling] = Field(
        [], max_length=MOST_SPELLINGS, examples=[["nguyen van an", "Nguyễn Vân An"]]
    )
    """Spellings that `rewrite` replaces, in any case."""


class GlossaryContent(RequestDocument):
    """A glossary to store."""

    name: GlossaryName = Field(examples=["board"])
    """The name that jobs use it by. No two glossaries of a tenant have the same."""
    entries: list[EntryDocument] = Field(max_length=MOST_ENTRIES)
    """The most important first: there is limited room for hotwords."""
    rewrite: bool = False
    """Replace the spellings in the text. Without it the words are hotwords only."""
    language: Annotated[str, Word, AfterValidator(_known)] | None = Field(None, examples=["vi"])
    """For jobs in this language, or with `auto`; null: for all jobs."""
    default: bool = False
    """Use it for jobs that name no glossary. A tenant has one such glossary: the one before loses
    this."""

    def glossary(self) -> Glossary:
        """What it says."""
        entries = (Entry(it.word, tuple(dict.fromkeys(it.instead_of))) for it in self.entries)
        return Glossary(self.name, tuple(entries), self.rewrite, self.language)


class GlossaryDocument(Document):
    """A glossary."""

    id: UUID
    name: str = Field(examples=["board"])
    entries: list[dict[str, Any]] = Field(
        examples=[[{"word": "Nguyễn Văn An", "instead_of": ["nguyen van an"]}]]
    )
    rewrite: bool
    language: str | None
    default: bool = Field(validation_alias="is_default")
    created_at: datetime
    updated_at: datetime


class GlossarySummary(Document):
    """A glossary without its entries."""

    id: UUID
    name: str = Field(examples=["board"])
    words: int
    """The number of its entries."""
    rewrite: bool
    language: str | None
    default: bool = Field(validation_alias="is_default")
    created_at: datetime
    updated_at: datetime


class GlossaryList(BaseModel):
    """Some glossaries, newest first."""

    glossaries: list[GlossarySummary]
    next_cursor: NextCursor


class SuggestionDocument(Document):
    """A replacement that people make again and again."""

    word: str = Field(validation_alias="after", examples=["Nguyễn Văn An"])
    instead_of: str = Field(validation_alias="before", examples=["nguyen van an"])
    """In small letters."""
    jobs: int = Field(examples=[3])
    """In how many jobs' transcripts people made it."""
    last_at: datetime


class SuggestionList(BaseModel):
    """Some suggestions, the most frequent first."""

    suggestions: list[SuggestionDocument]
