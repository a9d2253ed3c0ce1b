"""``steno transcribe``: recordings to a gateway, their text to stdout and to files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args
from uuid import uuid4

import click
from loguru import logger
from rich.console import Console

from common.domain.formats import FLAGGING, RTTM, SUBTITLES
from common.domain.languages import AUTO
from common.domain.models import BATCH_ENGINES
from common.domain.request import Channels
from common.domain.subtitles import LIMITS
from common.errors import GatewayLost, RequestRejected, StenoError
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.cli.cli import interrupt_on_signals, load_settings
from scripts.cli.client import (
    FORMATS,
    WITH_TEXT,
    Gateway,
    LanguageParam,
    LanguagesParam,
    SpeakersParam,
    clock,
    ending_of,
    flagged,
    gateway_options,
    layout_of,
    layout_options,
    lines,
    passing,
    plural,
    spoken,
    warning,
    who_speaks,
)
from scripts.cli.progress import Board, Take
from scripts.cli.recordings import find_recordings
from scripts.cli.service import ServiceSession

if TYPE_CHECKING:
    from common.settings import Settings

_Answer = TypeVar("_Answer")

UPLOADS_AT_ONCE = 3
PATIENCE_S = 90.0
"""How long the gateway may be unreachable before that is an error."""
TICK_S = 0.25
"""Least interval between two polls of all jobs."""
WAIT_S = 2.0
"""Longest long poll where there is a single job."""
JOINING_S = 5.0
LINES_SHARE = 10
"""Fetching the text so far may take one part in this many of the time."""


class _Stopped(Exception):
    """The user has stopped the command."""


@dataclass(eq=False)
class TranscribeRun:
    """Uploads recordings, follows their jobs and delivers their texts.

    Call `run` in the main thread.
    """

    service: ServiceSession
    takes: Sequence[Take]
    options: Mapping[str, str]
    board: Board
    deliver: Callable[[Take], None]
    flag: bool = False
    layout: Mapping[str, Any] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lost: threading.Event = field(default_factory=threading.Event)
    _to_send: queue.SimpleQueue[Take] = field(default_factory=queue.SimpleQueue)
    _senders: list[threading.Thread] = field(default_factory=list)

    def run(self) -> None:
        """Run until every take is delivered, in order; on Ctrl-C, cancel open jobs."""
        try:
            self._start_sending()
            delivered = 0
            while delivered < len(self.takes):
                began = time.monotonic()
                self._look_at_all()
                while delivered < len(self.takes) and self.takes[delivered].over:
                    self.deliver(self.takes[delivered])
                    delivered += 1
                if delivered < len(self.takes):
                    self._stopping.wait(max(0.02, TICK_S - (time.monotonic() - began)))
        except BaseException:
            self._undo()
            raise

    # --- sending, in threads ------------------------------------------------------------------

    def _start_sending(self) -> None:
        for take in self.takes:
            if not take.over:
                self._to_send.put(take)
        for _ in range(min(UPLOADS_AT_ONCE, self._to_send.qsize())):
            # Daemons: they must not keep the process alive after a second Ctrl-C.
            thread = threading.Thread(target=self._send_all, daemon=True)
            thread.start()
            self._senders.append(thread)

    def _send_all(self) -> None:
        while not self._stopping.is_set():
            try:
                take = self._to_send.get_nowait()
            except queue.Empty:
                return
            try:
                accepted = self._retrying(functools.partial(self._send, take))
                take.job_id = accepted["job_id"]
            except _Stopped:
                return
            except (StenoError, OSError) as error:
                take.fail(_reason(error, take.path))

    def _send(self, take: Take, gateway: Gateway) -> dict[str, Any]:
        take.sent, take.started_at = 0, time.monotonic()
        take.began_at = take.began_at or take.started_at

        def sent(count: int) -> None:
            if self._stopping.is_set():
                raise _Stopped
            take.sent += count

        return gateway.upload(take.path, self.options, sent)

    # --- polling, in the main thread -----------------------------------------------------------

    def _look_at_all(self) -> None:
        working = [take for take in self.takes if not take.over]
        asked = [take for take in working if take.job_id is not None]
        for take in asked:
            try:
                self._look_at(take, wait_s=WAIT_S if len(working) == 1 else 0)
            except (StenoError, OSError) as error:
                take.fail(_reason(error, take.path))
        if not asked and self._lost.is_set():
            self.service.revive()
            self._lost.clear()

    def _look_at(self, take: Take, wait_s: float) -> None:
        job_id = take.job_id or ""
        take.update(self._retrying(lambda gateway: gateway.status(job_id, wait_s)))
        if not take.ended:
            self._show_text(take)
        elif take.state["status"] not in WITH_TEXT:
            take.fail(take.state["error_message"] or f"the job is {take.state['status']}")
        else:
            take.result = self._retrying(lambda gateway: gateway.result(job_id))
            take.ended_at = time.monotonic()
            for ending, target in take.targets:
                self._retrying(functools.partial(self._save, job_id, ending, target))
            take.over = True

    def _save(self, job_id: str, ending: str, target: Path, gateway: Gateway) -> None:
        flag = self.flag and ending in FLAGGING
        layout = self.layout if ending in SUBTITLES else {}
        gateway.save(job_id, ending, target, flag=flag, layout=layout)

    def _show_text(self, take: Take) -> None:
        """Fetch the text so far, if this take's text is on the screen and has grown."""
        chunks = take.state["chunks_completed"]
        shown = next(each for each in self.takes if not each.over)
        began = time.monotonic()
        if self.board.moves and take is shown and chunks > take.lines_of and began > take.lines_due:
            with contextlib.suppress(GatewayLost, RequestRejected):
                take.lines = lines(self.service.gateway.result(take.job_id or "", partial=True))
                take.lines_of = chunks
            now = time.monotonic()
            take.lines_due = now + LINES_SHARE * (now - began)

    # --- both ---------------------------------------------------------------------------------

    def _retrying(self, ask: Callable[[Gateway], _Answer]) -> _Answer:
        """The gateway's response; retried while the gateway is unavailable."""
        deadline = time.monotonic() + PATIENCE_S
        delay_s = 0.2
        while True:
            try:
                answer = ask(self.service.gateway)
            except (GatewayLost, RequestRejected) as error:
                if not passing(error) or time.monotonic() > deadline:
                    raise
                self.board.notice(f"{error}; trying again")
                self._lost.set()
            else:
                self.board.notice("")
                return answer
            if threading.current_thread() is threading.main_thread():
                self.service.revive()
                self._lost.clear()
            if self._stopping.wait(delay_s):
                raise _Stopped
            delay_s = min(2.0, delay_s * 1.5)

    def _undo(self) -> None:
        """Cancel jobs that still run; a second Ctrl-C skips the rest."""
        self._stopping.set()
        self.board.say("Stopping. Press Ctrl-C again to stop at once.")
        try:
            for thread in self._senders:
                thread.join(JOINING_S)
            for take in self.takes:
                if take.job_id is not None and not take.over and not take.ended:
                    self._cancel(take, take.job_id)
        except KeyboardInterrupt:
            self.board.say(
                "Jobs that were not cancelled resume when a stack is up; see steno cancel ID"
            )
            self.service.kill()
            raise

    def _cancel(self, take: Take, job_id: str) -> None:
        try:
            self.service.gateway.cancel(job_id)
        except StenoError as error:
            self.board.say(f"{take.name}: not cancelled: {error} (job {job_id})")
        else:
            self.board.say(f"{take.name}: cancelled (job {job_id})")


