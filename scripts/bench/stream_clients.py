"""Misbehaving clients: how a gateway responds, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.http.protocol import UNREAD_MS
from common.errors import SetupProblem
from scripts.bench.stream_play import Programme, pieces_of
from scripts.cli.client import plural, shown
from scripts.cli.streaming import DONE, StreamClient, address_of, paced

IDLE_S = 4.0
"""STREAM_IDLE of the gateway under test; its default is a minute."""
PATIENCE_S = 120.0
FAST, TOO_FAST = 20.0, 4429
MISTAKES = 20
RECEIVE_BYTES = 4096
"""Receive buffer of the client that reads nothing."""
CUT_OFF_S = 2 * UNREAD_MS / 1000
"""How long to wait for its end."""


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """The gateway's address, the key to send, and the stream's options.

    ``pids`` are the gateway's processes.
    """

    address: str
    key: str | None
    options: dict[str, Any]
    pids: tuple[int, ...]

    def client(self, *, keep_alive: bool = False, **options: Any) -> StreamClient:
        return StreamClient(
            self.address, self.key, keep_alive=keep_alive, **(self.options | options)
        )

    def serves(self, port: int) -> bool:
        """Whether the gateway has a connection with a client at this port."""
        found = (each for pid in self.pids for each in psutil.Process(pid).net_connections("tcp"))
        return any(each.raddr and each.raddr.port == port for each in found)

    async def connect(self, sock: socket.socket | None = None) -> ClientConnection:
        """A connection on which nothing was sent yet."""
        return await connect(
            address_of(self.address),
            additional_headers=shown(self.key),
            compression=None,
            proxy=None,
            ping_interval=None,
            sock=sock,
        )


@dataclass(frozen=True, slots=True)
class Encounter:
    """What a client received, and whether that was expected."""

    what: str
    answer: str
    as_promised: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.answer}{'' if self.as_promised else ' - UNEXPECTED'}"


@dataclass(frozen=True, slots=True)
class Met:
    """The rest of a stream: its errors, how many finals had words, and how it was closed."""

    errors: tuple[str, ...]
    finals: int
    code: int | None

    @classmethod
    async def of(cls, stream: StreamClient) -> Self:
        errors, finals = [], 0
        async for message in stream.messages():
            if message.type == "error":
                errors.append(_error(message.document))
            elif message.type == "final":
                finals += bool(message.document["text"])
        return cls(tuple(errors), finals, stream.code)

    def __str__(self) -> str:
        finals_seen = [plural(self.finals, "final")] if self.finals else []
        return ", ".join((*finals_seen, *dict.fromkeys(self.errors), f"closed with {self.code}"))


def _error(document: Mapping[str, Any]) -> str:
    return f"{document['code']} ({document['detail']})"


async def bad_clients(
    place: StreamTarget, speech: Programme, *, pause_s: float, fast_s: float, unread: bool
) -> list[Encounter]:
    """Run all misbehaving clients, one after the other.

    ``pause_s`` is how long one is silent that gives signs of life; ``fast_s`` how long one goes on
    to send much too fast; ``unread``: whether one comes that reads nothing.
    """
    second = speech.pcm[:64_000]
    cut_off = [await _read_nothing(place)] if unread else []
    clients = (
        _refused_text(place, "garbage as the first message", "}{ no JSON"),
        _refused_text(place, "audio as text", b64encode(second).decode()),
        _garbage_later(place, speech),
        _half_samples(place, speech),
        _unknown_option(place),
        _silence(place, second),
        _pause(place, speech, pause_s),
        _too_fast(place, speech, fast_s),
        _vanish(place, speech),
    )
    return [await client for client in (*clients, *cut_off)]


async def _refused_text(place: StreamTarget, what: str, text: str) -> Encounter:
    connection = await place.connect()
    await connection.send(text)
    errors = []
    try:
        while True:
            document = json.loads(await connection.recv(decode=True))
            if document["type"] == "error":
                errors.append(_error(document))
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else None
    return Encounter(what, str(Met(tuple(errors), 0, code)), code == 4400)


async def _garbage_later(place: StreamTarget, speech: Programme) -> Encounter:
    async with place.client() as stream:
        await _speak(stream, speech)
        for _ in range(MISTAKES):
            await stream.send("no JSON")
        met = await Met.of(stream)
    what = f"{MISTAKES} times garbage between audio"
    return Encounter(what, str(met), met.code == 4400 and 1 < len(met.errors) < MISTAKES)


async def _half_samples(place: StreamTarget, speech: Programme) -> Encounter:
    async with place.client() as stream:
        for start in range(0, len(speech.pcm) - 1, 3201):
            await stream.send(speech.pcm[start : min(start + 3201, len(speech.pcm) - 1)])
        await stream.finish()
        met = await Met.of(stream)
    return Encounter("samples cut in half", str(met), met.code == DONE and met.finals > 0)


async def _unknown_option(place: StreamTarget) -> Encounter:
    async with place.client(colour="blue") as stream:
        met = await Met.of(stream)
    named = any("colour" in error for error in met.errors)
    return Encounter("an unknown option", str(met), met.code == 4422 and named)


async def _silence(place: StreamTarget, audio: bytes) -> Encounter:
    async with place.client() as stream:
        await stream.send(audio)
        met = await Met.of(stream)
    return Encounter(f"no message for {IDLE_S:g} s", str(met), met.code == 4408)


async def _pause(place: StreamTarget, speech: Programme, pause_s: float) -> Encounter:
    async with place.client() as stream:
        await _speak(stream, speech)
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            await asyncio.sleep(IDLE_S / 4)
            await stream.say(type="KeepAlive")
        await _speak(stream, speech)
        await stream.finish()
        met = await Met.of(stream)
    what = f"{pause_s:g} s without audio, but keep-alives"
    return Encounter(what, str(met), met.code == DONE and met.finals > 1)


async def _too_fast(place: StreamTarget, speech: Programme, fast_s: float) -> Encounter:
    async def for_long() -> AsyncIterator[bytes]:
        until = time.monotonic() + fast_s
        for piece in cycle(pieces_of(speech.pcm)):
            if time.monotonic() > until:
                return
            yield piece

    async def speak() -> None:
        async for piece in paced(for_long(), FAST):
            if not await stream.send(piece):
                return
        await stream.finish()

    async with place.client() as stream:
        speaking = asyncio.create_task(speak())
        met = await Met.of(stream)
        await speaking
    what = f"{FAST:g} times real time for {fast_s:g} s"
    # A slow host closes it before the first final.
    return Encounter(what, str(met), met.code == TOO_FAST or (met.code == DONE and met.finals > 0))


async def _vanish(place: StreamTarget, speech: Programme) -> Encounter:
    async with place.client() as stream:
        first = await stream.receive()
        session_id = first.document["session_id"] if first else ""
        await _speak(stream, speech)
        while (message := await stream.receive()) and not message.document.get("text"):
            pass  # a slow host has not recognized anything yet
        stream.vanish()
    kept = await _when_over(place, session_id)
    answer = f"{kept['word_count']} words kept, outcome {kept['outcome']}"
    return Encounter("a client that vanishes", answer, kept["word_count"] > 0)


async def _read_nothing(place: StreamTarget) -> asyncio.Task[Encounter]:
    """It requests ever more responses and reads none of them.

    Returns, when its stream has ended, and others can have one:
        What waits until it is cut off.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    parts = urlsplit(place.address)
    sock.connect((parts.hostname, parts.port))
    port = sock.getsockname()[1]
    connection = await place.connect(sock)
    await connection.send(json.dumps(place.options))
    session_id = json.loads(await connection.recv())["session_id"]
    connection.transport.pause_reading()
    asking = asyncio.create_task(_ask_on_and_on(connection))
    outcome = (await _when_over(place, session_id))["outcome"]

    async def wait() -> Encounter:
        try:
            async with asyncio.timeout(CUT_OFF_S):
                while place.serves(port):
                    await asyncio.sleep(1)
            answer = "and cut off"
        except TimeoutError:
            answer = "but its socket stays"
        asking.cancel()
        connection.transport.abort()
        await asyncio.wait([asking])
        # A slow host may not fill the buffers before the system gives the connection up.
        right = outcome in ("slow_reader", "client_left") and answer == "and cut off"
        return Encounter("a client that reads nothing", f"outcome {outcome}, {answer}", right)

    return asyncio.create_task(wait())


