"""Moderates texts with a model that runs in a process of its own, which is kept warm."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from api.processes.child import OFF, ChildProcess, WarmProcess
from common.domain.moderation import Finding, ModeratedBy
from common.errors import (
    Busy,
    ModerationFailed,
    ModerationOff,
    ModerationUnusable,
    StenoError,
    Unavailable,
)
from common.settings import ROOT, ModerationSettings

NEEDED = "moderation, which is off here (AI_LOAD_MODELS=false)"
"""What is missing for options that ask for moderation where it is off."""

SLICE_TEXTS = 16
SLICE_LETTERS = 2_000
"""So much of one call is classified before the next has its turn; a longer text goes alone."""

MAX_CALLS = 256
MAX_LETTERS = 10_000_000
"""What may wait; calls beyond it are rejected as busy."""

SLICE_S = 60.0
"""A process that takes longer for a slice counts as hung."""
CALL_S = 120.0

RESTART_S = 2.0
"""Pause before a process that died while it had nothing to do is replaced."""


@dataclass(eq=False, slots=True)
class _Call:
    """Texts to moderate, and the findings so far."""

    texts: Sequence[str]
    answer: asyncio.Future[ModeratedBy]
    findings: list[Finding] = field(default_factory=list)
    deaths: int = 0

    def next_slice(self) -> list[str]:
        start = end = len(self.findings)
        letters = 0
        while end < len(self.texts) and end - start < SLICE_TEXTS:
            letters += len(self.texts[end])
            if letters > SLICE_LETTERS and end > start:
                break
            end += 1
        return list(self.texts[start:end])


class ModerationProcess(WarmProcess):
    """One process with the model, which takes a slice of each call in turn.

    When it dies, the slice in hand is tried once more in a fresh process. If that dies too the call
    fails, for it may be to blame.
    """

    module = "api.processes.moderator_process"
    loading_s = 60.0
    retry_s = 60.0
    line_bytes = 16 << 20

    def __init__(self, settings: ModerationSettings) -> None:
        super().__init__()
        self._settings = settings
        self._slice_s = SLICE_S
        self._waiting: deque[_Call] = deque()
        self._calls = 0
        self._letters = 0
        self._awake = asyncio.Event()
        self.by: ModeratedBy | None = None
        """The model, once loaded."""

    def start(self) -> None:
        """Load the model in the background, unless moderation is off."""
        if self._settings.ai_load_models:
            super().start()

    async def close(self) -> None:
        await super().close()
        self._reject_all(Unavailable(what="The moderation model"))

    @property
    def state(self) -> str:
        return super().state if self._settings.ai_load_models else OFF

    def check(self, letters: int = 0) -> None:
        """Reject what could not be moderated, or not soon.

        Raises:
            ModerationOff: it is switched off.
            ModerationUnusable: the model cannot be loaded.
            Busy: too many wait already.
        """
        if not self._settings.ai_load_models:
            raise ModerationOff
        if problem := self._recent_problem:
            raise type(problem)(**problem.details)
        if self._calls >= MAX_CALLS or self._letters + letters > MAX_LETTERS:
            raise Busy(what="The moderation model")

    async def moderate(self, texts: Sequence[str]) -> tuple[ModeratedBy, list[Finding]]:
        """One finding a text, in order, and the model that gave them.

        Raises:
            ModerationOff, ModerationUnusable, Busy: as `check` says.
            ModerationFailed: it takes longer than `CALL_S`, or the texts twice ended the process.
        """
        letters = sum(map(len, texts))
        self.check(letters)
        call = _Call(texts, asyncio.get_running_loop().create_future())
        self._calls += 1
        self._letters += letters
        self._waiting.append(call)
        self._awake.set()
        try:
            async with asyncio.timeout(CALL_S):
                return await call.answer, call.findings
        except TimeoutError:
            raise ModerationFailed(reason=f"it took longer than {CALL_S:.0f} s") from None
        finally:
            self._calls -= 1
            self._letters -= letters

    # --- the process ----------------------------------------------------------------------------

    async def _order(self) -> str:
        return self._settings.model_dump_json()

    def _ended(self, child: ChildProcess) -> None:
        logger.warning("moderation process {} ended with {}", child.pid, child.exit_code)

    async def _pause(self) -> bool:
        if self._problem is not None:
            await self._called()
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._called(), RESTART_S)
        return True

    async def _serve(self, child: ChildProcess, loaded: dict[str, Any]) -> None:
        """Take a slice of each call in turn, until the process dies or hangs."""
        self.by = ModeratedBy.from_json(loaded["by"])
        logger.info("moderation by {} is ready, process {}", self.by.model, child.pid)
        watch = asyncio.create_task(self._wake_at_exit(child))
        try:
            while child.exit_code is None:
                if not self._waiting:
                    self._awake.clear()
                    await self._awake.wait()
                    continue
                call = self._waiting.popleft()
                if not call.answer.done() and not await self._take_slice(child, call):
                    return
        finally:
            self.by = None
            watch.cancel()

    async def _take_slice(self, child: ChildProcess, call: _Call) -> bool:
        """Classify the next slice of ``call``; returns whether the process survived it."""
        try:
            async with asyncio.timeout(self._slice_s):
                line = await child.ask(call.next_slice())
        except TimeoutError:
            self._fail(call, ModerationFailed(reason="it did not finish in time"))
            return False
        if not line:
            await child.end()
            call.deaths += 1
            if call.deaths > 1:
                reason = f"its process ended with {child.exit_code}"
                self._fail(call, ModerationFailed(reason=reason))
            else:
                self._waiting.appendleft(call)
                self._awake.set()
            return False
        answer = json.loads(line)
        if "failed" in answer:
            self._fail(call, ModerationFailed(reason=answer["failed"]))
            return True
        call.findings += map(Finding.from_json, answer["findings"])
        if len(call.findings) < len(call.texts):
            self._waiting.append(call)
        elif not call.answer.done() and self.by is not None:
            call.answer.set_result(self.by)
        return True

    async def _wake_at_exit(self, child: ChildProcess) -> None:
        await child.wait()
        self._awake.set()

    async def _called(self) -> None:
        while not self._waiting:
            self._awake.clear()
            await self._awake.wait()

    def _reject_all(self, error: StenoError) -> None:
        while self._waiting:
            self._fail(self._waiting.popleft(), type(error)(**error.details))

    @staticmethod
    def _fail(call: _Call, error: StenoError) -> None:
        if not call.answer.done():
            call.answer.set_exception(error)

    def _unusable(self, reason: str) -> ModerationUnusable:
        settings = self._settings
        folder = (
            settings.phobert_onnx_dir
            if settings.use_onnxruntime
            else settings.phobert_checkpoint_dir
        ).absolute()
        logger.error("the moderation model in {}: {}", folder, reason)
        shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name
        return ModerationUnusable(path=shown, reason=reason.replace(str(folder), str(shown)))
