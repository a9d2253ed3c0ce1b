"""One live stream: carries sound to its session, and to the client what follows from it.

The session (`common.domain.stream`) decides; here are the clock, the recognizer, the moderation and
Postgres. Nothing here computes.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
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
from api.processes.recognizers import Recognizers
from api.services import Services
from api.streams.options import (
    StreamOptions,
    StreamRequest,
    StreamResolver,
    check_unchanged,
)
from common.audio.wav import container_of
from common.db.streams import COMPLETED, NewStream, StreamFinal
from common.domain.moderation import ModeratedBy
from common.domain.results import seconds, verdict_document, word_document
from common.domain.stream import (
    Attach,
    Detections,
    Event,
    Failure,
    Final,
    Hypothesis,
    Partial,
    Session,
    State,
    Status,
    Style,
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
"""So much sound may wait to be heard; then no more is read."""
CAUGHT_UP_MS = 5_000
SETTLED_S = 5.0
"""A stream that has not been behind for so long may be behind again as long as at first."""
AHEAD_MS = 2_000
"""If more sound came in than time has gone by, and so much more, it came in too fast."""
SILENT_S = 1.0
"""When no sound comes for so long, the utterance under way is taken to be over."""
HEARTBEAT_S = 15.0
"""How often Postgres is told that the stream lives."""
TICK_S = 0.25
DRAIN_S = 30.0
"""What is under way at the end gets so long."""
UNREAD_S = 20.0
"""How long a client may read nothing while something is to be told."""
MOST_UNREAD = 500
"""Messages that may wait for it."""
RETRY_S = 2.0
SAVING_S = 60.0
"""How long Postgres may be out while finals wait to be saved at a stream's end."""

LEFT = "client_left"
"""The outcome of streams whose clients went without a word."""

Document = dict[str, Any]


