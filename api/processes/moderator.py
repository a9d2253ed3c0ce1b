"""Judges texts with the moderation model, which runs in a process that is kept warm."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from loguru import logger

from api.processes.child import LOADING, OFF, OK, Child
from common.domain.moderation import ModeratedBy, Verdict
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
"""What options need that ask for it where it is off."""

SLICE_TEXTS = 16
SLICE_LETTERS = 2_000
"""What of one call is judged before another has its turn; a longer text goes alone."""

MAX_CALLS = 256
MAX_LETTERS = 10_000_000
"""What may wait; a call beyond it is told to come again."""

LOADING_S = 60.0
SLICE_S = 60.0
"""After these the process counts as hung."""
CALL_S = 120.0

RESTART_S = 2.0
"""Pause before a process that died while it had nothing to do is replaced."""
RETRY_S = 60.0
"""How long a model that could not be loaded is not tried again."""

ANSWER_BYTES = 16 << 20


@dataclass(eq=False, slots=True)
class _Call:
    """Texts somebody waits for, and the verdicts so far."""

    texts: Sequence[str]
    answer: asyncio.Future[ModeratedBy]
    verdicts: list[Verdict] = field(default_factory=list)
    deaths: int = 0

    def next_slice(self) -> list[str]:
        start = end = len(self.verdicts)
        letters = 0
        while end < len(self.texts) and end - start < SLICE_TEXTS:
            letters += len(self.texts[end])
            if letters > SLICE_LETTERS and end > start:
                break
            end += 1
        return list(self.texts[start:end])


class Judge:
    """One process with the model, which takes a slice of each call in turn.

    It is started in the background, and replaced when it dies: the slice in hand is tried once
    more in a fresh process, and only if that dies too the call fails, for it may be to blame.
    """

    def __init__(self, settings: ModerationSettings) -> None:
        self._settings = settings
        self._slice_s = SLICE_S
        self._waiting: deque[_Call] = deque()
        self._calls = 0
        self._letters = 0
        self._awake = asyncio.Event()
        self._by: ModeratedBy | None = None
        self._problem: ModerationUnusable | None = None
        self._failed_at = 0.0
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load the model, in the background."""
        if self._settings.ai_load_models:
            self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
            self._running = None
        self._fail_all(Unavailable(what="The moderation model"))

    @property
    def state(self) -> str:
        """``ok``, ``off``, ``loading``, or what is wrong with the model."""
        if not self._settings.ai_load_models:
            return OFF
        if self._problem is not None:
            return str(self._problem)
        return OK if self._by is not None else LOADING

    @property
    def by(self) -> ModeratedBy | None:
        """Who judges, once loaded."""
        return self._by

    def check(self, letters: int = 0) -> None:
        """Refuse what could not be judged, or not soon.

        Raises:
            ModerationOff: it is switched off.
            ModerationUnusable: the model cannot be loaded.
            Busy: too many wait already.
        """
        if not self._settings.ai_load_models:
            raise ModerationOff
        if self._problem is not None and self._now() - self._failed_at < RETRY_S:
            raise ModerationUnusable(**self._problem.details)
        if self._calls >= MAX_CALLS or self._letters + letters > MAX_LETTERS:
            raise Busy(what="The moderation model")

    async def judge(self, texts: Sequence[str]) -> tuple[ModeratedBy, list[Verdict]]:
        """One verdict a text, in order, and who judged.

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
                return await call.answer, call.verdicts
        except TimeoutError:
            raise ModerationFailed(reason=f"it took longer than {CALL_S:.0f} s") from None
        finally:
            self._calls -= 1
            self._letters -= letters

    # --- the process ----------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep a process with the model, for ever."""
        while True:
            try:
                self._problem = await self._run_one()
            except Exception as error:
                logger.opt(exception=error).error("the moderation process cannot be run")
                self._problem = self._unusable("its process cannot be run; the log says why")
            if self._problem is not None:
                self._failed_at = self._now()
                self._fail_all(self._problem)
                await self._called()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._called(), RESTART_S)

    async def _run_one(self) -> ModerationUnusable | None:
        """Start a process and have it judge until it ends; or what is wrong with the model."""
        child = await Child.spawn(
            "api.processes.moderator_process",
            self._settings.model_dump_json(),
            line_bytes=ANSWER_BYTES,
        )
        try:
            problem = await self._load(child)
            if problem is None:
                self._problem = None
                await self._serve(child)
                logger.warning("the moderation process {} has to be replaced", child.pid)
            return problem
        finally:
            self._by = None
            await child.kill()

    async def _load(self, child: Child) -> ModerationUnusable | None:
        """What is wrong with the model, if anything."""
        try:
            async with asyncio.timeout(LOADING_S):
                line = await child.answer()
        except TimeoutError:
            return self._unusable(f"loading it took longer than {LOADING_S:.0f} s")
        if not line:
            await child.end()
            return self._unusable(f"loading it ended the process ({child.ended})")
        answer = json.loads(line)
        if "unusable" in answer:
            return self._unusable(answer["unusable"])
        self._by = ModeratedBy.from_json(answer["by"])
        logger.info("moderation by {} is ready, process {}", self._by.model, child.pid)
        return None

    async def _serve(self, child: Child) -> None:
        """Judge what waits, a slice of each call in turn, until the process dies or hangs."""
        watch = asyncio.create_task(self._wake_at_the_end_of(child))
        try:
            while child.ended is None:
                if not self._waiting:
                    self._awake.clear()
                    await self._awake.wait()
                    continue
                call = self._waiting.popleft()
                if not call.answer.done() and not await self._go_on(child, call):
                    return
        finally:
            watch.cancel()

    async def _go_on(self, child: Child, call: _Call) -> bool:
        """Judge the next slice of ``call``; tells whether the process survived it."""
        try:
            async with asyncio.timeout(self._slice_s):
                line = await child.ask(call.next_slice())
        except TimeoutError:
            self._fail(call, ModerationFailed(reason="it did not come to an end"))
            return False
        if not line:
            await child.end()
            call.deaths += 1
            if call.deaths > 1:
                reason = f"its process ended with {child.ended}"
                self._fail(call, ModerationFailed(reason=reason))
            else:
                self._waiting.appendleft(call)
                self._awake.set()
            return False
        answer = json.loads(line)
        if "failed" in answer:
            self._fail(call, ModerationFailed(reason=answer["failed"]))
            return True
        call.verdicts += map(Verdict.from_json, answer["verdicts"])
        if len(call.verdicts) < len(call.texts):
            self._waiting.append(call)
        elif not call.answer.done() and self._by is not None:
            call.answer.set_result(self._by)
        return True

    async def _wake_at_the_end_of(self, child: Child) -> None:
        await child.wait()
        self._awake.set()

    async def _called(self) -> None:
        """Return when somebody waits for verdicts."""
        while not self._waiting:
            self._awake.clear()
            await self._awake.wait()

    def _fail_all(self, error: StenoError) -> None:
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
        logger.error("{}", ModerationUnusable(path=folder, reason=reason))
        # Clients are not told where on this machine it lies.
        shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name
        told = reason.replace(str(folder), str(shown))
        return ModerationUnusable(path=shown, reason=told)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
