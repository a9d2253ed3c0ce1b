"""What containers and images may do, and what they reveal: nothing more than they need."""

from __future__ import annotations

import base64
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from tests.system.containers.project import OURS, Container, Project
from tests.system.report import Row, faults_row

BLOCK_BYTES = 4 << 20
LOOK_AT_PROCESSES = """
for each in /proc/[0-9]*; do
    status=$(cat "$each/status" 2>/dev/null) || continue
    echo "process ${each#/proc/}"
    echo "$status" | grep -E '^(Name|Uid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):'
    tr '\\0' ' ' <"$each/cmdline" | sed 's/^/command /'; echo
    if environ=$(tr '\\0' '\\n' <"$each/environ" 2>/dev/null); then
        echo "$environ" | sed 's/^/environ /'
    elif [ -d "$each" ] && ! echo "$status" | grep -q '^State:[[:space:]]*Z'; then
        echo unreadable
    fi
done
"""
WRITE_AS_ROOT = """
for each in / /etc /usr/bin /usr/local/bin /opt /opt/venv /app; do
    [ -d "$each" ] || continue
    if (: >"$each/written") 2>/dev/null; then rm "$each/written"; echo "$each"; fi
done
"""
FIND_TOOLS = """
for each in gcc g++ cc c++ clang make ld rustc cargo go pip; do command -v "$each"; done
find /opt -type d -name pip -path '*packages/pip'
"""


def audit(project: Project) -> Iterator[Row]:
    """Every container that runs, the images they run from, and all that can be asked about them."""
    containers = project.containers()
    names = ", ".join(each.name for each in containers)
    yield Row("containers looked at", names)
    for what, fault, asked, fine in (
        ("users", user_faults, "not root", "none is root"),
        ("root file systems", root_faults, "read-only", "all are read-only"),
        ("privileges", privilege_faults, "no capability, none to gain", "none"),
    ):
        found = [f"{each.name}: {text}" for each in containers for text in fault(each)]
        yield faults_row(f"{what}, as set", found, asked, fine)

    written = [
        f"{each.name}: {where}"
        for each in containers
        for where in project.shell(each, WRITE_AS_ROOT, user="0:0").split()
    ]
    yield faults_row("written outside of /tmp and volumes, as root", written, "no", "nowhere")

    secrets = project.ever_secret
    listings = {each.name: project.shell(each, LOOK_AT_PROCESSES) for each in containers}
    found = [
        f"{name}: {text}"
        for name, listing in listings.items()
        for text in process_faults(listing, secrets)
    ]
    count = sum(listing.count("process ") for listing in listings.values())
    yield faults_row(
        "processes: user, capabilities, command, environment",
        found,
        "not root, none, no secret",
        f"so it is with all {count}",
    )
    yield faults_row("docker inspect", list(_inspected(project, containers)), "no secret", "none")
    yield from _images(project)


# --- as they are set up ---------------------------------------------------------------------------


def user_faults(container: Container) -> list[str]:
    """What is wrong with whom it runs as."""
    user = container.seen["Config"]["User"].partition(":")[0]
    return [f"user {user or 'not set'}"] if user in {"", "0", "root"} else []


def root_faults(container: Container) -> list[str]:
    """What is wrong with its root file system."""
    return [] if container.seen["HostConfig"]["ReadonlyRootfs"] else ["can be written to"]


def privilege_faults(container: Container) -> list[str]:
    """What it may do beyond what any process may."""
    host = container.seen["HostConfig"]
    dropped = [each.upper().removeprefix("CAP_") for each in host["CapDrop"] or ()]
    options = {each.replace("=", ":") for each in host["SecurityOpt"] or ()}
    faults = []
    if "ALL" not in dropped:
        faults.append("keeps capabilities")
    if host["CapAdd"]:
        faults.append(f"is given {', '.join(host['CapAdd'])}")
    if not options & {"no-new-privileges", "no-new-privileges:true"}:
        faults.append("may gain privileges")
    if host["Privileged"]:
        faults.append("is privileged")
    modes = ("PidMode", "IpcMode", "NetworkMode", "UTSMode")
    faults += [f"{mode} is the host's" for mode in modes if host.get(mode) == "host"]
    faults += [
        f"has {mount['Source']}"
        for mount in container.seen["Mounts"]
        if mount.get("Source", "").endswith("docker.sock")
    ]
    return faults


# --- as they run ----------------------------------------------------------------------------------


def process_faults(listing: str, secrets: Mapping[str, str]) -> list[str]:
    """What is wrong with the processes of a container, as `LOOK_AT_PROCESSES` lists them.

    ``secrets`` has the name of each value that must not be in their commands or environments.
    """
    faults = []
    process, name = "", ""
    for line in listing.splitlines():
        kind, _, rest = line.partition(":" if line[:1].isupper() else " ")
        values = rest.split()
        if kind == "process":
            process = rest
        elif kind == "Name":
            name = rest.strip()
        elif kind == "Uid" and "0" in values:
            faults.append(f"{name} ({process}) is root")
        elif kind.startswith("Cap") and int(values[0], 16):
            faults.append(f"{name} ({process}) has {kind} {values[0]}")
        elif kind == "NoNewPrivs" and values != ["1"]:
            faults.append(f"{name} ({process}) may gain privileges")
        elif kind == "unreadable":
            faults.append(f"{name} ({process}) could not be looked at")
        elif kind in {"command", "environ"}:
            faults += [f"{kind} of {name} ({process}) has {it}" for it in named(rest, secrets)]
    if not process:
        faults.append(f"no process was seen: {listing.strip()[:200]}")
    return faults


