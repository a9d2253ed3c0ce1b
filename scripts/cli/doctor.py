"""``steno doctor``: check the installation, and say how to fix what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import psycopg
import redis
from packaging.requirements import Requirement
from sqlalchemy.exc import SQLAlchemyError

from api.processes.child import LOADING, OFF, OK
from common.db.chat_servers import all_chat_servers, key_of
from common.db.database import Database
from common.db.migrate import revisions
from common.db.tables import StoredChatServer
from common.db.vault import CHAT_KEYS, VOICES, Cipher
from common.db.voices import count_voices
from common.domain.chat import Message
from common.domain.models import SPEAKER_NETWORKS
from common.errors import AnswerTruncated, ChatKeyLocked, ModerationOff, SetupProblem, StenoError
from common.llm.chat import Chat
from common.llm.openai_chat import open_chat
from common.llm.servers import server_in_use
from common.redis.queue import StepQueue, connect
from common.settings import INSTALLED, ROOT, Settings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.cli.cli import as_typed, data_dir_option, load_settings
from scripts.cli.client import Gateway, find_gateway
from scripts.stack.embedded import choose_identity, find_postgres, find_valkey, listening_problem
from scripts.stack.running import RunningStack, find_owner, find_running

ENOUGH_DISK_BYTES = 2_000_000_000
"""The default weights, and some hours of recordings with their chunks."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, with a remedy if it failed."""

    what: str
    found: str
    remedy: str | None = None


def examine(settings: Settings, tenant: str | None = None) -> Iterator[Check]:
    """Check everything that ``steno up`` and its jobs need; leaves nothing behind.

    ``tenant``: one whose own language model is asked, too.
    """
    running = find_running(settings.storage.data_dir.absolute())
    yield _python()
    yield _packages()
    yield _weights(settings)
    yield _moderation(settings)
    yield _speakers(settings)
    yield _language_model(settings)
    yield _data_dir(settings.storage.data_dir.absolute())
    yield _disk(settings.storage.data_dir.absolute())
    yield _postgres(settings, running)
    yield _redis(settings, running)
    yield _migrations(settings, running)
    yield from _voices(settings, running)
    yield from _tenants(settings, running, tenant)
    yield _gateway(settings, running)
    if running is not None:
        yield _workers(running)


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    good = sys.version_info >= (3, 11)
    return Check("Python", found, None if good else "install Python 3.11 or newer")


def _packages() -> Check:
    """The installed packages against the lock."""
    if INSTALLED:
        return Check("packages", "as pip, pipx or uv chose them")
    wrong = []
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [Requirement(line.rstrip("\\ ")) for line in lines if "==" in line]
    for requirement in pinned:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            good = requirement.specifier.contains(
                metadata.version(requirement.name), prereleases=True
            )
        except metadata.PackageNotFoundError:
            good = False
        if not good:
            wrong.append(f"{requirement.name}{requirement.specifier}")
    if wrong:
        return Check(
            "packages",
            f"missing or of another version: {', '.join(wrong)}",
            "delete .venv and run scripts/steno again",
        )
    return Check("packages", "all as locked")


def _weights(settings: Settings) -> Check:
    names = settings.asr.default_models
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    problem = ""
    for name in names:
        try:
            weights = store.resolve(name.engine, name.model)
        except StenoError as error:
            problem = problem or error.message
        else:
            return Check("weights", f"{weights.model} for {weights.engine} in {weights.path}")
    return Check("weights", problem, names[0].pull_command)


def _moderation(settings: Settings) -> Check:
    from common.moderation.loading import load_moderation

    try:
        model = load_moderation(settings.moderation).by.model
    except ModerationOff as error:
        return Check("moderation", error.message)
    except StenoError as error:
        return Check("moderation", error.message, "see PHOBERT_ONNX_DIR in .env.example")
    return Check("moderation", f"{model} can be used")


def _speakers(settings: Settings) -> Check:
    """The networks of diarization, which only jobs with ``diarize`` need."""
    states = WeightsStore(settings.asr.models_dir, Manifest.load()).states()
    here = {(it.engine, it.model) for it in states if it.state == "present"}
    lacking = [it for it in SPEAKER_NETWORKS if (it.engine, it.model) not in here]
    if not lacking:
        return Check("speakers", "the networks for diarization are installed")
    names = " and ".join(it.model for it in lacking)
    if settings.asr.auto_fetch:
        return Check("speakers", f"{names} will be fetched for the first job with diarize")
    commands = " && ".join(it.pull_command for it in lacking)
    return Check("speakers", f"not possible without {names}; to have them, run: {commands}")


