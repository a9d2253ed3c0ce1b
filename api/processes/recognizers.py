"""Processes that recognize live streams: a warm one for all streams of the same weights."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from api.processes.child import ChildProcess, WarmProcess
from common.domain.stream import (
    FRAME_BYTES,
    Feed,
    Forget,
    Hypothesis,
    Order,
    Recognize,
    Session,
    Setup,
    Style,
)
from common.domain.transcript import segments_from_json
from common.domain.values import BYTES_PER_MS
from common.errors import RecognizerUnusable, StenoError, StreamsFull
from common.settings import AsrSettings, StreamSettings
from common.weights.store import WeightsStore

ANSWER_S = 20.0
"""A process that owes an answer for so long counts as hung."""
DEATHS = 5
DEATHS_WITHIN_S = 60.0
"""A process that dies so often in so short a time is not started again for a while."""
PIECE_BYTES = 32 * FRAME_BYTES
"""Audio is passed on in pieces of 1 s, so that messages of other streams get in between."""


@dataclass(eq=False, slots=True)
class Listener:
    """A stream as a recognizer sees it: what it reports goes to the ``session``.

    ``on_report`` is called after each report, ``on_rejected`` where the weights cannot be used, now
    or ever. ``spent_ms`` is the processing time so far, with the stream's share of batches.
    """

    id: str
    session: Session
    on_report: Callable[[], None]
    on_rejected: Callable[[StenoError], None]
    spent_ms: float = 0.0


class Recognizers:
    """The recognizers of one gateway process, started on demand."""

    def __init__(self, asr: AsrSettings, streams: StreamSettings, weights: WeightsStore) -> None:
        self._asr = asr
        self._settings = streams
        self._weights = weights
        self._processes: dict[tuple[str, str], _Recognizer] = {}
        self._by_stream: dict[str, _Recognizer] = {}
        """The recognizer of each stream, by its id."""

    async def close(self) -> None:
        await asyncio.gather(*(process.close() for process in self._processes.values()))

    def loaded(self) -> dict[tuple[str, str], int]:
        """Engine and model of the weights in memory, with the number of their streams."""
        return {
            key: len(process.listeners)
            for key, process in self._processes.items()
            if process.is_ready
        }

    def check(self, setup: Setup, *, besides: str | None = None) -> None:
        """Reject a stream that could not be recognized in real time.

        ``besides`` is the id of an existing stream that wants to switch.

        Raises:
            StreamsFull: the engine has as many streams as it can keep up with.
        """
        limit = self._settings.limit_of(setup.engine)
        count = sum(
            process.engine == setup.engine and stream != besides
            for stream, process in self._by_stream.items()
        )
        if count >= limit:
            raise StreamsFull(engine=setup.engine, limit=limit)

    def attach(self, listener: Listener, setup: Setup) -> None:
        """Recognize the stream with ``setup`` from now on; it is notified when that is ready."""
        self.detach(listener)
        process = self._process(setup.engine, setup.model)
        self._by_stream[listener.id] = process
        process.join(listener, setup.language)

    def load(self, engine: str, model: str) -> None:
        """Load weights in advance, and keep them in memory."""
        process = self._process(engine, model)
        process.stays = True
        process.start()

    def state(self, engine: str, model: str) -> str:
        """The state of weights loaded in advance: `OK`, `LOADING`, or what is wrong with them."""
        return self._processes[engine, model].state

    def detach(self, listener: Listener) -> None:
        process = self._by_stream.pop(listener.id, None)
        if process is not None:
            process.detach(listener)

    def order(self, listener: Listener, order: Order) -> None:
        """Pass on an order of the stream; it is dropped where no recognizer is attached."""
        process = self._by_stream.get(listener.id)
        if process is not None:
            process.order(listener, order)

    def _process(self, engine: str, model: str) -> _Recognizer:
        process = self._processes.get((engine, model))
        if process is None:
            process = _Recognizer(engine, model, self._asr, self._settings, self._weights)
            self._processes[engine, model] = process
        self._make_room(process)
        return process

    def _make_room(self, wanted: _Recognizer) -> None:
        """Unload unused weights, where there would be too many in memory."""
        others = [each for each in self._processes.values() if each is not wanted]
        idle = sorted(
            (each for each in others if each.is_running and not each.listeners and not each.stays),
            key=lambda each: each.idle_since,
        )
        running = sum(each.is_running for each in others)
        for process in idle[: max(0, running + 1 - self._settings.max_models)]:
            process.stop()


class _Recognizer(WarmProcess):
    """One recognizer: its weights, its process (while a stream needs it) and its streams."""

    module = "api.processes.recognizer_process"
    loading_s = 180.0
    retry_s = 30.0
    line_bytes = 4 << 20

    def __init__(
        self,
        engine: str,
        model: str,
        asr: AsrSettings,
        settings: StreamSettings,
        weights: WeightsStore,
    ) -> None:
        super().__init__()
        self.engine, self.model = engine, model
        self.listeners: dict[str, Listener] = {}
        self.stays = False
        """Whether it is kept without streams."""
        self.idle_since = 0.0
        self._asr = asr
        self._settings = settings
        self._weights = weights
        self._languages: dict[str, str] = {}
        self._messages: deque[dict[str, Any]] = deque()
        self._written = asyncio.Event()
        self._style: Style | None = None
        self._path: Path | None = None
        self._unanswered: dict[tuple[str, str, int], float] = {}
        """When each unanswered message was sent, by stream, kind and number."""
        self._deaths: deque[float] = deque(maxlen=DEATHS)

    def join(self, listener: Listener, language: str) -> None:
        self.listeners[listener.id] = listener
        self._languages[listener.id] = language
        if problem := self._recent_problem:
            asyncio.get_running_loop().call_soon(listener.on_rejected, problem)
        elif not self.is_running:
            self.start()
        elif self._style is not None:
            asyncio.get_running_loop().call_soon(self._notify_ready, listener, self._style)

    def detach(self, listener: Listener) -> None:
        if self.listeners.pop(listener.id, None) is None:
            return
        for key in [key for key in self._unanswered if key[0] == listener.id]:
            del self._unanswered[key]
        self.idle_since = self._now()
        if self.is_ready:
            self._send({"do": "detach", "stream": listener.id})

    def order(self, listener: Listener, order: Order) -> None:
        if not self.is_ready:
            return
        match order:
            case Feed(start_ms, pcm):
                for start in range(0, len(pcm), PIECE_BYTES):
                    piece = pcm[start : start + PIECE_BYTES]
                    at_ms = start_ms + start // BYTES_PER_MS
                    self._unanswered[listener.id, "feed", at_ms] = self._now()
                    self._send(
                        {
                            "do": "feed",
                            "stream": listener.id,
                            "start_ms": at_ms,
                            "pcm": b64encode(piece).decode(),
                        }
                    )
            case Forget(before_ms):
                self._send({"do": "forget", "stream": listener.id, "before_ms": before_ms})
            case Recognize():
                self._unanswered[listener.id, "recognize", order.ticket] = self._now()
                language = self._languages[listener.id]
                message = {"do": "recognize", "stream": listener.id, "language": language}
                self._send({**message, **asdict(order)})

    # --- the process ----------------------------------------------------------------------------

    async def _order(self) -> str:
        weights = await asyncio.to_thread(self._weights.resolve, self.engine, self.model)
        self._path = weights.path
        self._messages.clear()
        order = {
            "engine": self.engine,
            "path": str(weights.path),
            "threads": self._settings.threads,
            "device": self._asr.device,
            "compute_type": self._asr.compute_type,
        }
        return json.dumps(order)

    def _ended(self, child: ChildProcess) -> StenoError | None:
        if not self.listeners and not self.stays:
            logger.info("{} {} is unloaded", self.engine, self.model)
            return None
        logger.warning("recognizer {} {} ended with {}", self.engine, self.model, child.exit_code)
        now = self._now()
        self._deaths.append(now)
        if len(self._deaths) == DEATHS and now - self._deaths[0] < DEATHS_WITHIN_S:
            return self._unusable("its process dies again and again")
        for listener in list(self.listeners.values()):
            reason = f"its process ended with {child.exit_code}"
            logger.warning("stream {stream_id}: its recognizer {}", reason, stream_id=listener.id)
            listener.session.lost(reason)
            listener.on_report()  # it attaches to a new process at once
        return None

    async def _pause(self) -> bool:
        if self._problem is not None and self.stays:
            await asyncio.sleep(self.retry_s)
        return self.stays or (self._problem is None and bool(self.listeners))

    def _notify_ready(self, listener: Listener, style: Style) -> None:
        if self.listeners.get(listener.id) is listener and self.is_ready:
            listener.session.attached(style)
            listener.on_report()

    async def _serve(self, child: ChildProcess, loaded: dict[str, Any]) -> None:
        """Pass on messages and answers, until the process ends, hangs or is not needed."""
        style = Style(**loaded["style"])
        logger.info("{} {} recognizes streams, process {}", self.engine, self.model, child.pid)
        writing = asyncio.create_task(self._write(child))
        watching = asyncio.create_task(self._watch())
        reading = asyncio.create_task(self._read(child))
        tasks = {writing, watching, reading}
        try:
            self._style = style
            for listener in list(self.listeners.values()):
                self._notify_ready(listener, style)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_ready, self._style = False, None
            self._unanswered.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if reading.done() and not reading.cancelled() and reading.exception() is not None:
            logger.opt(exception=reading.exception()).error("a recognizer's answer is invalid")
        if child.exit_code is None and reading.done():
            await child.end()

    async def _write(self, child: ChildProcess) -> None:
        while True:
            while self._messages:
                await child.send(self._messages.popleft())
            self._written.clear()
            await self._written.wait()

    async def _read(self, child: ChildProcess) -> None:
        while line := await child.receive():
            answer = json.loads(line)
            listener = self.listeners.get(answer["stream"])
            if listener is None:
                continue
            listener.spent_ms += answer.get("took_ms", 0.0)
            self._take(listener.session, listener.id, answer)
            listener.on_report()

    def _take(self, session: Session, stream: str, answer: dict[str, Any]) -> None:
        if "speech" in answer:
            self._unanswered.pop((stream, "feed", answer["start_ms"]), None)
            session.speech(answer["start_ms"], answer["speech"])
            return
        self._unanswered.pop((stream, "recognize", answer["ticket"]), None)
        if "failed" in answer:
            session.failed(answer["ticket"], answer["failed"])
        else:
            segments = segments_from_json(answer["segments"])
            session.recognized(answer["ticket"], Hypothesis(segments, answer["doubtful"]))

    async def _watch(self) -> None:
        """Return when the process hangs, or has been idle for long."""
        self.idle_since = self._now()
        while True:
            await asyncio.sleep(1)
            now = self._now()
            if self._unanswered and now - min(self._unanswered.values()) > ANSWER_S:
                logger.error("recognizer {} {} hangs", self.engine, self.model)
                return
            idle_s = now - self.idle_since
            if not self.listeners and not self.stays and idle_s > self._settings.unload_after:
                return

    def _send(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._written.set()

    def _reject_all(self, error: StenoError) -> None:
        for listener in list(self.listeners.values()):
            listener.on_rejected(error)

    def _unusable(self, reason: str) -> RecognizerUnusable:
        if self._path is not None:
            reason = reason.replace(str(self._path), self._path.name)
        return RecognizerUnusable(engine=self.engine, model=self.model, reason=reason)
