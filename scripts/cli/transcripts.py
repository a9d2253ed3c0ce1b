"""`steno search`, `steno rerun` and `steno enhance`: what can be done with finished texts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import IO, Any

import click
from rich.text import Text

from common.domain.enhancing.tasks import Task
from common.domain.models import BATCH_ENGINES
from scripts.cli.client import (
    ENDED,
    WARNINGS,
    Gateway,
    LanguageParam,
    clock,
    job_id_argument,
    json_option,
    lines,
    plural,
    print_json,
    with_gateway,
)
from scripts.cli.console import make_console

WAIT_S = 30.0
"""Of one long poll."""
_TIME = re.compile(r"[0-9]+(:[0-5]?[0-9]){0,2}(\.[0-9]*)?")


# --- search -----------------------------------------------------------------------------------


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@click.option("--language", "-l", type=LanguageParam(), help="Only text in this language.")
@click.option("--speaker", metavar="NAME", help="Only where this person speaks.")
@click.option("--in", "session_id", metavar="ID", help="Only in this job or live stream.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True)
@json_option
@with_gateway
def search(
    gateway: Gateway, words: tuple[str, ...], limit: int, as_json: bool, **wanted: str | None
) -> None:
    """Find where WORD... was said, the best places first.

    Marks and case do not matter: khach san finds "khách sạn". Words that have to follow one another
    are in quotation marks: steno search '"khach san" bien'.
    """
    query = {name: value for name, value in wanted.items() if value is not None}
    found = list(islice(gateway.search(q=" ".join(words), **query), limit + 1))
    if as_json:
        print_json(found[:limit])
        return
    console = make_console()
    for hit in found[:limit]:
        console.print(Text(_place(hit), style="dim"), soft_wrap=True)
        console.print(_excerpt(hit), soft_wrap=True)
    if not found:
        click.echo("steno: nobody said that in these texts", err=True)
    if len(found) > limit:
        click.echo(f"steno: there are more; raise --limit (now {limit})", err=True)


def _place(hit: Mapping[str, Any]) -> str:
    return f"{hit['session_id']}  {clock(hit['start'])}  {hit['filename'] or 'live stream'}"


def _excerpt(hit: Mapping[str, Any]) -> Text:
    """What was said, with the words that were searched for in bold."""
    speaker = f"{hit['speaker']}: " if hit["speaker"] else ""
    text = Text("  ").append(speaker)
    before = len(text)
    text.append(hit["text"])
    for match in hit["matches"]:
        text.stylize("bold", before + match["start"], before + match["end"])
    return text


# --- a span again -----------------------------------------------------------------------------


class TimeParam(click.ParamType[float]):
    """A time in a recording: 83.5, 1:23.5 or 1:01:23; converts to seconds."""

    name = "time"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if not _TIME.fullmatch(value):
            self.fail(f"{value!r} is not a time such as 83.5, 1:23.5 or 1:01:23", param, ctx)
        seconds = 0.0
        for part in value.split(":"):
            seconds = 60 * seconds + float(part)
        return seconds


@click.command()
@job_id_argument
@click.argument("start", type=TimeParam())
@click.argument("end", type=TimeParam())
@click.option("--language", "-l", type=LanguageParam(), help="[as it was]")
@click.option("--model", "-m", help="Weights, see `steno models list` [as it was].")
@click.option("--engine", type=click.Choice(BATCH_ENGINES), help="[as it was]")
@click.option("--beam-size", type=int, help="Beam size, 1 to 16 [as it was].")
@click.option("--temperature", type=float, help="Fixed temperature [as it was].")
@click.option("--initial-prompt", metavar="TEXT", help="Text that precedes the recording.")
@click.option("--hotwords", metavar="TEXT", help="Names and terms that are likely to occur.")
@json_option
@with_gateway
def rerun(
    gateway: Gateway, job_id: str, start: float, end: float, as_json: bool, **wanted: Any
) -> None:
    """Transcribe a span of the job ID again, from START to END.

    These are times such as 83.5 or 1:23.5. Waits for the new text, which is a new revision of the
    job's transcript, and prints it.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    state = _ended(gateway, gateway.rerun(job_id, start, end, **given)["job_id"])
    if as_json:
        print_json(state)
        return
    found = gateway.result(job_id)
    inside = [it for it in found["segments"] if it["end"] > start and it["start"] < end]
    for line in lines({**found, "segments": inside}):
        click.echo(line)


