"""``steno listen``: send live audio to a gateway and show partials and finals."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import click
from loguru import logger
from rich.console import Console
from rich.live import Live
from rich.text import Text

from common.asr.loading import STYLES
from common.audio.probe import probe
from common.domain.models import ModelName
from common.errors import GatewayLost, ModelNotInstalled, RequestRejected, SetupProblem, StenoError
from common.settings import Settings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.cli.cli import interrupt_on_signals, load_settings
from scripts.cli.client import LanguageParam, flagged, gateway_options, plural
from scripts.cli.service import ServiceSession
from scripts.cli.streaming import (
    Message,
    StreamClient,
    in_thread,
    of_file,
    of_microphone,
    of_pipe,
    paced,
)
from scripts.stack.running import find_running

PIPE = "-"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STATES = {
    "loading": "Loading {model_id} ...",
    "ready": "",
    "behind": "The gateway is {behind_seconds:.0f} s behind ...",
    "caught_up": "",
    "recognizer_lost": "The recognizer was lost; unreported audio is recognized again ...",
    "recognizer_back": "",
}
"""What is shown while a stream is in a state."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where audio comes from. ``speed`` is as for `paced`.

    One that ``waits`` begins once the stream is ready, another has begun already; ``cue``
    announces the beginning.
    """

    name: str
    pieces: Iterable[bytes]
    speed: float = 0.0
    waits: bool = True
    cue: str = ""


class Screen:
    """The finals as lines on stdout, and on a terminal below them what is being said.

    Everything else goes to stderr. ``moves`` False: nothing that would change is shown.
    """

    def __init__(self, *, moves: bool) -> None:
        self._console = Console(stderr=not sys.stdout.isatty(), highlight=False)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._moves = moves and terminal
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: Text) -> None:
        """Show this until something else is."""
        if not self._moves:
            return
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(text, refresh=True)

    def clear(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def print_line(self, line: str) -> None:
        """A line of the text, which stays."""
        self.clear()
        click.echo(line)
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """A line about it, which stays."""
        self.clear()
        click.echo(line, err=True)


@dataclass(eq=False)
class Listening:
    """One stream, from its first audio to its last final."""

    stream: StreamClient
    source: Source
    screen: Screen
    as_json: bool
    _words: int = 0
    _ready: Mapping[str, Any] = field(default_factory=dict)
    _closed: Mapping[str, Any] = field(default_factory=dict)
    _stopping: bool = False

    async def run(self) -> None:
        """Run until the last final. Ctrl-C ends the audio, a second one the command.

        Raises:
            RequestRejected, GatewayLost: the gateway rejects the stream, or the connection broke.
            KeyboardInterrupt: at the second Ctrl-C.
            Whatever the source raises.
        """
        async with self.stream:
            speaking = asyncio.create_task(self._speak())
            try:
                with self._interruptible(speaking):
                    async for message in self.stream.messages():
                        self._take(message)
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
            finally:
                speaking.cancel()
                await asyncio.wait([speaking])
            with suppress(asyncio.CancelledError):
                speaking.result()
        self.stream.check()

    def summary(self, *, default_language: bool, show_session: bool) -> str:
        """The stream's outcome in words."""
        facts = [
            f"{self._closed.get('audio_seconds', 0.0):.1f} s of audio",
            plural(self._words, "word"),
        ]
        if self._ready:
            by_default = " (the default; --language takes others)"
            facts.append(f"language {self._ready['language']}{by_default * default_language}")
            if show_session:
                facts.append(f"session {self._ready['session_id']}")
        return f"{self.source.name}: {', '.join(facts)}"

    async def _speak(self) -> None:
        """Send the audio, and in every case its end."""
        try:
            if self.source.waits:
                await self.stream.ready.wait()
            async with in_thread(self.source.pieces) as pieces:
                async for piece in paced(pieces, self.source.speed):
                    if not await self.stream.send(piece):
                        return
        finally:
            await self.stream.finish()

    def _take(self, message: Message) -> None:
        document = message.document
        match message.type:
            case "status" if document["status"] == "ready":
                self._ready = document
            case "status" if document["status"] == "closed":
                self._closed = document
            case "final":
                self._words += len(document["text"].split())
        if self.as_json:
            self.screen.print_line(message.text)
        else:
            self._show(message.type, document)

    def _show(self, kind: str, document: Mapping[str, Any]) -> None:
        match kind:
            case "status":
                self._show_state(document)
            case "partial":
                text, stable = document["text"], document["stable"]
                self.screen.show(Text.assemble(text[:stable], (text[stable:], "dim")))
            case "final":
                self.screen.clear()
                if line := " ".join(document["text"].split()):
                    self.screen.print_line(line)
            case "detections":
                if flags := flagged({"moderation": document}):
                    self.screen.say(f"{self.source.name}: {flags}")
            case "error" if not document["fatal"]:
                self.screen.say(f"{self.source.name}: warning: {document['detail']}")

    def _show_state(self, status: Mapping[str, Any]) -> None:
        state = status["status"]
        if state == "ready" and self.source.cue:
            self.screen.say(self.source.cue)
        elif line := STATES.get(state):
            self.screen.show(Text(line.format_map(status), style="yellow"))
        else:
            self.screen.clear()

    @contextmanager
    def _interruptible(self, speaking: asyncio.Task[None]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        whole = asyncio.current_task()

        def interrupt() -> None:
            if self._stopping and whole is not None:
                whole.cancel()
                return
            self._stopping = True
            self.screen.say("Stopping after the last words. Press Ctrl-C again to stop at once.")
            speaking.cancel()

        kept = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            loop.add_signal_handler(number, interrupt)
        try:
            yield
        finally:
            for number, handler in kept.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


# --- the command ------------------------------------------------------------------------------


@click.command()
@click.argument("file", required=False, metavar="FILE|-")
@click.option("--microphone", is_flag=True, help="Record from a microphone instead of FILE.")
@click.option("--device", metavar="NAME", help="Microphone, as FFmpeg names it [the default].")
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    help="Speed at which FILE is sent, in times real time; 0: as fast as possible [1].",
)
@click.option(
    "--language",
    "-l",
    type=LanguageParam(),
    help="A Whisper code (vi, en, ...) [DEFAULT_LANGUAGE].",
)
@click.option("--model", "-m", "model_id", metavar="NAME", help="Weights [STREAM_MODEL].")
@click.option("--engine", type=click.Choice(list(STYLES)), help="[STREAM_ENGINE]")
@click.option(
    "--moderation/--no-moderation",
    default=None,
    help="Label each final CLEAN, OFFENSIVE or HATE [AI_LOAD_MODELS].",
)
@click.option("--endpointing", type=int, help="Silence that ends an utterance, in ms [500].")
@click.option("--recording-id", metavar="TEXT", help="Your own ID, stored with the session.")
@click.option(
    "--format",
    "-f",
    "form",
    type=click.Choice(["txt", "json"]),
    default="txt",
    help="json: every message of the gateway, one per line.",
)
@gateway_options
def listen(
    file: str | None,
    microphone: bool,
    device: str | None,
    speed: float | None,
    form: str,
    server: str | None,
    key: str | None,
    **options: Any,
) -> None:
    """Transcribe live audio as it is spoken.

    FILE is any recording, sent as fast as it would be spoken; - reads 16 kHz mono s16le, without a
    header, from stdin. The text goes to stdout, an utterance a line, and everything else to stderr.
    Uses the stack that is running here (or --server), else starts one for as long as it takes.
    """
    if (file is None) is not microphone:
        raise click.UsageError("Pass a recording, - for stdin, or --microphone")
    if device is not None and not microphone:
        raise click.UsageError("--device needs --microphone")
    if speed is not None and microphone:
        raise click.UsageError("--speed does not go with --microphone")
    source = _source(file, device, speed)
    given = {name: value for name, value in options.items() if value is not None}
    _run(source, given, as_json=form == "json", server=server, key=key)


