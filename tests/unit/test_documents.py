"""The documents: their commands parse, and what they name exists."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from common.domain.job import JOB_TRANSITIONS, STEP_TRANSITIONS
from common.settings import ROOT
from scripts.bench.bench import bench
from scripts.bench.enhancing import enhancing
from scripts.bench.revisions import revisions
from scripts.bench.search import search
from scripts.bench.speakers import speakers
from scripts.bench.stream import stream
from scripts.cli.cli import steno
from tests.support.compose import SERVICES
from tests.support.documents import Document, commands, document, documents
from tests.support.setting_names import settings_named
from tests.system.test_proofs import PROOFS

LARGEST_README = 8192

OTHER_PROGRAMS = {
    *("aws", "base64", "cp", "echo", "ffmpeg", "git", "jq", "kind", "kubectl", "openssl", "printf"),
    *("pre-commit", "sed"),
}
"""Not ours: nothing but their names is checked."""
OURS = re.compile(r"(?:scripts/)?steno\b|(?:\S*python )?-m (?:scripts|worker|api)\b|scripts/test\b")

ROOMS = {"api", "common", "docker", "migrations", "models", "scripts", "tests", "worker", ".ci"}
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
SETTING = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b")

NO_SETTINGS = {
    # of a job
    *("PENDING_UPLOAD", "DETECT_DONE", "JOB_ID", "KEY_ID"),
    # of the code
    *("JOB_TRANSITIONS", "STEP_TRANSITIONS", "MAX_LOSSES", "MEDIA_TYPES"),
    # of an example
    *("API_KEY", "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"),
    # of other programs
    *("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "PIP_FIND_LINKS", "NO_COLOR"),
    *("STT_OPENAI_URL", "STT_OPENAI_KEY", "STT_MODELS", "ASR_BASE_URL", "LD_LIBRARY_PATH"),
    "OLLAMA_CONTEXT_LENGTH",
    # of the recipes for clouds
    *("DATABASE_HOST", "COMPOSE_FILE", "GRAFANA_PASSWORD"),
    # of the command line
    *("STENO_SERVER", "STENO_DEBUG", "STENO_ENV_FILE"),
}
"""Names that look like settings."""

MADE = {"models/phobert-hsd"}


every_document = pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)


def compose_variables() -> set[str]:
    files = [ROOT / "docker-compose.yml", *ROOT.glob("docker/*.yml")]
    return {
        name for file in files for name in re.findall(r"\$\{([A-Z_]+)", file.read_text("utf-8"))
    }


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) < LARGEST_README


# --- commands -------------------------------------------------------------------------------------


@every_document
def test_commands_in_blocks_parse(page: Document) -> None:
    for block in page.blocks("sh"):
        for command in commands(block):
            parse(command, in_full=True)


@every_document
def test_commands_in_the_text_parse(page: Document) -> None:
    for code in page.inline:
        if OURS.match(code) or code.startswith("docker compose"):
            for command in commands(code.replace("...", "")):
                parse(command, in_full=False)


@pytest.mark.parametrize(
    "wrong",
    [
        "steno transcribe talk.mp3 --langage en",
        "steno transcript talk.mp3",
        "steno jobs --status GONE",
        "steno keys create",
        "python -m scripts.bench.nothing",
        "python -m scripts.bench.fair --long",
        "scripts/test --system nothing",
        "scripts/test tests/nothing",
        "docker compose --profile nothing up -d",
        "docker compose restart nothing",
        "docker compose exec api steno transcript",
        "steno-cli jobs",
    ],
)
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    (command,) = commands(wrong)
    with pytest.raises((click.ClickException, AssertionError)):
        parse(command, in_full=True)


def parse(command: list[str], *, in_full: bool) -> None:
    """Parse a command as its program does. Not ``in_full``: it may lack what is required."""
    program, *arguments = command
    if program in {"steno", "scripts/steno"}:
        parse_click(steno, arguments, in_full=in_full)
    elif program == "scripts/test":
        parse_test(arguments, in_full=in_full)
    elif program.endswith("python") and arguments[:1] == ["-m"]:
        parse_module(arguments[1], arguments[2:], in_full=in_full)
    elif program == "docker" and arguments[:1] == ["compose"]:
        parse_compose(arguments[1:], in_full=in_full)
    elif program in {"sh", "."}:
        assert arguments[0] in {".venv/bin/activate", "./.env"} or (ROOT / arguments[0]).is_file()
    elif program == "docker":
        assert arguments[0] == "build"
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
    else:
        assert program in {"cd", "curl", "[", *OTHER_PROGRAMS}, f"what is {program}?"


BENCHES: dict[str, click.Command] = {
    "revisions": revisions,
    "search": search,
    "enhancing": enhancing,
    "speakers": speakers,
    "stream": stream,
}


def parse_click(command: click.Command, arguments: list[str], *, in_full: bool) -> None:
    if command is bench and arguments and arguments[0] in BENCHES:
        command, arguments = BENCHES[arguments[0]], arguments[1:]
    context = click.Context(command, info_name=command.name)
    given, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if isinstance(command, click.Group) and rest:
        _, found, remaining = command.resolve_command(context, rest)
        assert found is not None
        parse_click(found, remaining, in_full=in_full)
        return
    assert not rest, f"too much: {rest}"
    for parameter in command.params:
        value = given.get(parameter.name or "")
        missing = value is None or value is getattr(click.core, "UNSET", None) or value == ()
        if in_full:
            assert not (parameter.required and missing), f"{parameter.name} is missing"
        if not missing and in_full and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)


def parse_module(module: str, arguments: list[str], *, in_full: bool) -> None:
    if module == "scripts":
        parse_click(steno, arguments, in_full=in_full)
        return
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    assert found is not None, f"there is no module {module}"
    main = getattr(importlib.import_module(module), "main", None)
    if isinstance(main, click.Command):
        parse_click(main, arguments, in_full=in_full)


def parse_test(arguments: list[str], *, in_full: bool) -> None:
    match arguments:
        case [] | ["--fast"]:
            pass
        case ["--system", "NAME"]:
            assert not in_full
        case ["--system", proof, *rest]:
            assert proof in PROOFS
            parse_click(PROOFS[proof], rest, in_full=in_full)
        case [path] | ["-m", "system", path]:
            assert (ROOT / path).exists()
        case _:
            raise AssertionError(arguments)


def parse_compose(arguments: list[str], *, in_full: bool) -> None:
    valued = {"--profile": set[str](), "--scale": set[str](), "--entrypoint": set[str]()}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in valued:
            valued[word].add(rest.pop(0).partition("=")[0])
        elif word == "--since":
            rest.pop(0)
        elif word.startswith("-") and word != "-":
            continue
        else:
            words.append(word)
            if words[0] in {"exec", "run"} and len(words) == 2:
                break
    profiles = {name for service in SERVICES.values() for name in service.get("profiles", ())}
    assert valued["--profile"] <= profiles
    assert valued["--scale"] <= set(SERVICES)
    verb, *named = words or [""]
    assert verb in {"", "build", "down", "exec", "logs", "ps", "restart", "rm", "run", "stop", "up"}
    assert set(named) <= set(SERVICES)
    if verb == "exec" and rest[:1] == ["steno"]:
        parse_click(steno, rest[1:], in_full=in_full)
    if verb == "run" and rest[:1] == ["scripts"]:
        parse_module("scripts", rest[1:], in_full=in_full)


# --- what they name -------------------------------------------------------------------------------


@every_document
def test_links_lead_somewhere(page: Document) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), target
        if anchor:
            assert anchor in Document(file).anchors, target


@every_document
def test_paths_exist(page: Document) -> None:
    for code in page.inline:
        room, _, rest = code.partition("/")
        if room in ROOMS and rest and PATH.fullmatch(code) and code not in {"scripts/steno", *MADE}:
            assert exists(code, page.path.parent), code


def exists(path: str, folder: Path) -> bool:
    written_for = [part for part in path.split("/") if re.search("[A-Z]{4}", part)]
    if any("README" not in part for part in written_for):  # NAME, KIND: what a reader chooses
        path = path.partition(written_for[0])[0]
    return (ROOT / path).exists() or (folder / path).exists()


@every_document
def test_settings_exist(page: Document) -> None:
    known = {*settings_named(), *compose_variables(), *NO_SETTINGS}
    named = SETTING.findall(" ".join(page.inline))
    assigned = [
        name
        for language in ("", "sh")
        for block in page.blocks(language)
        for name in re.findall(rf"({SETTING.pattern})=", block)
    ]
    assert {*named, *assigned} <= known


@pytest.mark.parametrize(
    ("title", "transitions"),
    [("States of a job", JOB_TRANSITIONS), ("States of a step", STEP_TRANSITIONS)],
)
def test_diagrams_show_each_transition(title: str, transitions: dict[str, frozenset[str]]) -> None:
    section = document("worker/README.md").text.partition(f"### {title}\n")[2]
    diagram = section.partition("```mermaid\n")[2].partition("```")[0]
    drawn = re.findall(r"^ *([\w]+) --> ([\w]+)\b", diagram, re.MULTILINE)
    assert set(drawn) == {(source, to) for source, targets in transitions.items() for to in targets}
