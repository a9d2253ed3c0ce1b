"""A Compose project of the checkout's last commit, started for a proof and removed after it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import httpx
from filelock import FileLock, Timeout

from common.errors import InUse, SetupProblem
from common.settings import ROOT
from scripts.stack.embedded import free_port
from scripts.stack.processes import spawn, terminate

NAME = "stenopool-proof"
PAGE = "docker/README.md"
"""The operator's page."""
PORTS = ("API_PORT", "LIVE_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
"""What is published, on ports that are free."""
PROFILES = ("live", "monitoring", "s3")
"""What is not started unless it is asked for."""
OURS = ("gateway", "worker")
"""The images that are built."""
SECRET = re.compile(r"^([A-Z0-9_]*(?:PASSWORD|KEY|SECRET))=(.+)$", re.MULTILINE)

# Images have the project's label too, and what is run from them inherits it.
OF_PROJECT = (f"label=com.docker.compose.project={NAME}", "label=com.docker.compose.oneoff=False")

UP_S = 240
COMMAND_S = 300.0
BUILD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Container:
    """One container of the project, as `docker inspect` saw it; ``seen`` is all it said."""

    id: str
    service: str
    number: int
    running: bool
    health: str
    """``healthy``, ``unhealthy``, ``starting``, or nothing where there is no check."""
    exit_code: int
    started_at: str
    restarts: int
    pid: int
    seen: Mapping[str, Any]

    @classmethod
    def read(cls, seen: Mapping[str, Any]) -> Self:
        state, labels = seen["State"], seen["Config"]["Labels"]
        return cls(
            id=seen["Id"],
            service=labels["com.docker.compose.service"],
            number=int(labels["com.docker.compose.container-number"]),
            running=state["Running"],
            health=(state.get("Health") or {}).get("Status", ""),
            exit_code=state["ExitCode"],
            started_at=state["StartedAt"],
            restarts=seen["RestartCount"],
            pid=state["Pid"],
            seen=seen,
        )

    @property
    def name(self) -> str:
        return f"{self.service}-{self.number}"

    @property
    def host(self) -> str:
        """Its host name, with which the names of the workers in it begin."""
        return self.id[:12]


def containers_of(inspected: str) -> list[Container]:
    """What `docker inspect` printed, by service and number."""
    found = [Container.read(each) for each in json.loads(inspected)]
    return sorted(found, key=lambda container: (container.service, container.number))


def commands_of(page: str, section: str) -> list[str]:
    """The blocks of shell commands in a section of a page."""
    body = page.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```sh\n(.*?)^```$", body, flags=re.MULTILINE | re.DOTALL)


def secrets_of(env: str) -> dict[str, str]:
    """The secrets in the text of an ``.env``, by name."""
    return dict(SECRET.findall(env))


def with_settings(env: str, settings: Mapping[str, str | None]) -> str:
    """The text of an ``.env`` with settings added, replaced, or (None) removed."""
    kept = [line for line in env.splitlines() if line.partition("=")[0] not in settings]
    new = [f"{name}={value}" for name, value in settings.items() if value is not None]
    return "\n".join([*kept, *new, ""])


def environment(outside: Mapping[str, str], compose_file: str) -> dict[str, str]:
    """The environment for Compose: this shell's, but for what would change the compose file."""
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", compose_file))
    return {
        name: value
        for name, value in outside.items()
        if name not in asked and not name.startswith("COMPOSE_")
    }


class Project:
    """The project; as a context, it is removed in the end unless ``keep``.

    ``folder`` takes the snapshot, which has an ``.env`` of its own, and all logs. ``settings`` are
    for that ``.env``, ``build`` for the environment of Compose.

    Raises, from every method:
        SetupProblem: Docker or Compose failed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str],
        build: Mapping[str, str],
        profiles: Collection[str] = (),
        keep: bool = False,
    ) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.logs_folder = folder / "logs"
        self.log = self.logs_folder / "compose.log"
        self.keep = keep
        self.engine_named = ""
        self.cores = 0
        self._settings = settings
        self._build = build
        self._profiles = profiles
        self._env: dict[str, str] = {}
        self.ever_secret: dict[str, str] = {}
        """The name of each value that ever was secret in `.env`."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(alone())
            self.logs_folder.mkdir()
            self._snapshot()
            text = (self.checkout / "docker-compose.yml").read_text("utf-8")
            self._env = environment(os.environ, text) | dict(self._build)
            self._env |= {name: str(free_port()) for name in PORTS}
            self._env |= {
                "API_HOST": "127.0.0.1",
                "COMPOSE_PROJECT_NAME": NAME,
                "COMPOSE_PROFILES": ",".join(self._profiles),
            }
            self._look_at_the_engine()
            # A run that was killed may have left only its volumes, with other passwords.
            self.down()
            stack.enter_context(_Followers(self._env, self.logs_folder))
            stack.callback(self._leave)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _leave(self) -> None:
        if not self.keep:
            self.down()
            images = [self.image(each) for each in OURS]
            self.docker("image", "rm", "--force", *images, check=False)

    # --- the snapshot

    def _snapshot(self) -> None:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", "--format=tar", "HEAD"], capture_output=True, check=False
        )
        if archive.returncode:
            raise SetupProblem(
                problem=f"{ROOT} has no commit to prove: {archive.stderr.decode().strip()}",
                remedy="Run this in a clone of the repository",
            )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(self.checkout, filter="data")
        images = {
            "migrate": "gateway",
            "api": "gateway",
            "dispatcher": "gateway",
            "worker": "worker",
            "live": "worker",
        }
        # Compose reads it beside docker-compose.yml; the images of the same name stay as they are.
        (self.checkout / "docker-compose.override.yml").write_text(
            json.dumps(
                {"services": {name: {"image": self.image(of)} for name, of in images.items()}}
            )
        )
        self.make_secrets()
        self.set(self._settings)

    @staticmethod
    def image(which: str) -> str:
        """The name of an image that is built here: ``gateway`` or ``worker``."""
        return f"{NAME}-{which}"

    @property
    def env_file(self) -> Path:
        return self.checkout / ".env"

    def make_secrets(self) -> None:
        """Do what the operator's page says: `sh docker/secrets.sh`."""
        self._run(["sh", "docker/secrets.sh", *({"s3"} & {*self._profiles})])
        self._remember()

    def set(self, settings: Mapping[str, str | None]) -> None:
        """Change `.env`, in place: it is mounted."""
        self.env_file.write_text(with_settings(self.env_file.read_text(), settings))
        self._remember()

    @contextmanager
    def having(self, settings: Mapping[str, str | None]) -> Iterator[None]:
        """`set` for as long as the block lasts; nobody is restarted."""
        before = self.env_file.read_text()
        self.set(settings)
        try:
            yield
        finally:
            self.env_file.write_text(before)

    @property
    def secrets(self) -> dict[str, str]:
        return secrets_of(self.env_file.read_text())

    def _remember(self) -> None:
        self.ever_secret |= {value: name for name, value in self.secrets.items()}

    def address_of(self, service: str) -> str:
        """Where a gateway is published: ``api`` or ``live``."""
        return f"http://127.0.0.1:{self._env[f'{service.upper()}_PORT']}"

    # --- commands

    def compose(self, *args: str, check: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Run `docker compose`; returns what it printed, errors too, which is logged."""
        done = self._run(["docker", "compose", *args], check=check, timeout_s=timeout_s)
        return done.stdout + done.stderr

    def follow(self, section: str, block: int = 0) -> float:
        """Run a block of commands of the operator's page; returns the seconds that took."""
        started = time.monotonic()
        script = commands_of((self.checkout / PAGE).read_text(), section)[block]
        self._run(["sh", "-euc", script], timeout_s=UP_S + COMMAND_S)
        return time.monotonic() - started

    def docker(self, *args: str, check: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Run `docker`; returns its output, without errors, which is not logged."""
        done = self._run(["docker", *args], check=check, timeout_s=timeout_s, logged=False)
        return done.stdout

    def shell(self, container: Container, script: str, user: str | None = None) -> str:
        """Run a script in a container; returns what it printed, errors too."""
        command = ["docker", "exec", *(["--user", user] if user else []), container.id]
        done = self._run([*command, "sh", "-c", script], check=False, logged=False)
        return done.stdout + done.stderr

    @contextmanager
    def piped(self, *args: str) -> Iterator[IO[bytes]]:
        """The output of `docker`, as it comes."""
        command = ["docker", *args]
        with subprocess.Popen(
            command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise SetupProblem(
                problem=f"{' '.join(command[:3])} failed with {process.returncode}",
                remedy="Run it by hand",
            )

    def _run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = COMMAND_S,
        logged: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        command = " ".join(argv[:4])
        try:
            done = subprocess.run(
                argv,
                cwd=self.checkout,
                env=self._env or None,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                process_group=0,  # Ctrl-C is for us: what we started is still to be removed
                check=False,
            )
        except FileNotFoundError as error:
            raise SetupProblem(
                problem=f"{argv[0]} is not installed", remedy="Install Docker with Compose v2"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SetupProblem(
                problem=f"{command} did not end in {timeout_s:g} s", remedy=f"See {self.log}"
            ) from error
        if logged:
            with self.log.open("a") as log:
                log.write(f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}")
        if check and done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise SetupProblem(
                problem=f"{command} failed: {' '.join(lines[-1:])}", remedy=f"See {self.log}"
            )
        return done

    def _look_at_the_engine(self) -> None:
        engine = json.loads(self.docker("version", "--format", "{{json .Server}}"))
        info = json.loads(self.docker("info", "--format", "{{json .}}"))
        compose = self.docker("compose", "version", "--short").strip()
        self.cores = info["NCPU"]
        self.engine_named = (
            f"Docker Engine {engine['Version']}, Compose {compose}, {self.cores} cores, "
            f"{info['OperatingSystem']}"
        )

    # --- life

    def build(self, *, afresh: bool = False) -> float:
        """Build both images; returns the seconds that took."""
        started = time.monotonic()
        self.compose("build", *(["--no-cache"] if afresh else []), timeout_s=BUILD_S)
        return time.monotonic() - started

    def up(self, *services: str, workers: int = 1, options: Sequence[str] = ()) -> float:
        """`docker compose up -d --wait`; returns the seconds that took.

        Raises:
            SetupProblem: not all of it was healthy in the end; those that were not are named.
        """
        started = time.monotonic()
        wait = ["--wait", "--wait-timeout", str(UP_S)]
        if not services or "worker" in services:
            wait += ["--scale", f"worker={workers}"]
        try:
            self.compose("up", "-d", *wait, *options, *services, timeout_s=UP_S + COMMAND_S)
        except SetupProblem as error:
            raise SetupProblem(
                problem=f"{error.details['problem']}; {self.describe_unhealthy()}",
                remedy=error.details["remedy"],
            ) from error
        return time.monotonic() - started

    def down(self, *, volumes: bool = True) -> None:
        """Remove the containers, and the data."""
        # Without SECRETS_GID nothing works, this neither; and what is of no profile stays.
        env = self._env
        self._env = env | {"SECRETS_GID": "0", "COMPOSE_PROFILES": ",".join(PROFILES)}
        try:
            self.compose("down", "--remove-orphans", *(["--volumes"] if volumes else []))
        finally:
            self._env = env

    def containers(self, *services: str, stopped: bool = False) -> list[Container]:
        """Those of ``services`` (none named: all) that run; with ``stopped``, the others too."""
        ids = self.docker("ps", "--all", "--quiet", "--no-trunc", *_filters(OF_PROJECT)).split()
        # One may be removed meanwhile: then the rest is printed all the same.
        found = containers_of(self.docker("inspect", *ids, check=False) or "[]") if ids else []
        return [
            each
            for each in found
            if (stopped or each.running) and (not services or each.service in services)
        ]

    def again(self, container: Container) -> Container:
        """The container as it is now."""
        return containers_of(self.docker("inspect", container.id))[0]

    def describe_unhealthy(self) -> str:
        """The containers that are neither healthy nor done, each with its last health check."""
        unhealthy = []
        for each in self.containers(stopped=True):
            if each.running and each.health in {"", "healthy"}:
                continue
            if not each.running and each.exit_code == 0 and each.service == "migrate":
                continue
            checks = (each.seen["State"].get("Health") or {}).get("Log") or []
            last = " ".join(checks[-1]["Output"].split())[-200:] if checks else ""
            state = each.health if each.running else f"ended with {each.exit_code}"
            unhealthy.append(f"{each.name} {state} {last}".strip())
        return "; ".join(unhealthy) or "all are healthy"

    def kill(self, container: Container) -> bool:
        """Kill all in a container as the kernel would; whether its restart policy is left to act.

        `docker kill` counts as stopped by hand, and what was is not restarted. So where the
        container's processes are ours to see, its first one is killed, and the rest goes with it.
        """
        pid = self.again(container).pid
        cgroup = Path(f"/proc/{pid}/cgroup")
        try:
            if pid and container.id in cgroup.read_text():
                os.kill(pid, signal.SIGKILL)
                return True
        except OSError:  # of another machine, or another user
            pass
        self.docker("kill", "--signal", "KILL", container.id)
        self.docker("start", container.id)
        return False

    def logs(self, since: float, *services: str) -> str:
        """What the containers that are there have written since an instant (Unix time)."""
        done = self._run(
            ["docker", "compose", "logs", "--no-color", "--since", f"{since:.3f}", *services],
            check=False,
            logged=False,
        )
        return done.stdout

    def sql(self, query: str) -> list[list[str]]:
        """The rows that Postgres answers; none while it is unavailable."""
        command = ["docker", "compose", "exec", "-T", "postgres", "psql", "-qtA", "-F", "\t"]
        done = self._run(
            [*command, "-U", "steno", "-d", "steno", "-c", query], check=False, logged=False
        )
        return [line.split("\t") for line in done.stdout.splitlines() if line]

    def ready(self) -> bool:
        """Whether the gateway says it is."""
        url = f"{self.address_of('api')}/readyz"
        try:
            return httpx.get(url, timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def alone() -> Iterator[None]:
    """Keep others from starting, and so removing, the project meanwhile."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"{NAME}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InUse(
            problem=f"Another proof uses the project {NAME}", remedy="Wait for its end"
        ) from error


def _filters(those: Sequence[str]) -> list[str]:
    return [part for each in those for part in ("--filter", each)]


class _Followers:
    """Writes down all that containers say, a file each: what is removed has no logs any more."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self._env = env
        self._folder = folder
        self._stack = ExitStack()
        self._events: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            terminate(self._events, (signal.SIGTERM,), 10)
        self._thread.join()

    def _follow(self) -> None:
        # Their parent is this thread, so they end with it.
        command = ["docker", "events", "--since", str(int(time.time())), "--format"]
        command.append("{{.TimeNano}} {{.Actor.ID}} {{.Actor.Attributes.name}}")
        command += _filters((*OF_PROJECT, "type=container", "event=start"))
        self._events = subprocess.Popen(
            command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        output: IO[bytes] | None = self._events.stdout
        assert output is not None
        with ExitStack() as files:
            for line in output:
                nanoseconds, container, name = line.decode().split()
                file = files.enter_context(
                    (self._folder / f"{name}-{container[:12]}.log").open("ab")
                )
                since = f"{int(nanoseconds) / 1e9 - 1:.3f}"
                command = ["docker", "logs", "--follow", "--since", since, container]
                spawn(command, log=file, env=self._env)