def _source(file: str | None, device: str | None, speed: float | None) -> Source:
    if file is None:
        cue = "Listening. Ctrl-C ends it."
        return Source("microphone", of_microphone(device), cue=cue)
    if file == PIPE:
        return Source("stdin", of_pipe(sys.stdin.fileno()), speed or 0.0, waits=False)
    path = Path(file)
    with _about(path):
        probe(path)
    return Source(path.name, of_file(path), 1.0 if speed is None else speed)


@contextmanager
def _about(name: object) -> Iterator[None]:
    """Prefix errors with their source."""
    try:
        yield
    except (RequestRejected, GatewayLost, SetupProblem):
        raise
    except StenoError as error:
        raise click.ClickException(f"{name}: {error}") from error
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror or error}") from error


def _run(
    source: Source,
    options: Mapping[str, Any],
    *,
    as_json: bool,
    server: str | None,
    key: str | None,
) -> None:
    logger.remove()  # the screen shows what matters; the rest is in the stack's logs
    interrupt_on_signals()
    settings = load_settings()
    service = _service(settings, options, server, key)
    with service, Screen(moves=not as_json) as screen, _about(source.name):
        stream = StreamClient(service.gateway.address, key or settings.key.of_client, **options)
        listening = Listening(stream, source, screen, as_json=as_json)
        asyncio.run(listening.run())
        if not as_json:
            summary = listening.summary(
                default_language="language" not in options, show_session=not service.is_ours
            )
            screen.say(summary)


def _service(
    settings: Settings, options: Mapping[str, Any], server: str | None, key: str | None
) -> ServiceSession:
    """The gateway to use. One that has to be started needs no workers, but the weights."""
    console = Console(stderr=True, highlight=False)
    models: Sequence[ModelName] = ()
    if server is None and find_running(settings.storage.data_dir.absolute()) is None:
        models = [_weights(settings, options)]
    return ServiceSession(settings, console, server=server, key=key, workers=0, models=models)


def _weights(settings: Settings, options: Mapping[str, Any]) -> ModelName:
    """The model that a gateway with these settings selects, present or not."""
    # They take a while to import.
    from api.http.problems import validated
    from api.streams.options import StreamOptions, StreamResolver

    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    try:
        setup = StreamResolver(settings, store).setup(validated(StreamOptions, options))
    except ModelNotInstalled as missing:
        return ModelName(str(missing.details["engine"]), str(missing.details["model"]))
    return ModelName(setup.engine, setup.model)
