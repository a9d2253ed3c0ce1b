"""One live stream: passes audio to its session, and the session's events to the client.

The session (`common.domain.stream`) decides. This module connects it to the clock, the recognizer,
the moderation and Postgres, and computes nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any
from uuid import UUID, uuid4

from loguru import logger

from api.auth.callers import Caller
from api.http.problems import details_of
from api.processes.moderator import ModerationProcess
from api.processes.recognizers import Listener, Recognizers
from api.services import Services
from api.streams.options import StreamOptions, StreamRequest, StreamResolver, check_unchanged
from common.audio.wav import container_of
from common.db.streams import COMPLETED, NewStream, StreamFinal
from common.domain.moderation import ModeratedBy
from common.domain.results import finding_document, seconds, word_document
from common.domain.stream import (
    Attach,
    Detections,
    Event,
    Failure,
    Final,
    Partial,
    Session,
    State,
    StateChange,
)
from common.domain.values import Segment, Span
from common.errors import (
    Busy,
    Idle,
    NotFound,
    NotPcm,
    OverLimit,
    Restarting,
    SlowReader,
    StenoError,
    TooFast,
    TooLong,
    Transient,
)

MOST_BEHIND_MS = 10_000
"""Once so much audio waits to be recognized, no more is read."""
CAUGHT_UP_MS = 5_000
SETTLED_S = 5.0
"""After so long without falling behind, the time that a stream may be behind starts anew."""
AHEAD_MS = 2_000
"""Audio that is ahead of the clock by more was sent too fast."""
SILENT_S = 1.0
"""Without audio for so long, the current utterance is finalized."""
HEARTBEAT_S = 15.0
"""How often the stream is marked as alive in Postgres."""
TICK_S = 0.25
DRAIN_S = 30.0
"""How long work in progress may take at the stream's end."""
UNREAD_S = 20.0
"""How long a client may leave messages unread."""
MOST_UNREAD = 500
"""Messages that may be queued for the client."""
RETRY_S = 2.0
SAVING_S = 60.0
"""How long finals are retried at a stream's end while Postgres is unavailable."""

CLIENT_LEFT = "client_left"
"""The outcome of streams whose clients disconnected without closing them."""

Document = dict[str, Any]


