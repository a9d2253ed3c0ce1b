"""Clients that do what they should not: what a gateway answers, and what they leave behind."""

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
from scripts.bench_stream_play import Programme, pieces_of
from scripts.client import plural, shown
from scripts.streaming import DONE, StreamClient, address_of, paced

IDLE_S = 4.0
"""STREAM_IDLE of the gateway that they meet: the minute that it is else would be long to wait."""
PATIENCE_S = 120.0
FAST, TOO_FAST = 20.0, 4429
MISTAKES = 20
RECEIVE_BYTES = 4096
"""What the system may keep for a client that reads nothing."""
CUT_OFF_S = 2 * UNREAD_MS / 1000
"""How long its end is waited for."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the clients go: the gateway's address, the key to show, and what to ask for.

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
        """A connection on which nothing is said yet."""
        return await connect(
            address_of(self.address),
            additional_headers=shown(self.key),
            compression=None,
            proxy=None,
            ping_interval=None,
            sock=sock,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client met: how it was told, and whether that is what was promised."""

    what: str
    told: str
    as_promised: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.told}{'' if self.as_promised else ' - NOT AS PROMISED'}"


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
        heard = [plural(self.finals, "final")] if self.finals else []
        return ", ".join((*heard, *dict.fromkeys(self.errors), f"closed with {self.code}"))


def _error(document: Mapping[str, Any]) -> str:
    return f"{document['code']} ({document['detail']})"


async def bad_clients(
    place: Place, speech: Programme, *, pause_s: float, fast_s: float
) -> list[Answer]:
    """Have each of them come, one after the other.

    ``pause_s`` is how long one is silent that gives signs of life; ``fast_s`` how long one goes on
    to send much too fast.
    """
    second = speech.pcm[:64_000]
    cut_off = await _read_nothing(place)
    clients = (
        _garbage_first(place),
        _sound_as_text(place, second),
        _garbage_later(place, speech),
        _half_samples(place, speech),
        _unknown_option(place),
        _silence(place, second),
        _pause(place, speech, pause_s),
        _too_fast(place, speech, fast_s),
        _vanish(place, speech),
    )
    return [*[await client for client in clients], await cut_off]


async def _garbage_first(place: Place) -> Answer:
    return await _refused_text(place, "garbage as the first message", "}{ no JSON")


async def _sound_as_text(place: Place, sound: bytes) -> Answer:
    return await _refused_text(place, "sound as text", b64encode(sound).decode())


async def _refused_text(place: Place, what: str, text: str) -> Answer:
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
    return Answer(what, str(Met(tuple(errors), 0, code)), code == 4400)


async def _garbage_later(place: Place, speech: Programme) -> Answer:
    async with place.client() as stream:
        await _speak(stream, speech)
        for _ in range(MISTAKES):
            await stream.send("no JSON")
        met = await Met.of(stream)
    what = f"{MISTAKES} times garbage between sound"
    return Answer(what, str(met), met.code == 4400 and 1 < len(met.errors) < MISTAKES)


async def _half_samples(place: Place, speech: Programme) -> Answer:
    async with place.client() as stream:
        for start in range(0, len(speech.pcm) - 1, 3201):
            await stream.send(speech.pcm[start : min(start + 3201, len(speech.pcm) - 1)])
        await stream.finish()
        met = await Met.of(stream)
    return Answer("samples cut in half", str(met), met.code == DONE and met.finals > 0)


async def _unknown_option(place: Place) -> Answer:
    async with place.client(colour="blue") as stream:
        met = await Met.of(stream)
    named = any("colour" in error for error in met.errors)
    return Answer("an unknown option", str(met), met.code == 4422 and named)


async def _silence(place: Place, sound: bytes) -> Answer:
    async with place.client() as stream:
        await stream.send(sound)
        met = await Met.of(stream)
    return Answer(f"no sign of life for {IDLE_S:g} s", str(met), met.code == 4408)


async def _pause(place: Place, speech: Programme, pause_s: float) -> Answer:
    async with place.client() as stream:
        await _speak(stream, speech)
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            await asyncio.sleep(IDLE_S / 4)
            await stream.say(type="KeepAlive")
        await _speak(stream, speech)
        await stream.finish()
        met = await Met.of(stream)
    what = f"{pause_s:g} s without sound, but signs of life"
    return Answer(what, str(met), met.code == DONE and met.finals > 1)


async def _too_fast(place: Place, speech: Programme, fast_s: float) -> Answer:
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
    # A slow host closes it before anything is final.
    return Answer(what, str(met), met.code == TOO_FAST or (met.code == DONE and met.finals > 0))


async def _vanish(place: Place, speech: Programme) -> Answer:
    async with place.client() as stream:
        first = await stream.receive()
        session_id = first.document["session_id"] if first else ""
        await _speak(stream, speech)
        stream.vanish()
    kept = await _when_over(place, session_id)
    told = f"{kept['word_count']} words kept, outcome {kept['outcome']}"
    return Answer("a client that vanishes", told, kept["word_count"] > 0)


async def _read_nothing(place: Place) -> asyncio.Task[Answer]:
    """It asks for more and more answers, and takes none of them.

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

    async def wait() -> Answer:
        try:
            async with asyncio.timeout(CUT_OFF_S):
                while place.serves(port):
                    await asyncio.sleep(1)
            told = "and cut off"
        except TimeoutError:
            told = "but its socket stays"
        asking.cancel()
        connection.transport.abort()
        await asyncio.wait([asking])
        # A slow host may not fill the buffers before the system gives the connection up.
        right = outcome in ("slow_reader", "client_left") and told == "and cut off"
        return Answer("a client that reads nothing", f"outcome {outcome}, {told}", right)

    return asyncio.create_task(wait())


async def _ask_on_and_on(connection: ClientConnection) -> None:
    with suppress(ConnectionClosed, OSError):
        for language in cycle(["en", "vi"]):
            await connection.send(json.dumps({"language": language}))


async def _speak(stream: StreamClient, speech: Programme) -> None:
    for piece in pieces_of(speech.pcm):
        await stream.send(piece)


async def _when_over(place: Place, session_id: str) -> dict[str, Any]:
    """What is kept of a stream once it has ended."""
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


async def short_sessions(places: Sequence[Place], speech: Programme, count: int) -> int:
    """So many streams of a second or two, one after the other at each place.

    Returns:
        How many did not end as asked.
    """

    async def one(place: Place) -> bool:
        async with place.client() as stream:
            await _speak(stream, speech)
            await stream.finish()
            return (await Met.of(stream)).code == DONE

    async def at(place: Place, share: int) -> int:
        return [await one(place) for _ in range(share)].count(False)

    shares = [len(range(number, count, len(places))) for number in range(len(places))]
    return sum(await asyncio.gather(*map(at, places, shares)))