async def _ask_on_and_on(connection: ClientConnection) -> None:
    with suppress(ConnectionClosed, OSError):
        for language in cycle(["en", "vi"]):
            await connection.send(json.dumps({"language": language}))


async def _speak(stream: StreamClient, speech: Programme) -> None:
    for piece in pieces_of(speech.pcm):
        await stream.send(piece)


async def _when_over(place: StreamTarget, session_id: str) -> dict[str, Any]:
    """The stored session of a stream once it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    async with httpx.AsyncClient(
        base_url=place.address, headers=shown(place.key), trust_env=False
    ) as http:
        while True:
            kept: dict[str, Any] = (await http.get(f"/api/v1/streams/{session_id}")).json()
            if kept["completed_at"] is not None:
                return kept
            if time.monotonic() > deadline:
                raise SetupProblem(problem="A stream does not end", remedy="See the gateway's log")
            await asyncio.sleep(0.2)


async def short_sessions(places: Sequence[StreamTarget], speech: Programme, count: int) -> int:
    """So many streams of a second or two, one after the other at each place.

    Returns:
        How many did not end as asked.
    """

    async def one(place: StreamTarget) -> bool:
        async with place.client() as stream:
            await _speak(stream, speech)
            await stream.finish()
            return (await Met.of(stream)).code == DONE

    async def at(place: StreamTarget, share: int) -> int:
        return [await one(place) for _ in range(share)].count(False)

    shares = [len(range(number, count, len(places))) for number in range(len(places))]
    return sum(await asyncio.gather(*map(at, places, shares)))
