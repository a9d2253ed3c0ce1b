"""Child processes that answer lines of JSON, and never outlive the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Self

from common.settings import import_from_checkout

DYING_S = 1.0
LINE_BYTES = 64 << 10

OK, OFF, LOADING = "ok", "off", "loading"
"""How what a child has loaded can be, apart from what can be wrong with it."""


class Child:
    """``python -m module``, in a session of its own: a Ctrl-C is the gateway's to handle.

    Its side of the pipe is `api.processes.inside`.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

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
    def ended(self) -> int | None:
        """How it ended, negative by a signal; None as long as it lives."""
        return self._process.returncode

    async def ask(self, question: object) -> bytes:
        """The line it answers; none when it dies over the question."""
        await self.tell(question)
        return await self.answer()

    async def tell(self, question: object) -> None:
        stdin = self._process.stdin
        if stdin is not None:
            with suppress(ConnectionError):
                stdin.write(json.dumps(question).encode() + b"\n")
                await stdin.drain()

    async def answer(self) -> bytes:
        """Its next line; none when there will be none."""
        stdout = self._process.stdout
        return b"" if stdout is None else await stdout.readline()

    async def read(self, count: int) -> bytes:
        """Up to ``count`` bytes of what it writes; none at the end."""
        stdout = self._process.stdout
        return b"" if stdout is None else await stdout.read(count)

    def dismiss(self) -> None:
        """Let it end by itself, since nothing will be asked any more."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._process.wait()

    async def end(self) -> None:
        """See it end, by force if it does not by itself.

        A process that has closed its output is dying. Signalling one that is dead already would
        lose how it died (github.com/python/cpython/issues/87744).
        """
        self.dismiss()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), DYING_S)
        await self.kill()

    async def kill(self) -> None:
        """End it at once.

        What it wrote is thrown away: asyncio waits for a process until its pipes are empty too
        (github.com/python/cpython/issues/119710).
        """
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        while await self.read(LINE_BYTES):
            continue
        await self._process.wait()