def _reason(error: Exception, path: Path) -> str:
    """Why a recording failed, with the other file's name if the error is about another file."""
    if not isinstance(error, OSError):
        return str(error)
    other = error.filename is not None and Path(error.filename) != path
    return (error.strerror or str(error)) + (f": {error.filename}" if other else "")


# --- output ----------------------------------------------------------------------


def targets(
    paths: Sequence[Path], endings: Sequence[str], output: Path | None
) -> list[list[tuple[str, Path]]]:
    """The files to write for each of ``paths``, by format.

    Raises:
        click.UsageError: two results, or a result and a recording, would be one file.
    """
    if output is not None and not endings:
        endings = [ending_of(output) or "txt"]
    found = []
    for path in paths:
        folder = path.parent if output is None else output
        found.append([(ending, folder / f"{path.stem}.{ending}") for ending in endings])
    is_one = len(paths) * len(endings) == 1
    if output is not None and is_one and output.suffix and not output.is_dir():
        found = [[(endings[0], output)]]
    taken = {path.absolute(): path for path in paths}
    for path, files in zip(paths, found, strict=True):
        for _, target in files:
            other = taken.setdefault(target.absolute(), path)
            if other is not path or target.absolute() == path.absolute():
                raise click.UsageError(
                    f"{target} would be overwritten by the text of {path}"
                    if target.absolute() == other.absolute()
                    else f"The texts of {other} and {path} would both be {target}"
                )
    return found


