"""The gateway to use: a given one, the running one, or one started for the command."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Console

from common.domain.models import ModelName
from common.errors import InUse
from common.settings import Settings
from scripts.cli.client import Gateway
from scripts.cli.weights import have_one
from scripts.stack.running import find_running

if TYPE_CHECKING:
    from scripts.stack.stack import Stack

STARTING_S = 60
"""How long another process's stack may take to start or stop."""


@dataclass(eq=False)
class ServiceSession:
    """A gateway for as long as the block lasts.

    ``check`` is called before anything is fetched or started: a gateway that runs checks by itself.

    A stack that is found here may stop while it is in use, say because the command that had
    started it is done: `revive` then starts one over the same data, which has all the jobs.
    It is to be called by the thread that entered; `gateway` may be used by any.
    """

    settings: Settings
    console: Console
    server: str | None
    key: str | None
    workers: int | None
    models: Sequence[ModelName]
    """Those of which one has to be here before a stack is started, best first."""
    check: Callable[[], None] = lambda: None
    started_in_s: float | None = None
    """What starting a stack took; None where one was running."""
    _stack: Stack | None = None
    _gateways: list[Gateway] = field(default_factory=list)

    def __enter__(self) -> Self:
        if self.server is not None:
            self._use(self.server)
            self.gateway.reach()
        elif (running := find_running(self.settings.storage.data_dir.absolute())) is not None:
            self._use(running.address)
        else:
            self.check()
            have_one(self.settings.asr, self.models)
            with self.console.status("Starting Stenopool ..."):
                self._use(self._find_or_start())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for gateway in self._gateways:
                gateway.close()
            if self._stack is not None:
                with self.console.status("Stopping Stenopool ..."):
                    self._stack.stop()
        except KeyboardInterrupt:
            if self._stack is not None:
                self._stack.kill()
            raise

    @property
    def gateway(self) -> Gateway:
        return self._gateways[-1]

    @property
    def is_ours(self) -> bool:
        """Whether the stack was started here, and stops with the block."""
        return self._stack is not None

    def revive(self) -> None:
        """Start a stack again if the one that was found has stopped."""
        if self.server is None and self._stack is None:
            address = self._find_or_start()
            if address != self.gateway.address:
                self._use(address)

    def kill(self) -> None:
        if self._stack is not None:
            self._stack.kill()

    def _use(self, address: str) -> None:
        self._gateways.append(Gateway(address, self.key or self.settings.key.of_client))

    def _find_or_start(self) -> str:
        deadline = time.monotonic() + STARTING_S
        while True:
            running = find_running(self.settings.storage.data_dir.absolute())
            if running is not None:
                return running.address
            try:
                return self._start()
            except InUse:  # by a stack that is starting or stopping
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _start(self) -> str:
        from scripts.stack.stack import Stack  # slow to import, and rarely needed

        # Any free port: a stack over other data may have the usual one.
        api = self.settings.api.model_copy(update={"host": "127.0.0.1", "port": 0})
        settings = self.settings.model_copy(update={"api": api})
        began = time.monotonic()
        stack = Stack(settings, workers=self.workers, report=lambda _: None)
        address = stack.start()
        self.started_in_s = time.monotonic() - began
        self._stack = stack
        return address
