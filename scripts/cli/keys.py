"""`steno keys` and `steno tenants`: API keys, and settings of tenants."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TextIO

import click
from pydantic import TypeAdapter
from rich.table import Column

from api.enhance.server import NewServer
from api.http.problems import validated
from common.db.chat_servers import ChatServers, all_chat_servers, seal_chat_keys
from common.db.database import Database
from common.db.keys import AllKeys, Key, Keys, Tenants
from common.db.tables import StoredChatServer, Tenant
from common.db.vault import CHAT_KEYS, VOICES, Cipher, Vault, seal_all
from common.db.voices import seal_voices
from common.domain.keys import DEFAULT_TENANT, LIMIT_NAMES, Scope, is_tenant
from common.errors import NotFound, SetupProblem
from common.llm.servers import LONGEST_KEY
from common.net.egress import Egress
from scripts.cli.cli import data_dir_option, database_here, load_settings
from scripts.cli.client import Gateway, find_gateway
from scripts.cli.console import print_table

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _duration(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """``90d`` in seconds."""
    if text is None or text == "none":
        return None
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if not found or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a duration such as 12h, 90d or 52w")
    return int(found[1]) * _SECONDS[found[2]]


def _limits(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    """``requests_per_minute=600`` by name."""
    limits: dict[str, float] = {}
    for value in values:
        name, _equals, number = value.partition("=")
        name = name.strip().replace("-", "_")
        if name not in LIMIT_NAMES:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(LIMIT_NAMES)}")
        whole = name != "audio_hours_per_day"
        if not re.fullmatch(r"\d{1,7}" if whole else r"\d{1,7}(\.\d+)?", number.strip()):
            kind = "a whole number" if whole else "a number"
            raise click.BadParameter(f"{name} must be {kind}, 0 for no limit; got {number!r}")
        limits[name] = int(number) if whole else float(number)
    return limits


def _tenant(_: click.Context, __: click.Parameter, name: str) -> str:
    if not is_tenant(name):
        raise click.BadParameter("1 to 64 letters, digits, dots, underscores or hyphens")
    return name


@contextmanager
def _database() -> Iterator[Database]:
    with database_here() as url, Database(url, pool_size=1) as database:
        yield database


class _DatabaseKeys:
    """Keys in the database; ``wanted`` is a new one as the gateway's API takes it.

    `create` returns the key and its text, which is not stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, wanted: Mapping[str, Any]) -> tuple[Key, str]:
        first = not AllKeys(self._database).exist()
        key, text = Keys(self._database, tenant).create(
            wanted["name"],
            map(Scope, wanted["scopes"]),
            lasts_s=wanted["expires_in_seconds"],
            limits=wanted["limits"],
        )
        if first:
            click.echo("From now on the gateway requires a key, also on loopback.", err=True)
        return key, text.reveal()

    def all(self, tenant: str | None) -> list[Key]:
        return Keys(self._database, tenant).all() if tenant else AllKeys(self._database).all()

    def revoke(self, tenant: str | None, key_id: str) -> None:
        key = AllKeys(self._database).find(key_id)
        if key is None or tenant not in (None, key.tenant):
            raise NotFound(what="key", value=key_id)
        Keys(self._database, key.tenant).revoke(key_id)