@dataclass(eq=False)
class Delivery:
    """Writes texts to stdout and to files, and everything about them to the board."""

    board: Board
    several: bool
    default_language: bool
    show_job: bool
    enhanced: bool
    _printed: bool = False

    def deliver(self, take: Take) -> None:
        if take.result is not None:
            self._print(take, take.result)
            self._summarise(take, take.result)
        if take.error is not None and self.several:
            self.board.say(f"{take.name}: failed: {take.error}")

    def conclude(self, takes: Sequence[Take], started_in_s: float | None) -> None:
        """Summarize all takes; ``started_in_s``: how long starting a stack took before."""
        done = [take for take in takes if take.result is not None]
        if len(done) > 1:
            self.board.say(f"{len(done)} recordings: {_pace(done)}")
        if started_in_s is not None:
            self.board.say(f"Starting Stenopool took {_length(started_in_s)} before that.")

    def _print(self, take: Take, result: Mapping[str, Any]) -> None:
        text = "".join(f"{line}\n" for line in lines(result))
        if self.several:  # as head(1) and tail(1) separate files
            text = ("\n" if self._printed else "") + f"==> {take.path} <==\n{text}"
        self._printed = True
        with self.board.released() if sys.stdout.isatty() else contextlib.nullcontext():
            click.echo(text, nl=False)
            sys.stdout.flush()

    def _summarise(self, take: Take, result: Mapping[str, Any]) -> None:
        for code in result["warnings"]:
            self.board.say(f"{take.name}: warning: {warning(code, result)}")
        facts = [_pace([take]), plural(result["word_count"], "word")]
        by_default = " (the default; --language takes others, or auto)"
        facts.append(f"language {spoken(result)}{by_default * self.default_language}")
        facts += who_speaks(result)
        if self.show_job:
            facts.append(f"job {take.job_id}")
        self.board.say(f"{take.name}: {', '.join(facts)}")
        if flags := flagged(result):
            self.board.say(f"{take.name}: {flags}")
        if result["status"] == "REVIEW":
            self.board.say(
                f"{take.name}: awaits review; to approve it: steno approve {take.job_id}"
            )
        if self.enhanced:
            first = "" if self.show_job else "steno up, then "
            self.board.say(
                f"{take.name}: for what the language model makes of it: {first}steno status"
                f" {take.job_id}"
            )
        if take.targets:
            written = ", ".join(str(target) for _, target in take.targets)
            self.board.say(f"{take.name}: wrote {written}")


def _pace(takes: Sequence[Take]) -> str:
    """How long finished takes took, uploads and waiting included."""
    audio_s = sum(take.state["duration_seconds"] for take in takes)
    began_at = min(take.began_at or 0.0 for take in takes)
    wall_s = max(0.001, max(take.ended_at or 0.0 for take in takes) - began_at)
    return f"{_length(audio_s)} of audio in {_length(wall_s)} ({audio_s / wall_s:.1f}x)"


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


# --- the command ------------------------------------------------------------------------------


def _endings(_: click.Context, __: click.Parameter, values: Iterable[str]) -> list[str]:
    """``-f srt,vtt -f txt`` as a list, each once."""
    endings = [each.strip().lower() for value in values for each in value.split(",")]
    for ending in endings:
        if ending not in FORMATS:
            raise click.BadParameter(f"{ending!r} is not one of {', '.join(FORMATS)}")
    return list(dict.fromkeys(endings))