def _language_model(settings: Settings) -> Check:
    """A short question to the server of language models, if there is one."""
    what = "language"
    if settings.enhanced_ai.base_url is None:
        return Check(what, "no language model (ENHANCED_AI_BASE_URL)")
    try:
        return Check(what, _asked(open_chat(settings), settings.enhanced_ai.model))
    except StenoError as error:
        return Check(what, error.message, "check ENHANCED_AI_BASE_URL, its key and its model")


def _asked(chat: Chat, model: str | None) -> str:
    """What became of a short question to ``model``."""
    try:
        answer = chat.ask([Message("user", "Answer with one word.")], max_tokens=64)
    except AnswerTruncated:
        return f"{model} answers"
    return f"{answer.model} answers in {answer.elapsed_ms / 1000:.1f} s"


def _tenants(
    settings: Settings, running: RunningStack | None, asked: str | None
) -> Iterator[Check]:
    """Whether the keys of tenants' own language models can be decrypted, where a database is up.

    Only the model of the tenant ``asked`` is sent a question: it is not ours to use.
    """
    what = "tenants"
    url = _database_url(settings, running)
    if url is None:
        if asked is not None:
            yield Check(what, "no database is up", "run: steno up")
        return
    try:
        cipher = Cipher(CHAT_KEYS, settings.key.for_secrets)
        with Database(url, pool_size=1) as database:
            servers = {each.tenant: each for each in all_chat_servers(database)}
    except SetupProblem as problem:
        yield Check(what, str(problem.details["problem"]), str(problem.details["remedy"]))
        return
    except (StenoError, SQLAlchemyError):
        yield Check(what, "cannot be read", "see Postgres and migrations above")
        return
    locked = [name for name, each in servers.items() if not _can_be_opened(each, cipher)]
    found = f"{len(servers)} with a language model of their own"
    if locked:
        found += f", of which {len(locked)} have a key that cannot be decrypted: {cipher.lack}"
    remedy = "set SECRETS_KEY to the key that encrypted them, or run: steno tenants set-model"
    if servers:
        yield Check(what, found, remedy if locked else None)
    if asked is not None:
        yield _language_model_of(settings, asked, servers.get(asked), cipher)


def _can_be_opened(server: StoredChatServer, cipher: Cipher) -> bool:
    try:
        key_of(server, cipher)
    except ChatKeyLocked:
        return False
    return True


def _language_model_of(
    settings: Settings, tenant: str, server: StoredChatServer | None, cipher: Cipher
) -> Check:
    """A short question to the tenant's own language model."""
    if server is None:
        found = f"{tenant} has no language model of its own"
        return Check("tenant", found, f"run: steno tenants set-model {tenant}")
    try:
        used = server_in_use(settings, server, cipher)
        return Check(
            "tenant", f"{tenant}: {_asked(open_chat(settings, used.server), server.model)}"
        )
    except StenoError as error:
        return Check("tenant", error.message, f"run: steno tenants set-model {tenant}")


def _data_dir(data_dir: Path) -> Check:
    existing = _nearest_existing(data_dir)
    if os.access(existing, os.W_OK | os.X_OK):
        return Check("data", f"{data_dir} can be written")
    return Check("data", f"{existing} cannot be written", "choose another folder with DATA_DIR")


def _disk(data_dir: Path) -> Check:
    free = shutil.disk_usage(_nearest_existing(data_dir)).free
    found = f"{free / 1e9:.1f} GB free for {data_dir}"
    if free < ENOUGH_DISK_BYTES:
        return Check("disk", found, f"have {ENOUGH_DISK_BYTES / 1e9:.0f} GB, or move DATA_DIR")
    return Check("disk", found)


def _postgres(settings: Settings, running: RunningStack | None) -> Check:
    url = _database_url(settings, running)
    if url is None:
        return _embedded("Postgres", lambda: _embedded_postgres(settings))
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            number = connection.info.server_version
    except psycopg.Error as error:
        return Check("Postgres", _first_line(error), "check DATABASE_URL and that it is up")
    return Check("Postgres", f"{number // 10_000}.{number % 10_000} answers")


def _redis(settings: Settings, running: RunningStack | None) -> Check:
    url = settings.redis.address or (running.redis_url if running else None)
    if url is None:
        return _embedded("Redis", lambda: str(find_valkey()))
    try:
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        return Check("Redis", _first_line(error), "check REDIS_URL and that it is up")
    return Check("Redis", "answers")


