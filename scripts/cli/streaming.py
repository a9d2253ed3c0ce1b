"""The client of a live stream, and its audio sources: files, pipes and microphones."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import av
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from api.auth.exposure import is_loopback
from common.audio.decode import MonoDecoder
from common.domain.values import BYTES_PER_MS, SAMPLE_RATE, SAMPLES_PER_MS
from common.errors import GatewayLost, RequestRejected, SetupProblem
from scripts.cli.client import refusal, shown

PATH = "/ws/transcribe"
CONNECT_S = 10.0
PONG_S = 90.0
"""A gateway that is behind does not read, so not even a ping, for up to a minute."""
KEEP_ALIVE_S = 15.0
FAREWELL_S = 1.0
"""How long the closing handshake may take where no messages are awaited."""

DONE = 1000
OWN_CODES = 4000
"""Beyond this a close code is the HTTP status of the same error."""

PIECE_MS = 100
PIECE_BYTES = PIECE_MS * BYTES_PER_MS
AHEAD = 20
"""Pieces that are read before they can be sent."""

MICROPHONES = {
    "linux": ("alsa", "default", {"sample_rate": str(SAMPLE_RATE), "channels": "1"}),
    "darwin": ("avfoundation", ":default", {}),
}
"""FFmpeg's format for recording on a system, its name for the usual microphone, and its options."""
ALSA = Path("/usr/share/alsa")
"""ALSA's configuration of the system; PyAV's own ALSA looks where it was built."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the gateway, parsed and as received, ``at`` a time of the monotonic clock."""

    document: dict[str, Any]
    text: str
    at: float

    @property
    def type(self) -> str:
        return str(self.document.get("type"))


def address_of(gateway: str) -> str:
    """Where the gateway of this address takes live streams."""
    return re.sub("^http", "ws", gateway.rstrip("/")) + PATH


class StreamClient:
    """One live stream on the gateway at ``address``, open while the block lasts.

    One task sends, another one takes the messages. ``key`` is the API key to show; ``options`` are
    said first (`api.streams.options.StreamOptions`), and have the gateway load what is to hear the
    stream.
    Without ``keep_alive`` the gateway takes a long silence of the client's for its absence.

    Raises, from entering:
        RequestRejected: the gateway said no; its detail is the message, ``details["status"]`` the
            status.
        GatewayLost: it cannot be reached.
    """

    def __init__(
        self, address: str, key: str | None = None, *, keep_alive: bool = True, **options: Any
    ) -> None:
        self.address = address.rstrip("/")
        self.ready = asyncio.Event()
        """Set once the gateway has reported ``ready``."""
        self.code: int | None = None
        """The close code, once the gateway has closed the stream."""
        self._key = key
        self._options = options
        self._keeping: asyncio.Task[None] | None = None
        self._keep_alive = keep_alive
        self._sent_at = 0.0
        self._error: str | None = None

    async def __aenter__(self) -> Self:
        self._socket = await self._connect()
        await self.say(**self._options)
        if self._keep_alive:
            self._keeping = asyncio.create_task(self._keep_open())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        if kind is not None:
            self.vanish()
        await self._socket.close()

    # --- uploads -------------------------------------------------------------------------

    async def send(self, message: bytes | str) -> bool:
        """Send audio (16 kHz mono s16le) or text, no faster than it is read.

        Returns:
            Whether it could be sent: the stream may be over.
        """
        try:
            await self._socket.send(message)
        except ConnectionClosed:
            return False
        self._sent_at = time.monotonic()
        return True

    async def say(self, **message: Any) -> bool:
        """`send` a control or options, such as ``type="Finalize"``."""
        return await self.send(json.dumps(message))

    async def finish(self) -> bool:
        """End the audio: the gateway sends the last finals and closes."""
        return await self.say(type="CloseStream")

    def vanish(self) -> None:
        """Drop the connection without a close frame."""
        self._socket.transport.abort()

    async def _keep_open(self) -> None:
        open_still = True
        while open_still:
            await asyncio.sleep(KEEP_ALIVE_S)
            if time.monotonic() - self._sent_at >= KEEP_ALIVE_S:
                open_still = await self.say(type="KeepAlive")

    # --- what comes back ----------------------------------------------------------------------

    async def messages(self) -> AsyncGenerator[Message]:
        """The gateway's messages until it closes the stream; `check` raises its reason.

        Raises:
            GatewayLost: the connection broke.
        """
        while (message := await self.receive()) is not None:
            yield message

    async def receive(self) -> Message | None:
        """The next message; None, and GatewayLost, as for `messages`."""
        try:
            text = await self._socket.recv(decode=True)
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise GatewayLost(address=self.address, reason="the connection broke") from closed
            self.code = closed.rcvd.code
            return None
        message = Message(json.loads(text), text, time.monotonic())
        if message.document.get("status") == "ready":
            self.ready.set()
        if message.document.get("fatal"):
            self._error = str(message.document["detail"])
        return message

    def check(self) -> None:
        """Return if the stream is open or was closed because it is complete.

        Raises:
            RequestRejected: the gateway closed it for another reason.
        """
        if self.code in {None, DONE}:
            return
        detail = self._error or f"The gateway closed the stream with {self.code}"
        raise RequestRejected(detail=detail, status=max(0, self.code - OWN_CODES))

    # --- the connection -----------------------------------------------------------------------

    async def _connect(self) -> ClientConnection:
        try:
            host = urlsplit(self.address).hostname or ""
            return await connect(
                address_of(self.address),
                additional_headers=shown(self._key),
                compression=None,  # audio does not compress
                proxy=None if is_loopback(host) else True,  # never through a proxy
                open_timeout=CONNECT_S,
                ping_timeout=PONG_S,
                close_timeout=FAREWELL_S,
            )
        except (InvalidURI, ValueError) as error:
            raise RequestRejected(
                detail=f"{self.address} is not an http(s) URL", status=0
            ) from error
        except InvalidStatus as error:
            answer = error.response
            raise refusal(
                answer.status_code, answer.reason_phrase, bytes(answer.body or b"")
            ) from error
        except (OSError, InvalidHandshake) as error:
            reason = str(error) or type(error).__name__
            raise GatewayLost(address=self.address, reason=reason) from error