def _suggest_speakers(_: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        raise click.UsageError(f"No such option '{param.opts[0]}'. Did you mean '--speakers'?")


def _wire(options: Mapping[str, Any]) -> dict[str, str]:
    given = {name: value for name, value in options.items() if value is not None}
    if not given.pop("word_timestamps"):
        given["word_timestamps"] = "false"
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
    }


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@click.option(
    "--format",
    "-f",
    "endings",
    multiple=True,
    callback=_endings,
    metavar="LIST",
    help=f"Files to write next to each recording: {','.join(FORMATS)}. "
    "Existing files are overwritten.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder to write to; or a file, for one recording in one format.",
)
@click.option("--recursive", "-r", is_flag=True, help="Search folders recursively.")
@click.option(
    "--language",
    "-l",
    type=LanguageParam(),
    help="A Whisper code (vi, en, ...), a name, or auto [DEFAULT_LANGUAGE].",
)
@click.option(
    "--languages",
    type=LanguagesParam(),
    metavar="LIST",
    help="Several that are spoken in a recording, such as vi,en: each part has its own.",
)
@click.option("--model", "-m", help="Weights, see `steno models list` [DEFAULT_MODEL].")
@click.option("--engine", type=click.Choice(BATCH_ENGINES), help="[DEFAULT_ENGINE]")
@click.option(
    "--task", type=click.Choice(["transcribe", "translate"]), help="translate: to English."
)
@click.option(
    "--speakers",
    type=SpeakersParam(),
    is_flag=False,
    flag_value=AUTO,
    metavar="[N|MIN-MAX|auto]",
    help="Find who says what. The number of people may be given [auto].",
)
@click.option(
    "--diarize", is_flag=True, hidden=True, expose_value=False, callback=_suggest_speakers
)
@click.option(
    "--channels",
    type=click.Choice(get_args(Channels)),
    help="separate: each channel is one person; auto: find out whether it is; mix: all channels "
    "together [mix].",
)
@click.option(
    "--identify",
    is_flag=True,
    default=None,
    help="Name the speakers whose voices are enrolled; with --speakers.",
)
@click.option(
    "--review/--no-review",
    default=None,
    help="Let the job wait until a person approves its text [the tenant's default].",
)
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="[normal]")
@click.option("--beam-size", type=int, help="Beam size, 1 to 16.")
@click.option(
    "--temperature", type=float, help="Fixed temperature, instead of the fallback temperatures."
)
@click.option(
    "--initial-prompt",
    metavar="TEXT",
    help="Text that precedes the recording: sets style and spelling.",
)
@click.option("--hotwords", metavar="TEXT", help="Names and terms that are likely to occur.")
@click.option("--glossaries", metavar="NAMES", help="Glossaries, separated by commas; or none.")
@click.option(
    "--enhance",
    metavar="TASKS",
    help="What a language model makes of the text, such as summary,chapters.",
)
@click.option(
    "--no-word-timestamps",
    "word_timestamps",
    is_flag=True,
    default=True,
    flag_value=False,
    help="Omit word timestamps.",
)
@click.option(
    "--moderation/--no-moderation",
    default=None,
    help="Label each segment CLEAN, OFFENSIVE or HATE [AI_LOAD_MODELS].",
)
@click.option(
    "--filter-profanity",
    is_flag=True,
    default=None,
    help="Mask offensive words except for their first letters.",
)
@click.option(
    "--flag", is_flag=True, help="Prefix offensive text with its label (srt, vtt, docx, html)."
)
@layout_options
@click.option(
    "--chunk-strategy",
    type=click.Choice(["vad", "silence", "fixed"]),
    help="Cut by speech, by silence, or by the clock [CHUNK_STRATEGY].",
)
@click.option("--chunk-duration", type=float, help="Longest window, in s [CHUNK_DURATION].")
@click.option(
    "--chunk-overlap", type=float, help="Overlap of neighbouring windows, in s [CHUNK_OVERLAP]."
)
@click.option("--silence-threshold", type=float, help="In dBFS [SILENCE_THRESHOLD].")
@click.option("--min-silence-duration", type=int, help="In ms [MIN_SILENCE_DURATION].")
@click.option(
    "--audio-track",
    metavar="TRACK",
    help="Audio track: its index from 0, or its language [the default track].",
)
@click.option("--recording-id", metavar="TEXT", help="Your own ID, stored with the job.")
@click.option("--metadata", metavar="JSON", help="A JSON object, stored with the job.")
@click.option("--webhook-url", metavar="URL", help="URL to notify when the job ends.")
@click.option(
    "--delete-after", type=int, help="Delete the job this many s after its end [DELETE_AFTER]."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes of a stack started for this [one per core].",
)
@gateway_options
def transcribe(
    files: tuple[Path, ...],
    recursive: bool,
    endings: list[str],
    output: Path | None,
    flag: bool,
    workers: int | None,
    server: str | None,
    key: str | None,
    speakers: dict[str, Any] | None,
    **options: Any,
) -> None:
    """Turn recordings into text.

    FILE is a recording, a folder of recordings, or a pattern such as 'talks/*.mp3'. The text goes
    to stdout, everything else to stderr. Uses the stack that is running here (or --server), else
    starts one for as long as it takes.
    """
    paths, notes = find_recordings(files, recursive=recursive)
    for note in notes:
        click.echo(note, err=True)
    takes = [
        Take(path, targets=files_of)
        for path, files_of in zip(paths, targets(paths, endings, output), strict=True)
    ]
    written = [ending for take in takes for ending, _ in take.targets]
    layout = layout_of({name: options.pop(name) for name in LIMITS}, written)
    if flag:
        if not any(ending in FLAGGING for ending in written):
            raise click.UsageError("--flag marks text in srt, vtt, docx and html; add -f srt")
        if options["moderation"] is False:
            raise click.UsageError("--flag needs moderation; leave --no-moderation out")
        options["moderation"] = True
    _check_speakers(takes, speakers, options)
    options |= speakers or {}
    for take in takes:
        _look_up(take)
    if not all(take.over for take in takes):
        _run(
            takes,
            _wire(options),
            flag=flag,
            layout=layout,
            workers=workers,
            server=server,
            key=key,
        )
    failed = [take for take in takes if take.error is not None]
    if len(takes) == 1 and failed:
        raise click.ClickException(f"{takes[0].path}: {takes[0].error}")
    if failed:
        names = ", ".join(str(take.path) for take in failed)
        raise click.ClickException(f"{len(failed)} of {len(takes)} failed: {names}")


