"""Unusual recordings and the result each must give.

Run ``scripts/test --system cases FOLDER``.

FOLDER holds recordings and ``cases.tsv``: a line of headings, then one line a case with the name of
a file, a language (or ``auto``), and what it must give, in words such as ``the words of en.wav,
then of fr.wav; about 29.8 s; no warning``. The words of a clip are those the service finds in it. A
stack of its own transcribes every case, and a table says what came. The exit status is 1 where a
case fails.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from common.audio.decode import HEADER_SIZE_WRONG
from common.domain.tracks import OTHER_AUDIO_TRACK
from common.errors import SetupProblem, StenoError
from scripts.bench.corpus import wer
from scripts.bench.service import UnderTest
from scripts.cli.client import ENDED, Gateway
from scripts.cli.console import make_console
from tests.system.report import Row, all_ok, show

CASES = "cases.tsv"
POLL_S = 30.0
MOST_ERRORS = 20.0
"""Word errors, in %, up to which two transcripts have the same words."""
SHOWN = 70
"""Letters of a text that the table has room for."""


@dataclass(frozen=True, slots=True)
class Case:
    """A recording, the language to ask for, and what it must give."""

    file: str
    language: str
    expected: str


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """What came of a recording: its result, or an error."""

    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def text(self) -> str:
        return str(self.result.get("text", "")).strip()

    @property
    def warnings(self) -> list[str]:
        return list(self.result.get("warnings", ()))

    def __str__(self) -> str:
        if self.error is not None:
            return self.error
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}..."
        facts = [f"{self.result['duration_seconds']:.1f} s", str(self.result["language"])]
        return f"{text!r}; {', '.join([*facts, *self.warnings])}"


class Answers:
    """Transcribes clips of a folder, each but once."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._folder = folder
        self._known: dict[tuple[str, str], CaseAnswer] = {}

    def answer(self, file: str, language: str) -> CaseAnswer:
        """What the service says to a recording."""
        key = (file, language)
        if key not in self._known:
            self._known[key] = self._ask(self._folder / file, language)
        return self._known[key]

    def _ask(self, path: Path, language: str) -> CaseAnswer:
        options = {"language": language, "moderation": "false"}
        try:
            job_id = self._gateway.upload(path, options)["job_id"]
            while (status := self._gateway.status(job_id, POLL_S))["status"] not in ENDED:
                pass
            if status["status"] != "COMPLETED":
                return CaseAnswer(error=f"{status['status']}: {status['error_message']}")
            return CaseAnswer(self._gateway.result(job_id))
        except StenoError as error:
            return CaseAnswer(error=str(error))


def read_cases(folder: Path) -> list[Case]:
    """The cases in a folder.

    Raises:
        SetupProblem: there are none, or one cannot be read.
    """
    path = folder / CASES
    if not path.is_file():
        raise SetupProblem(problem=f"{folder} has no {CASES}", remedy="Name another folder")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    if not all(len(row) == 3 and _is_read(row[2]) for row in rows):
        wrong = next(row for row in rows if len(row) != 3 or not _is_read(row[2]))
        raise SetupProblem(problem=f"{path}: {wrong} cannot be read", remedy=f"See {__name__}")
    return [Case(*row) for row in rows]


def run(gateway: Gateway, folder: Path, cases: Sequence[Case]) -> Iterator[Row]:
    """Transcribe the recordings of ``cases``, one after the other."""
    service = Answers(gateway, folder)
    for case in cases:
        answer = service.answer(case.file, case.language)
        yield Row(case.file, str(answer), case.expected, _meets(case, answer, service))


# --- what must be ---------------------------------------------------------------------------------

Check = Callable[[re.Match[str], Case, CaseAnswer, Answers], bool]


def _words(found: re.Match[str], case: Case, answer: CaseAnswer, service: Answers) -> bool:
    spoken = re.search(r"language (\w+)", case.expected)
    language = spoken[1] if spoken else case.language
    clips = [name for name in found.groups() if name]
    texts = [service.answer(name, language).text for name in clips]
    return all(texts) and wer([" ".join(texts)], [answer.text], language) <= MOST_ERRORS


def _lasts(found: re.Match[str], _case: Case, answer: CaseAnswer, _service: Answers) -> bool:
    seconds = float(found[1])
    return abs(float(answer.result["duration_seconds"]) - seconds) <= 0.3 + 0.01 * seconds


def _doubtful(_found: re.Match[str], _case: Case, answer: CaseAnswer, _service: Answers) -> bool:
    return bool(answer.text) and all(segment["flags"] for segment in answer.result["segments"])


def _warned(code: str) -> Check:
    return lambda _found, _case, answer, _service: answer.warnings == [code]


CHECKS: tuple[tuple[str, Check], ...] = (
    (r"the words of (\S+?)(?:, then of (\S+))?(?: \(.*\))?", _words),
    (r"about ([0-9.]+) s", _lasts),
    (r"language (\w+)", lambda found, _case, answer, _: answer.result["language"] == found[1]),
    (r"no warning", lambda _, _case, answer, _service: not answer.warnings),
    (r"a warning", lambda _, _case, answer, _service: bool(answer.warnings)),
    (r"empty text", lambda _, _case, answer, _service: not answer.text),
    (r"text that is flagged as doubtful", _doubtful),
    (
        r"a warning where the text is empty",
        lambda _, _case, answer, _service: bool(answer.text or answer.warnings),
    ),
    (r"(?:one|a warning) that .*\bheader.*", _warned(HEADER_SIZE_WRONG)),
    (r"a warning that names the other track.*", _warned(OTHER_AUDIO_TRACK)),
)
"""How expectations are written, and how each is checked."""


def _meets(case: Case, answer: CaseAnswer, service: Answers) -> bool:
    """Whether all that is between semicolons is so; of what is between ", or ", one thing."""

    def holds(part: str) -> bool:
        return any(
            check(found, case, answer, service)
            for pattern, check in CHECKS
            if (found := re.fullmatch(pattern, part))
        )

    return answer.error is None and all(
        any(all(map(holds, parts)) for parts in alternatives)
        for alternatives in _parts(case.expected)
    )


def _parts(expected: str) -> Iterator[list[list[str]]]:
    for clause in expected.split(";"):
        alternatives = [text.strip() for text in clause.split(", or ")]
        yield [[text] if _is_known(text) else re.split(r",? and ", text) for text in alternatives]


def _is_read(expected: str) -> bool:
    return all(
        _is_known(part)
        for alternatives in _parts(expected)
        for parts in alternatives
        for part in parts
    )


def _is_known(part: str) -> bool:
    return any(re.fullmatch(pattern, part) for pattern, _ in CHECKS)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Run the cases of ``folder``."""
    cases = read_cases(folder)
    rows = []
    with UnderTest(workers=1) as service:
        for row in run(service.gateway, folder, cases):
            click.echo(str(row), err=True)
            rows.append(row)
    show({"cases": rows}, make_console())
    sys.exit(not all_ok({"cases": rows}))