def _ended(gateway: Gateway, job_id: str) -> dict[str, Any]:
    """The status of a job at its end; raises what it fails with."""
    if sys.stderr.isatty():
        click.echo(f"job {job_id}; it continues after Ctrl-C", err=True)
    state = gateway.status(job_id)
    while state["status"] not in ENDED:
        state = gateway.status(job_id, WAIT_S)
    if state["status"] != "COMPLETED":
        reason = state["error_message"] or f"it is {state['status']}"
        raise click.ClickException(f"job {job_id}: {reason}")
    return state


# --- the second AI step -----------------------------------------------------------------------


@click.command()
@job_id_argument
@click.argument("task", type=click.Choice([task.value for task in Task]))
@click.option(
    "--language", "-l", type=LanguageParam(), help="Language of the answer [that of the text]."
)
@click.option("--model", "-m", help="A model of the server [ENHANCED_AI_MODEL].")
@click.option("--prompt", metavar="TEXT", help="What to do, with the task prompt.")
@click.option(
    "--schema", type=click.File(), help="JSON schema that the answer to --prompt must meet."
)
@click.option("--glossaries", metavar="NAMES", help="Glossaries, or none [those of the job].")
@click.option(
    "--format",
    "-f",
    "ending",
    type=click.Choice(["txt", "srt", "vtt"]),
    help="Print a translation, or a punctuated text, in this format.",
)
@json_option
@with_gateway
def enhance(
    gateway: Gateway,
    job_id: str,
    task: str,
    schema: IO[str] | None,
    ending: str | None,
    as_json: bool,
    **wanted: str | None,
) -> None:
    """Have a language model work on the text of the job ID, and print what it makes of it.

    Nothing of the text is changed. See `steno doctor` for the server.
    """
    given: dict[str, Any] = {name: it for name, it in wanted.items() if it is not None}
    if ending and task not in {Task.TRANSLATE, Task.PUNCTUATE}:
        raise click.UsageError("--format is for translate and punctuate")
    if schema is not None:
        try:
            given["schema"] = json.load(schema)
        except ValueError as error:
            raise click.UsageError(f"--schema is not JSON: {error}") from None
    enhanced_id = gateway.enhance(job_id, task, **given)["enhanced_job_id"]
    _ended(gateway, enhanced_id)
    document = gateway.enhancement(enhanced_id)
    if as_json:
        print_json(document)
        return
    if ending:
        click.echo(gateway.enhanced_file(enhanced_id, ending), nl=False)
    else:
        for line in in_words(document["result"]):
            click.echo(line)
    for code in document["warnings"]:
        click.echo(f"steno: warning: {WARNINGS.get(code, code)}", err=True)


def in_words(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of any task as text."""
    if "text" in result:
        yield result["text"]
    for name, written in _ITEMS.items():
        yield from map(written, result.get(name, ()))
    if "answer" in result:
        answer = result["answer"]
        is_text = isinstance(answer, str)
        yield answer if is_text else json.dumps(answer, ensure_ascii=False, indent=2)


def _chapter(it: Mapping[str, Any]) -> str:
    return f"{clock(it['start'])}  {it['title']}"


def _action(it: Mapping[str, Any]) -> str:
    who = f"{it['who']}: " if it["who"] else ""
    due = f" ({it['due']})" if it["due"] else ""
    return f"{clock(it['start'])}  {who}{it['what']}{due}"


def _section(it: Mapping[str, Any]) -> str:
    points = [f"- {point['text']} ({clock(point['start'])})" for point in it["points"]]
    return "\n".join([it["title"], *points])


def _keyword(it: Mapping[str, Any]) -> str:
    return f"{it['keyword']} ({plural(it['count'], 'time')})"


def _segment(it: Mapping[str, Any]) -> str:
    return f"{it['speaker']}: {it['text']}" if it["speaker"] else str(it["text"])


def _proposal(it: Mapping[str, Any]) -> str:
    return f"{clock(it['start'])}  {it['before']}\n  -> {it['text']} ({it['reason']})"


_ITEMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "chapters": _chapter,
    "action_items": _action,
    "sections": _section,
    "keywords": _keyword,
    "segments": _segment,
    "edits": _proposal,
}
"""How each item of a list in a result is written."""