class LiveStream:
    """A stream of one caller.

    Call `begin`, then `audio` and the others as the client sends, `documents` for the messages to
    send back, and `end` in any case.
    """

    def __init__(
        self, services: Services, caller: Caller, wanted: StreamRequest, request_id: str | None
    ) -> None:
        self.id = str(uuid4())
        self.error: StenoError | None = None
        """Why the stream ended; None: the client closed it."""
        self._services = services
        self._caller = caller
        self._wanted = wanted
        self._request_id = request_id
        self._disconnected = False
        self._timeout_s = services.settings.stream.patience
        self._streams = services.streams(caller.tenant)
        self._session = Session(wanted.setup, wanted.endpointing, moderated=wanted.moderation)
        self._listener = Listener(self.id, self._session, self._pump, self._reject)
        self._arrivals = Arrivals()
        self._began = self._active_at = self._now()
        self._audio_at = self._began
        """When the last audio was received."""
        self._behind_since = self._behind_until = self._began - SETTLED_S
        self._eased = asyncio.Event()
        self._unread: deque[Document] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._to_moderate: asyncio.Queue[Final | None] = asyncio.Queue()
        self._to_save: asyncio.Queue[tuple[str, Callable[[], None]] | None] = asyncio.Queue()
        """What to commit, by name, and the call that commits it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._save_until = inf
        self._keeping: asyncio.Task[None] | None = None
        """Set once the stream has begun: moderates and saves the finals."""

    @property
    def stream_id(self) -> UUID:
        return UUID(self.id)

    async def begin(self) -> None:
        """Reserve a recognizer, and insert a row in Postgres.

        Raises:
            StreamsFull, TooManyStreams, TooMuchAudio: a limit is reached.
            Unavailable: Postgres is unavailable.
        """
        setup = self._wanted.setup
        self._services.get(Recognizers).check(setup)
        self._services.get(LiveStreams).add(self)
        self._pump()  # it holds its place during the insert
        new = NewStream(
            id=self.stream_id,
            engine=setup.engine,
            model=setup.model,
            language=setup.language,
            moderation=self._wanted.moderation,
            key_id=self._caller.key_id,
            quota=self._caller.quota,
            request_id=self._request_id,
            client=self._wanted.client,
        )
        try:
            await self._services.in_thread(self._streams.open, new)
        except BaseException:
            await self.end()
            raise
        self._keeping = asyncio.create_task(self._keep_all())
        self._tasks.add(asyncio.create_task(self._watch_clock()))
        logger.info(
            "stream {stream_id} begins: {} {} {}",
            setup.engine,
            setup.model,
            setup.language,
            stream_id=self.id,
        )

    # --- from the client ------------------------------------------------------------------------

    def touch(self) -> None:
        """Something was received, be it only a keep-alive."""
        self._active_at = self._now()

    def audio(self, pcm: bytes) -> None:
        """Audio was received; await `room` before the next."""
        self.touch()
        if not self._session.received_ms and (kind := container_of(pcm)) is not None:
            self.finish(NotPcm(value=kind))
            return
        self._audio_at = self._active_at
        self._session.audio(pcm)
        self._arrivals.note(self._session.received_ms, self._active_at)
        self._pump()

    async def room(self, *, in_time: bool) -> None:
        """Wait until more audio can be taken; ``in_time``: end the stream where that takes long."""
        if self._session.behind_ms <= MOST_BEHIND_MS:
            return
        if self._now() - self._behind_until >= SETTLED_S:
            self._behind_since = self._now()
        self._session.status(State.BEHIND, behind_seconds=seconds(self._session.behind_ms))
        self._pump()
        while self._session.behind_ms > CAUGHT_UP_MS and not self._over:
            self._eased.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._eased.wait(), 1.0)
            self.touch()
            if in_time and self._now() - self._behind_since > self._timeout_s:
                self.finish(self._overload())
                return
        self._behind_until = self._now()
        self._session.status(State.CAUGHT_UP)
        self._pump()

    async def configure(self, options: StreamOptions) -> None:
        """Switch to other weights or another language from now on.

        Raises:
            BadInput, RecognizerUnusable, StreamsFull: it cannot switch; nothing changes.
        """
        check_unchanged(options)
        current = self._session.setup
        setup = await asyncio.to_thread(self._services.get(StreamResolver).setup, options, current)
        self._services.get(Recognizers).check(setup, besides=self.id)
        self._session.switch(setup)
        self._pump()

    def finalize(self) -> None:
        self._session.finalize()
        self._pump()

    def finish(self, error: StenoError | None = None) -> None:
        """No more audio will follow; ``error`` is why, unless the client has closed the stream."""
        if not self._session.is_finishing:
            self.error = self.error or error
        self._session.finish()
        self._pump()

    def disconnected(self) -> None:
        """The client has disconnected: what it sent is still recognized and saved."""
        self._disconnected = not self._session.is_finishing
        self.finish()

    def report(self, error: StenoError) -> None:
        """Send an error that does not end the stream."""
        self._session.fail(error.code, error.message, fatal=False, **details_of(error))
        self._pump()

    # --- to the client --------------------------------------------------------------------------

    async def documents(self) -> AsyncIterator[Document]:
        """All messages, until the stream is over."""
        while True:
            while self._unread:
                yield self._unread.popleft()
            if self._over:
                return
            self._news.clear()
            await self._news.wait()

    async def end(self) -> None:
        """Finish work in progress, and record the stream's end."""
        self._services.get(LiveStreams).discard(self)
        try:
            if self._keeping is not None:
                self.finish()
                await self._drain()
                await self._close()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._keeping is not None:
                self._keeping.cancel()
            self._services.get(Recognizers).detach(self._listener)

    # --- inside ---------------------------------------------------------------------------------

    def _reject(self, error: StenoError) -> None:
        """The weights cannot be used: without them there is no stream."""
        self.error = self.error or error
        self._finish_up()

    def _overload(self) -> StenoError:
        if self._session.received_ms > (self._now() - self._began) * 1000 + AHEAD_MS:
            return TooFast(limit_s=self._timeout_s)
        return Busy(what=self._session.setup.engine)

    def _pump(self) -> None:
        for out in self._session.take():
            if isinstance(out, Event):
                self._emit(out)
            elif isinstance(out, Attach):
                self._services.get(Recognizers).attach(self._listener, out.setup)
            else:
                self._services.get(Recognizers).order(self._listener, out)
        if self._session.behind_ms <= CAUGHT_UP_MS:
            self._eased.set()
        if self._session.is_over:
            self._finish_up()

    def _emit(self, event: Event) -> None:
        latency_ms: int | None = None
        if isinstance(event, Final):
            since = self._arrivals.at(event.spoken_until_ms)
            latency_ms = max(0, round((self._now() - since) * 1000))
            if event.segments:
                self._keep(event, latency_ms)
        document = event_document(event)
        if latency_ms is not None:
            document["latency_ms"] = latency_ms
        if isinstance(event, StateChange) and event.state in (State.LOADING, State.READY):
            setup = self._session.setup
            document |= {
                "session_id": self.id,
                "engine": setup.engine,
                "model_id": setup.model,
                "language": setup.language,
            }
        # A client that reads slowly skips outdated partials.
        if document["type"] == "partial" and self._unread and self._unread[-1]["type"] == "partial":
            self._unread.pop()
        self._unread.append(document)
        self._news.set()
        if len(self._unread) > MOST_UNREAD and not self._over:
            self.error = SlowReader(limit_s=UNREAD_S)
            self._unread.clear()
            self._finish_up()

    def _finish_up(self) -> None:
        """Queue the last messages."""
        if self._over:
            return
        self._over = True
        if self.error is not None:
            error = self.error
            self._session.fail(error.code, error.message, fatal=True, **details_of(error))
        self._session.status(
            State.CLOSED,
            reason=COMPLETED if self.error is None else self.error.code,
            audio_seconds=seconds(self._session.received_ms),
            processing_seconds=seconds(round(self._listener.spent_ms)),
        )
        for out in self._session.take():
            if isinstance(out, Event):
                self._unread.append(event_document(out))
        self._eased.set()
        self._news.set()

    async def _watch_clock(self) -> None:
        beat_at = self._now() + HEARTBEAT_S
        beating: asyncio.Task[None] | None = None
        limit_s = self._services.settings.stream.idle
        most_hours = self._services.settings.stream.max_hours
        while not self._over:
            await asyncio.sleep(TICK_S)
            now = self._now()
            if self._session.is_loading:  # a client that waits for the weights may be silent
                self.touch()
            if now - self._audio_at > SILENT_S and self._session.has_open_speech:
                self.finalize()
            if now - self._active_at > limit_s:
                self.finish(Idle(limit_s=limit_s))
            if self._session.received_ms > most_hours * 3_600_000:
                self.finish(TooLong(limit=most_hours))
            if now >= beat_at and (beating is None or beating.done()):
                beat_at = now + HEARTBEAT_S
                beating = asyncio.create_task(self._mark_alive())  # Postgres may be slow
                self._tasks.add(beating)
                beating.add_done_callback(self._tasks.discard)

    async def _mark_alive(self) -> None:
        setup = self._session.setup
        try:
            await self._services.in_thread(
                self._streams.beat,
                self.stream_id,
                audio_ms=self._session.received_ms,
                engine=setup.engine,
                model=setup.model,
                language=setup.language,
                quota=self._caller.quota,
            )
        except (OverLimit, NotFound) as error:  # its key has no more audio today; it was deleted
            self.finish(error)
        except Transient as error:
            logger.warning(
                "stream {stream_id} is not marked as alive: {}", error, stream_id=self.id
            )

    def _keep(self, final: Final, latency_ms: int) -> None:
        kept = StreamFinal(
            seq=final.seq,
            span=final.span,
            engine=final.setup.engine,
            model=final.setup.model,
            language=final.setup.language,
            segments=final.segments,
            latency_ms=latency_ms,
        )
        add = partial(self._streams.add, self.stream_id, [kept])
        self._to_save.put_nowait((f"final {final.seq}", add))
        if self._wanted.moderation:
            self._to_moderate.put_nowait(final)

    async def _keep_all(self) -> None:
        """Moderate and save concurrently, until no more finals follow."""
        saving = asyncio.create_task(self._save_all())
        try:
            await self._moderate_all()
            self._to_save.put_nowait(None)
            await saving
        finally:
            saving.cancel()

    async def _moderate_all(self) -> None:
        while (final := await self._to_moderate.get()) is not None:
            segments, by = await self._moderate(final)
            self._session.moderated(final.seq, segments, by)
            self._pump()
            if by is not None:
                moderate = partial(self._streams.moderate, self.stream_id, final.seq, segments, by)
                self._to_save.put_nowait((f"the moderation of final {final.seq}", moderate))

    async def _moderate(self, final: Final) -> tuple[tuple[Segment, ...], ModeratedBy | None]:
        texts = [segment.text for segment in final.segments]
        try:
            by, findings = await self._services.get(ModerationProcess).moderate(texts)
        except StenoError as error:
            logger.warning(
                "stream {stream_id}: final {} is not moderated: {}",
                final.seq,
                error,
                stream_id=self.id,
            )
            return final.segments, None
        moderated = zip(final.segments, findings, strict=True)
        return tuple(replace(segment, finding=finding) for segment, finding in moderated), by

    async def _save_all(self) -> None:
        while (item := await self._to_save.get()) is not None:
            await self._save(*item)

    async def _save(self, what: str, commit: Callable[[], None]) -> None:
        """Commit, and retry while Postgres is unavailable, as long as the stream lasts."""
        while True:
            try:
                await self._services.in_thread(commit)
            except NotFound as error:  # deleted: nothing of it may be kept
                self.finish(error)
                return
            except Transient as error:
                logger.warning(
                    "stream {stream_id}: {} is not saved yet: {}", what, error, stream_id=self.id
                )
                if self._now() > self._save_until:
                    logger.error("stream {stream_id}: {} is lost", what, stream_id=self.id)
                    return
            else:
                return
            await asyncio.sleep(RETRY_S)

    async def _drain(self) -> None:
        """Wait until the session is over and its finals are saved."""
        deadline = self._now() + DRAIN_S
        while not self._over and self._now() < deadline:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), 1.0)
        if not self._over:
            self.error = self.error or Busy(what=self._session.setup.engine)
            self._finish_up()
        self._save_until = self._now() + SAVING_S
        self._to_moderate.put_nowait(None)
        if self._keeping is not None:
            await self._keeping

    async def _close(self) -> None:
        outcome = CLIENT_LEFT if self._disconnected else COMPLETED
        if self.error is not None:
            outcome = self.error.code
        audio_ms = self._session.received_ms
        try:
            await self._services.in_thread(
                self._streams.close, self.stream_id, audio_ms=audio_ms, outcome=outcome
            )
        except NotFound:
            outcome = "deleted"
        except Transient as error:  # the dispatcher closes silent streams
            logger.warning("stream {stream_id} cannot be closed: {}", error, stream_id=self.id)
        logger.info(
            "stream {stream_id} is over: {}, {:.1f} s of audio",
            outcome,
            seconds(audio_ms),
            stream_id=self.id,
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class LiveStreams:
    """The open streams of one gateway process, so that a shutdown can finish them."""

    def __init__(self) -> None:
        self._streams: set[LiveStream] = set()
        self._closing = False

    def add(self, live: LiveStream) -> None:
        """Register a stream.

        Raises:
            Restarting: the gateway is shutting down.
        """
        if self._closing:
            raise Restarting
        self._streams.add(live)

    def discard(self, live: LiveStream) -> None:
        self._streams.discard(live)

    def __len__(self) -> int:
        return len(self._streams)

    def finish(self) -> None:
        """Finish all streams, and let none begin: the gateway is shutting down."""
        self._closing = True
        for live in list(self._streams):
            live.finish(Restarting())


class Arrivals:
    """When which audio was received."""

    def __init__(self) -> None:
        self._until_ms: list[int] = []
        self._times: list[float] = []

    def note(self, until_ms: int, now: float) -> None:
        """All audio before ``until_ms`` has been received."""
        self._until_ms.append(until_ms)
        self._times.append(now)
        if len(self._times) > 20_000:  # finals are at most minutes old
            del self._until_ms[:10_000], self._times[:10_000]

    def at(self, ms: int) -> float:
        """When the audio before ``ms`` had been received."""
        index = min(bisect_left(self._until_ms, ms), len(self._times) - 1)
        return self._times[index]


def event_document(event: Event) -> Document:
    """An event's message: each has these six fields, and some of its own."""
    common: Document = {
        "type": "",
        "seq": event.seq,
        "start": seconds(event.span.start_ms),
        "end": seconds(event.span.end_ms),
        "text": "",
        "is_final": False,
    }
    match event:
        case StateChange():
            return common | {"type": "status", "status": event.state, **event.details}
        case Partial():
            return common | {"type": "partial", "text": event.text, "stable": event.stable}
        case Final():
            return common | {
                "type": "final",
                "text": event.text,
                "is_final": True,
                "words": [
                    word_document(word) for segment in event.segments for word in segment.words
                ],
                "flags": sorted({flag for each in event.segments for flag in each.flags}),
                "engine": event.setup.engine,
                "model_id": event.setup.model,
                "language": event.setup.language,
            }
        case Detections():
            results = (finding_document(index, each) for index, each in enumerate(event.segments))
            by = event.by.to_json()
            return common | {
                "type": "detections",
                "final_seq": event.final_seq,
                "results": [each for each in results if each is not None],
                "model": by["model"],
                "threshold": by["threshold"],
            }
        case Failure():
            fields = {"type": "error", "code": event.code, "detail": event.detail}
            return common | event.details | fields | {"fatal": event.fatal}
    raise ValueError(f"{event} has no message")


def error_document(error: StenoError) -> Document:
    """The message for the error of a stream that has not begun."""
    failure = Failure(1, Span(0, 0), error.code, error.message, True, details_of(error))
    return event_document(failure)