def _check_speakers(
    takes: Sequence[Take], speakers: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> None:
    identify = options["identify"]
    if options["channels"] == "separate":  # then the channels are the speakers
        if identify or len(speakers or ()) > 1:
            wrong = "--identify" if identify else "the number of --speakers"
            raise click.UsageError(
                f"With --channels separate the channels are the speakers: leave {wrong} out, "
                "or pass --channels auto --speakers"
            )
    elif speakers is None:
        if identify:
            raise click.UsageError("--identify names speakers; add --speakers")
        if any(ending == RTTM for take in takes for ending, _ in take.targets):
            raise click.UsageError("rttm lists the turns of speakers; add --speakers")


def _look_up(take: Take) -> None:
    """Check beforehand what cannot be read or written."""
    try:
        with take.path.open("rb") as file:
            take.size = file.seek(0, 2)
        for _, target in take.targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(target.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))
    except OSError as error:
        take.fail(_reason(error, take.path))


def _check(settings: Settings, options: Mapping[str, str]) -> None:
    """Check the options as a gateway of these settings would, before one is started."""
    # Slow to import, and rarely needed.
    from api.jobs.resolving import Resolver, form_options
    from common.net.egress import Egress

    manifest = Manifest.load()
    store = WeightsStore(settings.asr.models_dir, manifest)
    # Models of jobs are fetched before a start. The networks of diarization are not.
    specs = (spec for spec in manifest.specs if spec.engine in BATCH_ENGINES)
    to_come = {(spec.engine, spec.model) for spec in specs}
    resolver = Resolver(settings, store, Egress(settings.egress.allow), lambda: to_come)
    asyncio.run(resolver.resolve(uuid4(), form_options(options)))


def _run(
    takes: Sequence[Take],
    options: Mapping[str, str],
    *,
    flag: bool,
    layout: Mapping[str, Any],
    workers: int | None,
    server: str | None,
    key: str | None,
) -> None:
    logger.remove()  # the board shows what matters; the rest is in the stack's logs
    interrupt_on_signals()
    console = Console(stderr=True, highlight=False)
    settings = load_settings()
    languages = options.get("languages", "")
    service = ServiceSession(
        settings,
        console,
        check=functools.partial(_check, settings, options),
        server=server,
        key=key,
        workers=workers,
        models=settings.asr.models_of(
            options.get("engine"),
            options.get("model"),
            # Several languages need a model that detects them; a worker fetches those of each.
            AUTO if "," in languages else languages or options.get("language"),
        ),
    )
    with service, Board(takes, console) as board:
        if workers is not None and not service.is_ours:
            board.say("A stack is already running; --workers has no effect.")
        delivery = Delivery(
            board,
            several=len(takes) > 1,
            default_language=not {"language", "languages"} & set(options),
            show_job=not service.is_ours,
            enhanced="enhance" in options,
        )
        TranscribeRun(
            service, takes, options, board, delivery.deliver, flag=flag, layout=layout
        ).run()
        delivery.conclude(takes, service.started_in_s)