# --- audio ------------------------------------------------------------------------------------


def of_file(path: Path) -> Iterator[bytes]:
    """The audio of a recording, piece by piece; raises as `common.audio.decode.MonoDecoder`."""
    for block in MonoDecoder(path, PIECE_MS):
        yield block.astype("<i2", copy=False).tobytes()


def of_pipe(descriptor: int) -> Iterator[bytes]:
    """Raw samples as read: 16 kHz mono s16le."""
    while piece := os.read(descriptor, PIECE_BYTES):
        yield piece


def of_microphone(device: str | None = None) -> Iterator[bytes]:
    """The audio of a microphone; ``device`` is FFmpeg's name of it.

    Raises:
        SetupProblem: there is none, or it cannot be used.
    """
    if sys.platform not in MICROPHONES:
        raise SetupProblem(
            problem=f"Recording is not supported on {sys.platform}",
            remedy="Record with another program, and pipe 16 kHz mono s16le to: steno listen -",
        )
    form, usual, options = MICROPHONES[sys.platform]
    name = device or usual
    if form == "alsa" and (ALSA / "alsa.conf").is_file():
        os.environ.setdefault("ALSA_CONFIG_DIR", str(ALSA))
    try:
        with av.open(name, format=form, options=options) as container:
            resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE, PIECE_MS * SAMPLES_PER_MS)
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray().astype("<i2", copy=False).tobytes()
    except (av.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "it has no audio"
        raise SetupProblem(
            problem=f"The microphone {name} cannot be used: {reason}",
            remedy="Pass another one with --device, as FFmpeg names it"
            + (" (arecord -L lists them)" if form == "alsa" else ""),
        ) from error


def in_thread(source: Iterable[bytes]) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
    """What ``source`` gives, which may block: a thread of its own reads it, a few pieces ahead.

    Whatever the source raises is raised here. A thread that waits for its source when the block
    ends goes on to wait; it keeps no process alive.
    """
    return aclosing(_read_in_thread(source))


async def _read_in_thread(source: Iterable[bytes]) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD)
    left = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for piece in source:
                room.acquire()
                if left.is_set():
                    return
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
        except BaseException as error:
            end = error
        with suppress(RuntimeError):  # the consumer has ended
            loop.call_soon_threadsafe(pieces.put_nowait, end)

    threading.Thread(target=read, name="audio", daemon=True).start()
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            room.release()
            yield piece
    finally:
        left.set()
        room.release()


async def paced(pieces: AsyncIterator[bytes], speed: float) -> AsyncIterator[bytes]:
    """Yield each piece when it would have been spoken, ``speed`` times as fast; 0: at once."""
    began = time.monotonic()
    sent = 0
    async for piece in pieces:
        sent += len(piece)
        if speed:
            due = began + sent / BYTES_PER_MS / 1000 / speed
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield piece