def _embedded(what: str, find: Callable[[], str]) -> Check:
    try:
        return Check(what, f"embedded, {find()}")
    except SetupProblem as problem:
        return Check(what, str(problem.details["problem"]), str(problem.details["remedy"]))


def _embedded_postgres(settings: Settings) -> str:
    binaries, major = find_postgres()
    choose_identity(binaries / "postgres", _nearest_existing(settings.storage.data_dir.absolute()))
    return f"{major} in {binaries}"


def _migrations(settings: Settings, running: RunningStack | None) -> Check:
    url = _database_url(settings, running)
    if url is None:
        return Check("migrations", "applied by steno up")
    try:
        found, newest = revisions(url)
    except StenoError as error:
        return Check("migrations", str(error), "see Postgres above")
    if found != newest:
        return Check("migrations", f"at {found or 'nothing'}, not {newest}", "run: steno migrate")
    return Check("migrations", f"at {found}, the newest")


def _voices(settings: Settings, running: RunningStack | None) -> Iterator[Check]:
    """Whether the enrolled voices can be decrypted, where a database is up to be asked."""
    url = _database_url(settings, running)
    if url is None:
        return
    try:
        cipher = Cipher(VOICES, settings.key.for_voices)
        with Database(url, pool_size=1) as database:
            count, locked = count_voices(database, cipher)
    except SetupProblem as problem:
        yield Check("voices", str(problem.details["problem"]), str(problem.details["remedy"]))
    except (StenoError, SQLAlchemyError):
        yield Check("voices", "cannot be read", "see Postgres and migrations above")
    else:
        found = f"{count} enrolled"
        if locked:
            found += f", of which {locked} cannot be decrypted: {cipher.lack}"
            yield Check("voices", found, "set VOICE_KEY to the key that encrypted them")
        else:
            yield Check("voices", found)


def _gateway(settings: Settings, running: RunningStack | None) -> Check:
    if running is not None:
        return Check("gateway", f"up at {running.address} (process {running.pid})")
    owner = find_owner(settings.storage.data_dir.absolute())
    if owner is not None:
        return Check("gateway", f"starting or stopping (process {owner})", "wait for it")
    host, port = settings.api.host, settings.api.port
    problem = listening_problem(port, host)
    if problem is not None:
        return Check(
            "gateway",
            f"not running, and {host} port {port} cannot be used: {problem}",
            "choose another with --port or API_PORT",
        )
    return Check("gateway", f"not running; {host} port {port} is free")


def _workers(running: RunningStack) -> Check:
    """All workers registered with the stack's queue, on any host."""
    try:
        workers = StepQueue(connect(running.redis_url)).live_workers()
    except redis.RedisError as error:
        return Check("workers", _first_line(error), "see Redis above")
    if workers == 0:
        return Check("workers", "none is running", "start one with: steno worker")
    return Check("workers", f"{workers} running")


def _database_url(settings: Settings, running: RunningStack | None) -> str | None:
    return settings.database.address or (running.database_url if running else None)


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def examine_server(gateway: Gateway) -> Iterator[Check]:
    """Check a gateway over HTTP by its health report."""
    health = gateway.health()
    yield Check("gateway", f"{health['version']} answers at {gateway.address}")
    for part, said in health["parts"].items():
        well = said in {OK, OFF, LOADING}
        yield Check(part, said, None if well else "check it on the gateway's host")
    for part, command in (("workers", "steno worker"), ("dispatchers", "steno dispatch")):
        if (count := health[part]) is not None:
            remedy = None if count else f"start one with: {command}"
            yield Check(part, f"{count} running", remedy)


@click.command()
@click.option("--server", metavar="URL", help="Check this gateway over HTTP [this machine].")
@click.option("--key", metavar="KEY", help="API key for --server [STENO_API_KEY].")
@click.option("--tenant", metavar="NAME", help="Ask this tenant's own language model, too.")
@data_dir_option
@click.pass_context
def doctor(ctx: click.Context, server: str | None, key: str | None, tenant: str | None) -> None:
    """Check the installation; say how to fix what is missing. Exits with 1 if something is."""
    missing = 0
    if server is not None and tenant is not None:
        raise click.UsageError("--tenant is checked on this machine; leave --server out")
    if server is None:
        findings = examine(load_settings(), tenant)
    else:
        findings = examine_server(ctx.with_resource(find_gateway(server, key)))
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.remedy is None else click.style("!!", "red")
        click.echo(f"{mark}  {finding.what:<11} {finding.found}")
        if finding.remedy is not None:
            missing += 1
            click.echo(f"{'':<16}-> {as_typed(finding.remedy)}")
    ctx.exit(1 if missing else 0)