class LiveStream:
    """A stream of one caller; it is a `api.processes.recognizers.Listener`.

    `begin`, then `audio` and the others as the client speaks, `documents` to hear what it is told,
    and `end` whatever happened.
    """

    def __init__(
        self, services: Services, caller: Caller, wanted: StreamRequest, request_id: str | None
    ) -> None:
        self.id = str(uuid4())
        self.spent_ms = 0.0
        self.error: StenoError | None = None
        """Why it is over; None: as the client wished."""
        self._services = services
        self._caller = caller
        self._wanted = wanted
        self._request_id = request_id
        self._disconnected = False
        self._timeout_s = services.settings.stream.patience
        self._streams = services.streams(caller.tenant)
        self._session = Session(wanted.setup, wanted.endpointing, moderated=wanted.moderation)
        self._arrivals = Arrivals()
        self._began = self._active_at = self._now()
        self._audio_at = self._began
        """When sound came in last."""
        self._behind_since = self._behind_until = self._began - SETTLED_S
        self._eased = asyncio.Event()
        self._unread: deque[Document] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._to_moderate: asyncio.Queue[Final | None] = asyncio.Queue()
        self._to_save: asyncio.Queue[tuple[str, Callable[[], None]] | None] = asyncio.Queue()
        """What is to be committed, and what commits it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._save_until = inf
        self._keeping: asyncio.Task[None] | None = None
        """Set once it has begun: judges and saves what is told."""

    @property
    def stream_id(self) -> UUID:
        return UUID(self.id)

    async def begin(self) -> None:
        """Have a place, a row in Postgres, and soon a recognizer.

        Raises:
            StreamsFull, TooManyStreams, TooMuchAudio, Unavailable: there is none to be had.
        """
        setup = self._wanted.setup
        self._services.get(Recognizers).check(setup)
        self._services.get(LiveStreams).add(self)
        self._pump()  # it holds its place while Postgres is asked
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
        self._tasks.add(asyncio.create_task(self._tend()))
        logger.info(
            "stream {stream_id} begins: {} {} {}",
            setup.engine,
            setup.model,
            setup.language,
            stream_id=self.id,
        )

    # --- what the client says -------------------------------------------------------------------

    def touch(self) -> None:
        """Something came in, be it only a sign of life."""
        self._active_at = self._now()

    def audio(self, pcm: bytes) -> None:
        """Sound came in; await `room` before the next."""
        self.touch()
        if not self._session.received_ms and (kind := container_of(pcm)) is not None:
            self.finish(NotPcm(value=kind))
            return
        self._audio_at = self._active_at
        self._session.audio(pcm)
        self._arrivals.note(self._session.received_ms, self._active_at)
        self._pump()

    async def room(self, *, in_time: bool) -> None:
        """Return when more sound may come; ``in_time``: end a stream for which that takes long."""
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
        """Have others hear what comes from now on.

        Raises:
            BadInput, RecognizerUnusable, StreamsFull: it cannot be; all stays as it is.
        """
        check_unchanged(options)
        current = self._session.setup
        setup = await asyncio.to_thread(self._services.get(StreamResolver).setup, options, current)
        self._services.get(Recognizers).check(setup, besides=self.id)
        self._session.switch(setup)
        self._pump()

    def finalize(self) -> None:
        """End the utterance under way."""
        self._session.finalize()
        self._pump()

    def finish(self, error: StenoError | None = None) -> None:
        """Nothing more will come; ``error`` is why, where that is not what the client wishes."""
        if not self._session.is_finishing:
            self.error = self.error or error
        self._session.finish()
        self._pump()

    def disconnected(self) -> None:
        """The client is gone: what it said is heard to its end."""
        self._disconnected = not self._session.is_finishing
        self.finish()

    def report(self, error: StenoError) -> None:
        """Tell of a mistake that the stream survives."""
        told = details_of(error)
        self._session.fail(error.code, error.message, fatal=False, **told)
        self._pump()

    # --- what the client is told ----------------------------------------------------------------

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
        """Have what is under way come to its end, and note that it is over."""
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
            self._services.get(Recognizers).detach(self)

    # --- what the recognizer says ---------------------------------------------------------------

    def attached(self, style: Style) -> None:
        self._session.attached(style)
        self._pump()

    def speech(self, start_ms: int, probabilities: Sequence[float]) -> None:
        self._session.judged(start_ms, probabilities)
        self._pump()

    def recognized(self, ticket: int, hypothesis: Hypothesis) -> None:
        self._session.heard(ticket, hypothesis)
        self._pump()

    def failed(self, ticket: int, reason: str) -> None:
        self._session.failed(ticket, reason)
        self._pump()

    def lost(self, reason: str) -> None:
        logger.warning("stream {stream_id}: its recognizer {}", reason, stream_id=self.id)
        self._session.lost(reason)
        self._pump()

    def rejected(self, error: StenoError) -> None:
        """The weights cannot be used: without them there is no stream."""
        self.error = self.error or error
        self._finish_up()

    # --- inside ---------------------------------------------------------------------------------

    def _overload(self) -> StenoError:
        if self._session.received_ms > (self._now() - self._began) * 1000 + AHEAD_MS:
            return TooFast(limit_s=self._timeout_s)
        return Busy(what=self._session.setup.engine)

    def _pump(self) -> None:
        """Pass on all that follows from what was just said."""
        for out in self._session.take():
            if isinstance(out, Event):
                self._emit(out)
            elif isinstance(out, Attach):
                self._services.get(Recognizers).attach(self, out.setup)
            else:
                self._services.get(Recognizers).order(self, out)
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
        if isinstance(event, Status) and event.state in (State.LOADING, State.READY):
            setup = self._session.setup
            document |= {
                "session_id": self.id,
                "engine": setup.engine,
                "model_id": setup.model,
                "language": setup.language,
            }
        # Who reads slowly misses what has been overtaken.
        if document["type"] == "partial" and self._unread and self._unread[-1]["type"] == "partial":
            self._unread.pop()
        self._unread.append(document)
        self._news.set()
        if len(self._unread) > MOST_UNREAD and not self._over:
            self.error = SlowReader(limit_s=UNREAD_S)
            self._unread.clear()
            self._finish_up()

    def _finish_up(self) -> None:
        """Tell the last there is to tell."""
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
            processing_seconds=seconds(round(self.spent_ms)),
        )
        for out in self._session.take():
            if isinstance(out, Event):
                self._unread.append(event_document(out))
        self._eased.set()
        self._news.set()

    async def _tend(self) -> None:
        """Watch the clock."""
        beat_at = self._now() + HEARTBEAT_S
        beating: asyncio.Task[None] | None = None
        limit_s = self._services.settings.stream.idle
        most_hours = self._services.settings.stream.max_hours
        while not self._over:
            await asyncio.sleep(TICK_S)
            now = self._now()
            if self._session.is_loading:  # who waits to be heard may be silent
                self.touch()
            if now - self._audio_at > SILENT_S and self._session.is_listening:
                self.finalize()
            if now - self._active_at > limit_s:
                self.finish(Idle(limit_s=limit_s))
            if self._session.received_ms > most_hours * 3_600_000:
                self.finish(TooLong(limit=most_hours))
            if now >= beat_at and (beating is None or beating.done()):
                beat_at = now + HEARTBEAT_S
                beating = asyncio.create_task(self._beat())  # Postgres may keep it waiting
                self._tasks.add(beating)
                beating.add_done_callback(self._tasks.discard)

    async def _beat(self) -> None:
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
            logger.warning("stream {stream_id} cannot be noted: {}", error, stream_id=self.id)

    def _keep(self, final: Final, latency_ms: int) -> None:
        """Have a final saved at once, and its verdicts as soon as there are any."""
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
        """Judge and save, side by side, until there is nothing more to come."""
        saving = asyncio.create_task(self._save_all())
        try:
            await self._moderate_all()
            self._to_save.put_nowait(None)
            await saving
        finally:
            saving.cancel()

    async def _moderate_all(self) -> None:
        """Judge the finals, one after the other."""
        while (final := await self._to_moderate.get()) is not None:
            segments, by = await self._moderate(final)
            self._session.moderated(final.seq, segments, by)
            self._pump()
            if by is not None:
                moderate = partial(self._streams.moderate, self.stream_id, final.seq, segments, by)
                self._to_save.put_nowait((f"the judgement of final {final.seq}", moderate))

    async def _moderate(self, final: Final) -> tuple[tuple[Segment, ...], ModeratedBy | None]:
        texts = [segment.text for segment in final.segments]
        try:
            by, verdicts = await self._services.get(ModerationProcess).moderate(texts)
        except StenoError as error:
            logger.warning(
                "stream {stream_id}: final {} is not judged: {}",
                final.seq,
                error,
                stream_id=self.id,
            )
            return final.segments, None
        moderated = zip(final.segments, verdicts, strict=True)
        return tuple(replace(segment, verdict=verdict) for segment, verdict in moderated), by

    async def _save_all(self) -> None:
        """Commit one thing after the other."""
        while (item := await self._to_save.get()) is not None:
            await self._save(*item)

    async def _save(self, what: str, commit: Callable[[], None]) -> None:
        """Commit something, however long Postgres is out, as long as the stream lasts."""
        while True:
            try:
                await self._services.in_thread(commit)
            except NotFound as error:  # deleted: nothing of it is to be kept
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
        outcome = LEFT if self._disconnected else COMPLETED
        if self.error is not None:
            outcome = self.error.code
        audio_ms = self._session.received_ms
        try:
            await self._services.in_thread(
                self._streams.close, self.stream_id, audio_ms=audio_ms, outcome=outcome
            )
        except NotFound:
            outcome = "deleted"
        except Transient as error:  # the dispatcher will find it silent
            logger.warning("stream {stream_id} cannot be closed: {}", error, stream_id=self.id)
        logger.info(
            "stream {stream_id} is over: {}, {:.1f} s of sound",
            outcome,
            seconds(audio_ms),
            stream_id=self.id,
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class LiveStreams:
    """All that are under way, so that they can be ended in time."""

    def __init__(self) -> None:
        self._streams: set[LiveStream] = set()
        self._closing = False

    def add(self, live: LiveStream) -> None:
        """One has begun.

        Raises:
            Restarting: the gateway is about to end.
        """
        if self._closing:
            raise Restarting
        self._streams.add(live)

    def discard(self, live: LiveStream) -> None:
        self._streams.discard(live)

    def __len__(self) -> int:
        return len(self._streams)

    def finish(self) -> None:
        """The gateway is about to end: have all come to their ends, and let none begin."""
        self._closing = True
        for live in list(self._streams):
            live.finish(Restarting())


class Arrivals:
    """When which sound came in."""

    def __init__(self) -> None:
        self._until_ms: list[int] = []
        self._times: list[float] = []

    def note(self, until_ms: int, now: float) -> None:
        """All sound before ``until_ms`` is here."""
        self._until_ms.append(until_ms)
        self._times.append(now)
        if len(self._times) > 20_000:  # nobody asks about what was minutes ago
            del self._until_ms[:10_000], self._times[:10_000]

    def at(self, ms: int) -> float:
        """When the sound before ``ms`` was here."""
        index = min(bisect_left(self._until_ms, ms), len(self._times) - 1)
        return self._times[index]


def event_document(event: Event) -> Document:
    """An event as clients read it: every one has these six fields, and some of its own."""
    common: Document = {
        "type": "",
        "seq": event.seq,
        "start": seconds(event.span.start_ms),
        "end": seconds(event.span.end_ms),
        "text": "",
        "is_final": False,
    }
    match event:
        case Status():
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
            results = (verdict_document(index, each) for index, each in enumerate(event.segments))
            by = event.by.to_json()
            return common | {
                "type": "detections",
                "final_seq": event.final_seq,
                "results": [each for each in results if each is not None],
                "model": by["model"],
                "threshold": by["threshold"],
            }
        case Failure():
            told = {"type": "error", "code": event.code, "detail": event.detail}
            return common | event.details | told | {"fatal": event.fatal}
    raise ValueError(f"{event} is told to nobody")


def error_document(error: StenoError) -> Document:
    """The error of a stream that never began."""
    failure = Failure(1, Span(0, 0), error.code, error.message, True, details_of(error))
    return event_document(failure)
