"""The project's documents: their blocks of code, their links, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.settings import ROOT

FOLDERS = ("api", "docker", "models", "scripts", "worker")
"""Where documents are, beside the top of the project."""
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
SEPARATORS = {"|", ";", "&", "&&", "||", "{", "}"}
KEYWORDS = {"do", "done", "export"}


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file of the project."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @property
    def name(self) -> str:
        """Its path in the project."""
        return str(self.path.relative_to(ROOT))

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks in a language, in order."""
        return [block for _, found, block in FENCE.findall(self.text) if found == language]

    @property
    def prose(self) -> str:
        """Everything outside the fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def inline(self) -> list[str]:
        """What the prose has in backticks, with line breaks as spaces."""
        return [" ".join(code.split()) for code in INLINE.findall(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """The fragments that links can name, as GitHub makes them from headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def documents() -> list[Document]:
    """All of them, by path."""
    found = [
        *ROOT.glob("*.md"),
        *(path for each in FOLDERS for path in ROOT.glob(f"{each}/**/*.md")),
    ]
    return [Document(path) for path in sorted(found)]


def document(name: str) -> Document:
    """The one of this path in the project."""
    return Document(ROOT / name)


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as words without assignments and redirections.

    Commands in pipes, lists and ``$(...)`` are commands of their own. Nothing is expanded.
    """
    for line in _logical_lines(script):
        for inner in SUBSTITUTION.findall(line):
            yield from commands(inner)
        line = SUBSTITUTION.sub("$X", line)
        words: list[str] = []
        for word in [*_words(line), ";"]:
            if word not in SEPARATORS:
                words.append(word)
                continue
            if command := _command(words):
                yield command
            words = []


def _command(words: list[str]) -> list[str]:
    if words and words[0] == "for":  # its body is in the lines after it
        return []
    while words and (ASSIGNMENT.match(words[0]) or words[0] in KEYWORDS):
        words = words[1:]
    redirects = [bool(re.fullmatch(r"[<>]+", word)) for word in words]
    return [
        word
        for word, here, before in zip(words, redirects, [False, *redirects], strict=False)
        if not here and not before
    ]


def _logical_lines(script: str) -> Iterator[str]:
    """Lines joined where one is continued, or where a quotation goes on."""
    pending = ""
    for line in script.splitlines():
        pending += f"{line}\n"
        if line.endswith("\\"):
            continue
        try:
            _words(pending)
        except ValueError:  # no closing quotation
            continue
        yield pending
        pending = ""
    if pending:
        raise ValueError(f"a quotation has no end: {pending}")


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=";<>|&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)
