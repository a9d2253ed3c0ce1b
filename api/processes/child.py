"""Child processes that answer lines of JSON, and never outlive the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any, ClassVar, Self

from loguru import logger

from common.errors import Conflict, NotFound, StenoError, Unavailable
from common.settings import import_from_checkout

EXIT_S = 1.0
"""How long a process may take to end by itself."""
LINE_BYTES = 64 << 10

OK, OFF, LOADING = "ok", "off", "loading"
"""The states of what a process has loaded, apart from what is wrong with it."""


class ChildProcess:
    """``python -m module``, in a session of its own: a Ctrl-C is the gateway's to handle.

    Its side of the pipe is `api.processes.inside`.
    """

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def spawn(cls, module: str, *arguments: str, line_bytes: int = LINE_BYTES) -> Self:
        """Start one; ``line_bytes`` is the longest line that it may answer."""
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, str(os.getpid()), *arguments),
                stdin=PIPE,
                stdout=PIPE,
                start_new_session=True,
                env={**os.environ, **import_from_checkout()},
                limit=line_bytes,
            )
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative by a signal; None as long as it runs."""
        return self._process.returncode

    async def ask(self, question: object) -> bytes:
        """The line it answers; empty where it dies over the question."""
        await self.send(question)
        return await self.receive()

    async def send(self, question: object) -> None:
        """Write ``question`` as a line of JSON; a process that has ended receives nothing."""
        with suppress(ConnectionError):
            self._stdin.write(json.dumps(question).encode() + b"\n")
            await self._stdin.drain()

    async def receive(self) -> bytes:
        """Its next line; empty where there will be none."""
        return await self._stdout.readline()

    async def read(self, count: int) -> bytes:
        """Up to ``count`` bytes of what it writes; empty at the end."""
        return await self._stdout.read(count)

    def close_input(self) -> None:
        """Let it end by itself, since no question will follow."""
        self._stdin.close()

    async def wait(self) -> None:
        await self._process.wait()

    async def end(self) -> None:
        """End it, by force where it does not end by itself.

        A process that has closed its output is ending. Signalling one that has ended already would
        lose its exit code (github.com/python/cpython/issues/87744).
        """
        self.close_input()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), EXIT_S)
        await self.kill()

    async def kill(self) -> None:
        """End it at once.

        What it wrote is discarded: asyncio waits for a process until its pipes are empty too
        (github.com/python/cpython/issues/119710).
        """
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        while await self.read(LINE_BYTES):
            continue
        await self._process.wait()


async def size_announced(child: ChildProcess, order: dict[str, Any], timeout_s: float) -> int:
    """How many bytes ``child`` will write for an ``order``, which names a stored recording.

    Raises:
        Conflict: the recording cannot be decoded, or decoding it crashes or hangs.
        NotFound, Unavailable: the storage does not have it, or is unavailable.
    """
    line = b""
    try:
        async with asyncio.timeout(timeout_s):
            line = await child.ask(order)
    except TimeoutError:
        logger.warning("decoding {} hangs", order["recording"])
    answer: dict[str, Any] = json.loads(line or '{"unreadable": "decoding it fails"}')
    if "missing" in answer:
        raise NotFound(what="stored recording", value=order["recording"])
    if "unavailable" in answer:
        raise Unavailable(what="The storage")
    if "unreadable" in answer:
        raise Conflict(reason=f"The recording cannot be read: {answer['unreadable']}")
    size: int = answer["size"]
    return size


class WarmProcess(ABC):
    """A child process that keeps weights loaded, and is replaced when it ends.

    Its first line is what it has loaded, or ``{"unusable": reason}`` (`api.processes.inside.load`).
    Weights that cannot be loaded are not tried again for ``retry_s``.
    """

    module: ClassVar[str]
    loading_s: ClassVar[float]
    """A process that takes longer to load counts as hung."""
    retry_s: ClassVar[float]
    line_bytes: ClassVar[int]

    def __init__(self) -> None:
        self.is_ready = False
        self._problem: StenoError | None = None
        self._failed_at = 0.0
        self._running: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """`OK`, `LOADING`, or what is wrong with the weights."""
        if self.is_ready:
            return OK
        return LOADING if self._problem is None else str(self._problem)

    @property
    def is_running(self) -> bool:
        return self._running is not None and not self._running.done()

    def start(self) -> None:
        """Load in the background, unless it does so already."""
        if not self.is_running:
            self._running = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def close(self) -> None:
        self.stop()
        if self._running is not None:
            with suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    @property
    def _recent_problem(self) -> StenoError | None:
        """Why the weights cannot be used, where it is too early to try again."""
        is_recent = self._now() - self._failed_at < self.retry_s
        return self._problem if is_recent else None

    async def _run(self) -> None:
        """Keep a process as long as one is needed."""
        while True:
            try:
                self._problem = await self._run_one()
            except Exception as error:
                logger.opt(exception=error).error("{} cannot be run", self.module)
                self._problem = self._unusable("its process cannot be run; the log says why")
            if self._problem is not None:
                self._failed_at = self._now()
                logger.error("{}", self._problem)
                self._reject_all(self._problem)
            if not await self._pause():
                return

    async def _run_one(self) -> StenoError | None:
        """Start a process and work with it; returns why no other one should follow, if so."""
        try:
            order = await self._order()
        except StenoError as error:
            return error
        child = await ChildProcess.spawn(self.module, order, line_bytes=self.line_bytes)
        try:
            answer = await self._load(child)
            if isinstance(answer, StenoError):
                return answer
            self.is_ready, self._problem = True, None
            await self._serve(child, answer)
        finally:
            self.is_ready = False
            await child.kill()
        return self._ended(child)

    async def _load(self, child: ChildProcess) -> dict[str, Any] | StenoError:
        try:
            async with asyncio.timeout(self.loading_s):
                line = await child.receive()
        except TimeoutError:
            return self._unusable(f"loading it took longer than {self.loading_s:.0f} s")
        if not line:
            await child.end()
            return self._unusable(f"loading it ended the process ({child.exit_code})")
        answer: dict[str, Any] = json.loads(line)
        return self._unusable(answer["unusable"]) if "unusable" in answer else answer

    @abstractmethod
    async def _order(self) -> str:
        """The module's argument: what to load, and how.

        Raises:
            StenoError: it cannot be loaded.
        """

    @abstractmethod
    async def _serve(self, child: ChildProcess, loaded: dict[str, Any]) -> None:
        """Work with the process until it ends, hangs or is no longer needed."""

    @abstractmethod
    def _ended(self, child: ChildProcess) -> StenoError | None:
        """The process has ended after it was ready; returns why not to start another one."""

    @abstractmethod
    async def _pause(self) -> bool:
        """Return when to start another process, or False: none is needed."""

    @abstractmethod
    def _reject_all(self, error: StenoError) -> None:
        """Fail everything that waits for the process."""

    @abstractmethod
    def _unusable(self, reason: str) -> StenoError:
        """The error for weights that cannot be used; it names no path of this machine."""

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
