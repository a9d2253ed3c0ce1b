"""The command line: one group, commands imported when they are called, errors in one line."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from common.errors import SetupProblem, StenoError, UnknownOption
from common.files import OWN

if TYPE_CHECKING:
    from common.settings import Settings

COMMAND = os.environ.get("STENO_COMMAND", "steno")
"""How this program was called; `scripts/steno` sets it."""

INTERRUPTED = 130
"""128 + SIGINT, as shells count."""


LAZY_COMMANDS: dict[str, tuple[str, str]] = {
    "transcribe": ("scripts.cli.transcribe", "Turn recordings into text."),
    "listen": ("scripts.cli.listen", "Transcribe live audio as it is spoken."),
    "status": ("scripts.cli.client", "Show a job's status and progress."),
    "result": ("scripts.cli.client", "Print a finished job's text."),
    "download": ("scripts.cli.client", "Save a finished job's text in a format."),
    "cancel": ("scripts.cli.client", "Cancel a job."),
    "jobs": ("scripts.cli.jobs", "List jobs, newest first."),
    "retry": ("scripts.cli.jobs", "Retry a failed job."),
    "approve": ("scripts.cli.jobs", "Approve the text of a job in review."),
    "delete": ("scripts.cli.jobs", "Delete a job and its files."),
    "search": ("scripts.cli.transcripts", "Find where something was said."),
    "rerun": ("scripts.cli.transcripts", "Transcribe a span of a job again."),
    "enhance": ("scripts.cli.transcripts", "Have a language model work on a job's text."),
    "keys": ("scripts.cli.keys", "Create, list and revoke API keys."),
    "tenants": ("scripts.cli.keys", "Show and change settings of tenants."),
    "models": ("scripts.cli.models", "List, pull, convert and verify weights."),
    "moderation": (
        "scripts.training.moderation",
        "Train, export, check and evaluate moderation models.",
    ),
    "bench": ("scripts.bench.bench", "Measure speed and accuracy on a folder of recordings."),
    "doctor": ("scripts.cli.doctor", "Check the installation; say how to fix what is missing."),
}
"""The module of each command, which has it under the command's name, and its help. It is imported
only when the command is called, to keep the others fast."""


class OneLineErrors(click.Group):
    """A group whose errors are one line on stderr and a non-zero exit."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            answer = super().main(args, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _fail(_usage_message(error), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", INTERRUPTED)
        except UnknownOption as error:
            allowed = str(error.details["allowed"]).split(", ")
            _fail(f"{error}{suggestion(str(error.details['value']), allowed)}")
        except StenoError as error:
            if os.environ.get("STENO_DEBUG"):
                traceback.print_exc()
            _fail(str(error))
        except BrokenPipeError:  # `steno result ID | head` closed the pipe
            sys.stdout = None
            sys.exit(1)
        except Exception as error:
            if os.environ.get("STENO_DEBUG"):
                traceback.print_exc()
            _fail(_unexpected(error))
        sys.exit(answer if isinstance(answer, int) else 0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:  # it suggests only what is imported
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *LAZY_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LAZY_COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _ = LAZY_COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in LAZY_COMMANDS:
                rows.append((name, LAZY_COMMANDS[name][1]))
            elif (command := super().get_command(ctx, name)) is not None:
                rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def suggestion(value: str, allowed: Iterable[str]) -> str:
    """``. Did you mean X?`` if an allowed value is close to ``value``, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(value.lower(), allowed, n=1)
    return f". Did you mean {close[0]}?" if close else ""


def as_typed(text: str) -> str:
    """``text`` with its commands written as this program was called."""
    names = "|".join(steno.list_commands(click.Context(steno)))
    return re.sub(rf"(?<![\w/.-])steno (?=({names})\b)", f"{COMMAND} ", text)


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"steno: {as_typed(message)}", err=True)
    sys.exit(code)


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{hint}"


def _unexpected(error: Exception) -> str:
    """Write the traceback to a file; returns a line that names it."""
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    try:
        log = load_settings().storage.data_dir / "logs" / "steno.log"
        OWN.make_folder(log.parent)
        with OWN.open(log, "a") as file:
            file.write(f"--- {time.strftime('%FT%T%z')} {' '.join(sys.argv[1:])}\n")
            traceback.print_exception(error, file=file)
    except Exception:
        return f"{summary} (more with --debug)"
    return f"{summary} (more in {log}, or with --debug)"


def load_settings(**overrides: str | int | Path | None) -> Settings:
    """Load the settings; options of the command line take precedence over the environment."""
    for name, value in overrides.items():
        if value is not None:
            os.environ[name.upper()] = str(value)

    from common import settings

    return settings.load_settings()


def _use_data_dir(_: click.Context, __: click.Parameter, folder: Path | None) -> None:
    if folder is not None:
        os.environ["DATA_DIR"] = str(folder.absolute())


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    expose_value=False,
    callback=_use_data_dir,
    help="Data directory of the stack [DATA_DIR].",
)


def interrupt_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP end this command as Ctrl-C does.

    A shell starts the background commands of a script with SIGINT ignored, which Python leaves so;
    an ignored SIGHUP is kept (nohup).
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    import tomllib

    document = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(document.read_text())["project"]
    click.echo(f"{project['name']} {project['version']}")
    ctx.exit()


def _debug(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    if wanted:
        os.environ["STENO_DEBUG"] = "1"


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Try: {COMMAND} transcribe talk.mp3 --language en",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version)
@click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_debug,
    help="Show tracebacks (also STENO_DEBUG=1).",
)
def steno() -> None:
    """Stenopool: recordings in, text out."""


@steno.command()
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes [one per core].")
@click.option("--host", help="Address to listen on [API_HOST, 127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port, 0 for any [API_PORT, 8000].")
@data_dir_option
def up(workers: int | None, host: str | None, port: int | None) -> None:
    """Run the whole service here until Ctrl-C.

    Postgres and Valkey are started as well, unless DATABASE_URL and REDIS_URL name some.
    """
    from scripts.cli.weights import have_default_weights
    from scripts.stack.stack import Stack

    def have_weights() -> None:
        if stack.workers:
            have_default_weights(settings.asr, settings.stream)

    settings = load_settings(api_host=host, api_port=port)
    stack = Stack(
        settings,
        workers=workers,
        report=lambda line: click.echo(as_typed(line), err=True),
        prepare=have_weights,
    )
    interrupt_on_signals()
    click.echo("Starting ...", err=True)
    try:
        address = stack.start()
    except KeyboardInterrupt:
        raise click.Abort from None
    try:
        click.echo(
            f"Stenopool is up at {address} (workers: {stack.workers}, data: {stack.data_dir}). "
            "Ctrl-C stops it."
        )
        sys.stdout.flush()
        stack.wait()
    except KeyboardInterrupt:
        click.echo(
            "Stopping once the steps in hand are finished. Press Ctrl-C again to stop at once.",
            err=True,
        )
        try:
            stack.stop()
        except KeyboardInterrupt:
            stack.kill()
            stack.stop()
            sys.exit(INTERRUPTED)


@steno.command()
@click.option("--host", help="Address to listen on [API_HOST, 127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port [API_PORT, 8000].")
@data_dir_option
def api(host: str | None, port: int | None) -> None:
    """Run only the gateway."""
    _become("api", api_host=host, api_port=port)


@steno.command()
@data_dir_option
def worker() -> None:
    """Run only one worker."""
    _become("worker")


@steno.command()
@data_dir_option
def dispatch() -> None:
    """Run only the dispatcher."""
    _become("worker.dispatcher")


def _become(module: str, **overrides: str | int | None) -> NoReturn:
    """Replace this process by ``python -m module``, so that signals reach it directly."""
    from common.settings import import_from_checkout

    _use_servers(load_settings(**overrides))
    os.environ.update(import_from_checkout())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module])


def _use_servers(settings: Settings) -> None:
    """Use the running stack's servers where the settings name none."""
    wanted = {
        "DATABASE_URL": settings.database.url is None,
        "REDIS_URL": settings.redis.address is None,
    }
    if not any(wanted.values()):
        return
    from scripts.stack.running import find_running

    running = find_running(settings.storage.data_dir.absolute())
    if running is None:
        raise SetupProblem(
            problem=f"{' and '.join(name for name in wanted if wanted[name])} not set",
            remedy="Name the servers to use, or start everything with: steno up",
        )
    if wanted["DATABASE_URL"]:
        os.environ["DATABASE_URL"] = running.database_url
    if wanted["REDIS_URL"]:
        os.environ["REDIS_URL"] = running.redis_url


@contextmanager
def database_here() -> Iterator[str]:
    """The URL of the database: the configured one, the running stack's, or an embedded one.

    An embedded one is migrated, and stopped when the block ends.
    """
    from common.db.migrate import upgrade
    from scripts.stack.embedded import EmbeddedPostgres
    from scripts.stack.running import find_running

    settings = load_settings()
    data_dir = settings.storage.data_dir.absolute()
    if settings.database.address is not None:
        yield settings.database.address
    elif (running := find_running(data_dir)) is not None:
        yield running.database_url
    else:
        with EmbeddedPostgres(data_dir / "postgres") as server:
            upgrade(server.url)
            yield server.url


@steno.command()
@click.option(
    "--downgrade", "revision", help="Downgrade to this revision; base removes all tables."
)
@data_dir_option
def migrate(revision: str | None) -> None:
    """Migrate the database to this version's tables."""
    from common.db.migrate import downgrade, revisions, upgrade
    from common.net.reach import wait_for

    with database_here() as url:
        wait_for(lambda: revisions(url))
        if revision is None:
            upgrade(url)
        else:
            downgrade(url, revision)
        found, newest = revisions(url)
    click.echo(f"The database is at {found or 'nothing'} (newest: {newest})")
