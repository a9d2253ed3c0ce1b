"""Routes for live streams: a WebSocket, and a request that is answered while its body is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket
from loguru import logger
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect, WebSocketState

from api.auth.callers import Caller, Transcriber, caller_of
from api.http.bodies import documented_body, limit_body
from api.http.problems import PUBLIC_ERRORS, documented, problem, validated
from api.http.sse import MEDIA_TYPE as SSE
from api.http.sse import event
from api.services import Services, ServicesDep
from api.streams.live import UNREAD_S, LiveStream, error_document
from api.streams.options import StreamOptions, StreamResolver
from common.domain.keys import Scope as KeyScope
from common.errors import Idle, Malformed, Restarting, SlowReader, StenoError

router = APIRouter(tags=["streams"])

NDJSON = "application/x-ndjson"
TOKEN = "token"  # noqa: S105 - a name
"""The subprotocol for keys of web pages, which can send no header: ``token, KEY``."""
CONTROLS = ("KeepAlive", "Finalize", "CloseStream")

DONE, SERVICE_RESTART = 1000, 1012
OWN_CODES = 4000
"""A close code from here on is this plus the HTTP status of the same error."""
MOST_MISTAKES = 10
"""Number of invalid messages that are tolerated; the next one ends the stream."""
PIECE_BYTES = 64_000
"""2 s of audio: the largest piece in which a request's body is taken."""

_EXAMPLE = """{"type": "status", "seq": 1, "start": 0.0, "end": 0.0, "text": "", \
"is_final": false, "status": "ready", "session_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6", ...}
{"type": "partial", "seq": 2, "start": 0.4, "end": 1.6, "text": "Xin chào các", "is_final": false, \
"stable": 8}
{"type": "final", "seq": 3, "start": 0.4, "end": 2.3, "text": "Xin chào các bạn.", \
"is_final": true, "words": [...], "latency_ms": 540, ...}
{"type": "detections", "seq": 4, "start": 0.4, "end": 2.3, "text": "", "is_final": false, \
"final_seq": 3, "results": [{"label": "CLEAN", ...}], ...}
"""


def close_code(error: StenoError | None) -> int:
    """The close code for ``error``; None: the stream is complete."""
    if error is None:
        return DONE
    if isinstance(error, Restarting):
        return SERVICE_RESTART
    return OWN_CODES + error.status


# --- WebSocket -----------------------------------------------------------------------------------


@router.websocket("/ws/transcribe")
async def transcribe(websocket: WebSocket) -> None:
    """Audio in, words out."""
    services: Services = websocket.state.services
    protocols = websocket.scope.get("subprotocols", [])
    shows_key = len(protocols) == 2 and protocols[0] == TOKEN
    try:
        sent = protocols[1] if shows_key else None
        caller = await caller_of(websocket, services, KeyScope.TRANSCRIBE, sent)
        options = validated(StreamOptions, websocket.query_params)
    except StenoError as error:
        await websocket.send_denial_response(problem(error))
        return
    await websocket.accept(subprotocol=TOKEN if shows_key else None)
    await _Connection(websocket, services, caller, options).run()