# --- where secrets may be -------------------------------------------------------------------------


def named(text: str, secrets: Mapping[str, str]) -> list[str]:
    """The names of the secrets that a text has."""
    return sorted({name for value, name in secrets.items() if value in text})


def needles_of(secrets: Mapping[str, str]) -> dict[bytes, str]:
    """What to look for in files: the values, and as base64 has them; with their names."""
    plain = {value.encode(): name for value, name in secrets.items()}
    return plain | {base64.b64encode(value).rstrip(b"="): name for value, name in plain.items()}


def found_in(stream: IO[bytes], needles: Mapping[bytes, str]) -> set[str]:
    """The names of the needles in a stream, which is never all in memory."""
    longest = max(map(len, needles), default=1)
    found, before = set(), b""
    while block := stream.read(BLOCK_BYTES):
        text = before + block
        found |= {name for needle, name in needles.items() if needle in text}
        before = text[-longest + 1 :] if longest > 1 else b""
    return found


def found_in_image(stream: IO[bytes], needles: Mapping[bytes, str]) -> list[str]:
    """What is in images, as `docker save` writes them, that should not be: secrets, and `.env`.

    An image's layers are archives in the archive, packed or not; all else in it is JSON.
    """
    faults = []
    with tarfile.open(fileobj=stream, mode="r|") as image:
        for member in image:
            inner = image.extractfile(member) if member.isfile() else None
            if inner is None or not member.size:
                continue
            head = inner.peek(1)[:1]  # type: ignore[attr-defined]
            if head in {b"{", b"["} or member.name.endswith("VERSION"):
                faults += [f"{name} in {member.name}" for name in found_in(inner, needles)]
            else:
                with tarfile.open(fileobj=inner, mode="r|*") as layer:
                    faults += _found_in_layer(layer, needles)
    return faults


def _found_in_layer(layer: tarfile.TarFile, needles: Mapping[bytes, str]) -> Iterator[str]:
    for member in layer:
        if PurePosixPath(member.name).name == ".env":
            yield f"/{member.name}"
        file = layer.extractfile(member) if member.isfile() else None
        if file is not None:
            yield from (f"{name} in /{member.name}" for name in found_in(file, needles))


def found_in_files(files: Iterable[Path], secrets: Mapping[str, str]) -> list[str]:
    """Which files have a secret in them."""
    needles = needles_of(secrets)
    faults = []
    for path in sorted(files):
        with path.open("rb") as file:
            faults += [f"{name} in {path.name}" for name in sorted(found_in(file, needles))]
    return faults


def _inspected(project: Project, containers: Sequence[Container]) -> Iterator[str]:
    images = {each.seen["Image"] for each in containers}
    volumes = {
        mount["Name"] for each in containers for mount in each.seen["Mounts"] if "Name" in mount
    }
    for thing in (*(each.id for each in containers), *images, *volumes):
        for name in named(project.docker("inspect", thing), project.ever_secret):
            yield f"{name} of {thing[:20]}"


# --- images ---------------------------------------------------------------------------------------


def _images(project: Project) -> Iterator[Row]:
    images = [project.image(which) for which in OURS]
    needles = needles_of(project.ever_secret)
    histories = [
        f"{name} of {image}"
        for image in images
        for name in named(project.docker("history", "--no-trunc", image), project.ever_secret)
    ]
    yield faults_row("docker history", histories, "no secret", "none")
    with project.piped("save", *images) as stream:
        found = found_in_image(stream, needles)
    yield faults_row("files in all layers", found, "no secret, no .env", "none")
    tools = set()
    for image in images:
        run = ("run", "--rm", "--network", "none", "--entrypoint", "sh")
        tools |= set(project.docker(*run, image, "-c", FIND_TOOLS).split())
    of_base = {path for path in tools if path.endswith("/pip") and not path.startswith("/opt")}
    yield faults_row(
        "compilers, and pip",
        sorted(tools - of_base),
        "none of ours",
        f"only the base's {', '.join(sorted(of_base))}" if of_base else "none",
    )


def log_rows(project: Project) -> Iterator[Row]:
    """What all containers of the whole run have written, and Compose itself."""
    files = list(project.logs_folder.iterdir())
    lines = sum(path.read_bytes().count(b"\n") for path in files)
    yield faults_row(
        "logs of the whole run",
        found_in_files(files, project.ever_secret),
        "no secret",
        f"none in {lines} lines of {len(files) - 1} containers and of Compose",
    )