class _GatewayKeys:
    """The same over a gateway's API, which needs an admin key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def create(self, tenant: str, wanted: Mapping[str, Any]) -> tuple[Key, str]:
        made = self._gateway.create_key(tenant, wanted)
        return _key(made), made["key"]

    def all(self, tenant: str | None) -> list[Key]:
        return [_key(each) for each in self._gateway.keys(tenant)]

    def revoke(self, tenant: str | None, key_id: str) -> None:
        self._gateway.revoke_key(tenant, key_id)


def _key(document: Mapping[str, Any]) -> Key:
    hidden = {"secret_sha256": "", "expired": document["state"] == "expired"}
    return TypeAdapter(Key).validate_python({**document, **hidden})


@contextmanager
def _open_store(server: str | None, key: str | None) -> Iterator[_DatabaseKeys | _GatewayKeys]:
    if server is None:
        with _database() as database:
            yield _DatabaseKeys(database)
    else:
        with find_gateway(server, key) as gateway:
            yield _GatewayKeys(gateway)


def _store_options(command: Callable[..., None]) -> Callable[..., None]:
    command = data_dir_option(command)
    command = click.option("--key", metavar="KEY", help="Admin key for --server [STENO_API_KEY].")(
        command
    )
    # STENO_SERVER does not count: where no key exists yet only the database can have one made.
    return click.option("--server", metavar="URL", help="Use this gateway's API [the database].")(
        command
    )


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.option("--name", required=True, help="Description: what the key is for.")
@click.option(
    "--tenant",
    default=DEFAULT_TENANT,
    callback=_tenant,
    help=f"Tenant of the key [{DEFAULT_TENANT}].",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    default=(str(Scope.TRANSCRIBE), str(Scope.READ)),
    help="Scope of the key; admin: everything, in every tenant [transcribe, read].",
)
@click.option(
    "--expires-in",
    "lasts",
    callback=_duration,
    help="Time until it expires, such as 12h or 90d [never].",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=_limits,
    metavar="NAME=N",
    help=f"Overrides the setting LIMIT_...; 0: no limit. One of {', '.join(LIMIT_NAMES)}.",
)
@_store_options
def create(
    name: str,
    tenant: str,
    scopes: Sequence[str],
    lasts: int | None,
    limits: dict[str, float],
    server: str | None,
    key: str | None,
) -> None:
    """Create a key and print it once: it is not stored."""
    wanted = {"name": name, "scopes": list(scopes), "expires_in_seconds": lasts, "limits": limits}
    with _open_store(server, key) as store:
        made, text = store.create(tenant, wanted)
    until = f"until {_time(made.expires_at)}" if made.expires_at else "until it is revoked"
    click.echo(text)
    click.echo(
        f"Key {made.id} of tenant {tenant}, good for {', '.join(sorted(made.scopes))} {until}. "
        "Store it now: it is not shown again.",
        err=True,
    )


@keys.command("list")
@click.option("--tenant", help="Only keys of this tenant [all; with --server, the key's own].")
@_store_options
def list_(tenant: str | None, server: str | None, key: str | None) -> None:
    """Show keys, including revoked and expired ones."""
    with _open_store(server, key) as store:
        rows = list(map(_row, store.all(tenant)))
    others = ("tenant", "name", "scopes", "state", "expires", "last used", "limits")
    columns = [Column("id", no_wrap=True), *(Column(each, overflow="fold") for each in others)]
    print_table(columns, rows)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--tenant", help="Tenant of the key [any; with --server, the key's own].")
@click.option(
    "--forget", is_flag=True, help="Delete it from the list; when no key is left, none is required."
)
@_store_options
def revoke(
    key_id: str, tenant: str | None, forget: bool, server: str | None, key: str | None
) -> None:
    """Revoke the key ID for good: the part after steno_, without the secret."""
    if forget and server is not None:
        raise click.UsageError("--forget changes the database itself; leave --server out")
    with _open_store(server, key) as store:
        store.revoke(tenant, key_id)
    if forget:
        with _database() as database:
            AllKeys(database).forget(key_id)
    click.echo(f"{key_id} is revoked; running gateways notice within five seconds")


@keys.command("encrypt-secrets")
@data_dir_option
def encrypt_secrets() -> None:
    """Encrypt all webhook secrets and language models' keys with the first key of SECRETS_KEY.

    After SECRETS_KEY was set, or got a new key before the old one, which is not needed any more
    then.
    """
    secrets_keys = load_settings().key.for_secrets
    if not secrets_keys:
        raise SetupProblem(
            problem="SECRETS_KEY is not set",
            remedy="Make a key with `openssl rand -hex 32` and set it wherever a gateway, a worker "
            "or a dispatcher runs",
        )
    with _database() as database:
        done, locked = seal_all(database, Vault(secrets_keys))
        keys_done, keys_locked = seal_chat_keys(database, Cipher(CHAT_KEYS, secrets_keys))
    what = f"The secrets of {done} endpoints and tenants, and {keys_done} keys of language models"
    _report(what, locked + keys_locked, "SECRETS_KEY")


@keys.command("encrypt-voices")
@data_dir_option
def encrypt_voices() -> None:
    """Encrypt all embeddings of voices with the first key of VOICE_KEY.

    After VOICE_KEY was set, or got a new key before the old one, which is not needed any more then.
    """
    voice_keys = load_settings().key.for_voices
    if not voice_keys:
        raise SetupProblem(
            problem="VOICE_KEY is not set",
            remedy="Make a key with `openssl rand -hex 32` and set it wherever a gateway or a "
            "worker runs",
        )
    with _database() as database:
        done, locked = seal_voices(database, Cipher(VOICES, voice_keys))
    _report(f"The embeddings of {done} voices and chunks", locked, "VOICE_KEY")


def _report(what: str, locked: int, setting: str) -> None:
    """Say what is encrypted with the first key; exit with 1 where some could not be decrypted."""
    done = f"{what} are encrypted with the first key"
    if locked:
        cause = f"{setting} lacks the key that encrypted them"
        raise click.ClickException(f"{done}, but {locked} could not be decrypted: {cause}")
    click.echo(done)


@click.group()
def tenants() -> None:
    """Show and change settings of tenants."""


@tenants.command("list")
@data_dir_option
def list_tenants() -> None:
    """Show the tenants that override settings."""
    with _database() as database:
        known = {each.id: each for each in Tenants(database).all()}
        servers = {each.tenant: each for each in all_chat_servers(database)}
    rows = [_tenant_row(name, known.get(name), servers.get(name)) for name in known | servers]
    print_table(("tenant", "tier", "jobs deleted after", "review", "language model"), sorted(rows))


def _tenant_row(
    name: str, tenant: Tenant | None, server: StoredChatServer | None
) -> tuple[str, ...]:
    model = "-" if server is None else f"{server.model} at {server.base_url}"
    if tenant is None:  # with the defaults of `common.db.tables.Tenant`
        return (name, "standard", "-", "no", model)
    review = "yes" if tenant.review else "no"
    return (name, tenant.tier, _kept(tenant.delete_after_s), review, model)


def _kept(seconds: int | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=seconds))


@tenants.command("set")
@click.argument("name", callback=_tenant)
@click.option("--tier", help="Tier that metrics count it under.")
@click.option(
    "--delete-after",
    "delete_after",
    help="Delete its jobs this long after their end, such as 30d; none: as DELETE_AFTER says.",
)
@click.option(
    "--review/--no-review",
    default=None,
    help="Let its jobs wait until a person approves their text.",
)
@data_dir_option
@click.pass_context
def set_(
    context: click.Context,
    name: str,
    tier: str | None,
    delete_after: str | None,
    review: bool | None,
) -> None:
    """Change settings of the tenant NAME."""
    options: dict[str, str | int | None] = {}
    if tier is not None:
        if not re.fullmatch(r"[a-z0-9_-]{1,32}", tier):
            raise click.UsageError("--tier takes 1 to 32 of a to z, 0 to 9, - and _")
        options["tier"] = tier
    if delete_after is not None:
        options["delete_after_s"] = _duration(context, context.command.params[2], delete_after)
    if review is not None:
        options["review"] = review
    if not options:
        raise click.UsageError("Nothing to set; see --tier, --delete-after and --review")
    with _database() as database:
        Tenants(database).put(name, **options)
    click.echo(f"{name} is set")


@tenants.command("set-model")
@click.argument("name", callback=_tenant)
@click.option(
    "--base-url", required=True, help="URL of the server's API, such as http://ollama:11434/v1."
)
@click.option("--model", required=True, help="Model, as the server names it.")
@click.option(
    "--key-file",
    type=click.File(errors="replace"),
    help="File with the server's key, if it wants one; - for stdin.",
)
@click.option("--context-tokens", type=int, help="Its context [ENHANCED_AI_CONTEXT_TOKENS].")
@click.option(
    "--max-output-tokens", type=int, help="Longest answer [ENHANCED_AI_MAX_OUTPUT_TOKENS]."
)
@data_dir_option
def set_model(name: str, key_file: TextIO | None, **options: str | int | None) -> None:
    """Give the tenant NAME a language model of its own, in place of ENHANCED_AI_...

    All of it is replaced, its key too, which is never shown again.
    """
    settings = load_settings()
    key = None if key_file is None else key_file.read(LONGEST_KEY + 2).strip()
    server = validated(NewServer, {**options, "api_key": key}).checked()
    asyncio.run(Egress(settings.egress.allow).check(server.base_url, "base_url"))
    cipher = Cipher(CHAT_KEYS, settings.key.for_secrets)
    with _database() as database:
        ChatServers(database, name, cipher).put(server)
    if key is not None and not settings.key.for_secrets:
        click.echo("The key is stored in the clear: SECRETS_KEY is not set.", err=True)
    click.echo(f"{name} uses {server.model} at {server.base_url}")


@tenants.command("remove-model")
@click.argument("name", callback=_tenant)
@data_dir_option
def remove_model(name: str) -> None:
    """Remove the language model of the tenant NAME, and its key: it uses ENHANCED_AI_... again."""
    with _database() as database:
        ChatServers(database, name, Cipher(CHAT_KEYS)).remove()
    click.echo(f"{name} has no language model of its own")


def _row(key: Key) -> tuple[str, ...]:
    return (
        key.id,
        key.tenant,
        key.name,
        " ".join(sorted(key.scopes)),
        key.state,
        _time(key.expires_at),
        _time(key.last_used_at),
        " ".join(f"{name}={value:g}" for name, value in key.limits.items()) or "-",
    )


def _time(when: datetime | None) -> str:
    return "-" if when is None else when.astimezone().strftime("%F %H:%M")