@dataclass(slots=True)
class _Connection:
    """One connection, from the first message to the last."""

    socket: WebSocket
    services: Services
    caller: Caller
    options: StreamOptions
    mistakes: int = 0

    async def run(self) -> None:
        try:
            first = await self._first()
            if first["type"] == "websocket.disconnect":
                return
            live = await self._begin()
        except StenoError as error:
            await self._reject(error)
            return
        writing = asyncio.create_task(self._write(live))
        reading = asyncio.create_task(self._read(live, first))
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            # A lost connection may fail the write before the read sees it. A stream that has been
            # finished stays as it is.
            live.disconnected()
        finally:
            reading.cancel()
            writing.cancel()
            for ended in await asyncio.gather(reading, writing, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, WebSocketDisconnect):
                    logger.opt(exception=ended).error("stream {stream_id} broke", stream_id=live.id)
                    live.error = live.error or StenoError()
            await live.end()
            await self._close(live.error)

    async def _first(self) -> Message:
        """The first message that is not a keep-alive; options in it are applied."""
        limit_s = self.services.settings.stream.idle
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    message = await self.socket.receive()
            except TimeoutError:
                raise Idle(limit_s=limit_s) from None
            text = message.get("text")
            control = {} if text is None else read_message(text)
            if control.get("type") == "KeepAlive":
                continue
            if control and "type" not in control:
                self.options = _merged(self.options, control)
                return {"type": "websocket.receive", "bytes": b""}
            return message

    async def _begin(self) -> LiveStream:
        services = self.services
        wanted = await asyncio.to_thread(services.get(StreamResolver).resolve, self.options)
        live = LiveStream(services, self.caller, wanted, self.socket.state.request_id)
        await live.begin()
        return live

    async def _read(self, live: LiveStream, message: Message) -> None:
        """Take what the client sends, until it disconnects."""
        while message["type"] != "websocket.disconnect":
            live.touch()
            if (audio := message.get("bytes")) is not None:
                live.audio(audio)
            else:
                await self._take_text(live, message["text"])
            await live.room(in_time=True)
            message = await self.socket.receive()

    async def _take_text(self, live: LiveStream, text: str) -> None:
        try:
            await self._handle(live, read_message(text))
        except StenoError as error:
            self.mistakes += 1
            if self.mistakes > MOST_MISTAKES:
                live.finish(error)
            else:
                live.report(_public(error))

    async def _handle(self, live: LiveStream, message: Mapping[str, Any]) -> None:
        match message.get("type"):
            case "KeepAlive":
                pass
            case "Finalize":
                live.finalize()
            case "CloseStream":
                live.finish()
            case _:
                await live.configure(validated(StreamOptions, message))

    async def _write(self, live: LiveStream) -> None:
        """Send messages until the stream is over or the client does not read."""
        async for document in live.documents():
            text = json.dumps(document, ensure_ascii=False)
            try:
                async with asyncio.timeout(UNREAD_S):
                    await self.socket.send_text(text)
            except TimeoutError:
                live.error = live.error or SlowReader(limit_s=UNREAD_S)
                return

    async def _reject(self, error: StenoError) -> None:
        error = _public(error)
        with suppress(RuntimeError, TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                document = error_document(error)
                await self.socket.send_text(json.dumps(document, ensure_ascii=False))
        await self._close(error)

    async def _close(self, error: StenoError | None) -> None:
        if WebSocketState.DISCONNECTED in (
            self.socket.client_state,
            self.socket.application_state,
        ):
            return
        with suppress(RuntimeError, TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                await self.socket.close(close_code(error), "" if error is None else error.code)


def read_message(text: str) -> dict[str, Any]:
    """A client's message: a control of that ``type``, or without one, options.

    Raises:
        Malformed: it is neither.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(reason="the message is not JSON; send audio in binary messages") from None
    if not isinstance(message, dict):
        raise Malformed(reason="the message is not a JSON object")
    kind = message.get("type")
    if kind is not None and kind not in CONTROLS:
        allowed = ", ".join(CONTROLS)
        raise Malformed(reason=f"type must be one of {allowed}; a message with options has no type")
    return message


def _merged(options: StreamOptions, message: Mapping[str, Any]) -> StreamOptions:
    """The options in the URL, overridden by those in the first message."""
    validated(StreamOptions, message)  # so that an error names the value as it was sent
    return validated(StreamOptions, {**options.model_dump(exclude_unset=True), **message})


def _public(error: StenoError) -> StenoError:
    return error if isinstance(error, PUBLIC_ERRORS) else StenoError()


# --- HTTP ----------------------------------------------------------------------------------------


@router.post(
    "/asr/stream",
    summary="Stream audio, and receive its text meanwhile",
    response_class=Response,
    responses={
        200: {
            "description": "Messages, while the body is still being sent",
            "content": {
                NDJSON: {"schema": {"type": "string"}, "example": _EXAMPLE},
                SSE: {"schema": {"type": "string"}},
            },
        },
        **documented(400, 408, 413, 422, 503),
    },
    openapi_extra=documented_body(
        "application/octet-stream", {"type": "string", "format": "binary"}
    ),
)
async def stream(
    request: Request,
    services: ServicesDep,
    caller: Transcriber,
    options: Annotated[StreamOptions, Query()],
) -> Response:
    """Send PCM (16 bit, little endian, mono, 16 kHz) while it is spoken, in chunks.

    The response has a message a line (NDJSON): `status`, `partial`, `final`, `detections`, `error`,
    as on the WebSocket `/ws/transcribe`; or server-sent events, where `Accept` asks for them. Audio
    is read as fast as it is recognized.
    """
    limit_body(request.scope, None)
    wanted = await asyncio.to_thread(services.get(StreamResolver).resolve, options)
    live = LiveStream(services, caller, wanted, request.state.request_id)
    await live.begin()
    as_events = SSE in request.headers.get("accept", "")
    return _StreamAnswer(live, request.stream(), as_events=as_events)


class _StreamAnswer(Response):
    """Responds while the request's body is received."""

    def __init__(self, live: LiveStream, body: AsyncIterator[bytes], *, as_events: bool) -> None:
        self.background = None
        self.status_code = 200
        self._live = live
        self._body = body
        self._as_events = as_events
        self.media_type = SSE if as_events else NDJSON
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        reading = asyncio.create_task(self._read())
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async for piece in self._messages():
                async with asyncio.timeout(UNREAD_S):
                    await send(
                        {"type": "http.response.body", "body": piece.encode(), "more_body": True}
                    )
        except TimeoutError:
            self._live.error = self._live.error or SlowReader(limit_s=UNREAD_S)
            return  # without its end, so that it does not look complete
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._live.end()
        # A client that sees the response's end finds everything saved.
        await send({"type": "http.response.body", "body": b""})

    async def _messages(self) -> AsyncIterator[str]:
        async for document in self._live.documents():
            if self._as_events:
                yield event(document, name=document["type"], number=document["seq"])
            else:
                yield json.dumps(document, ensure_ascii=False) + "\n"

    async def _read(self) -> None:
        live = self._live
        try:
            async for data in self._body:
                for start in range(0, len(data), PIECE_BYTES):
                    live.audio(data[start : start + PIECE_BYTES])
                    await live.room(in_time=False)
        except ClientDisconnect:
            live.disconnected()
        else:
            live.finish()
