"""Live streams as `steno bench stream` plays them: clips strung together, at the pace of speech.

Times in seconds, but for a stream's own clock, which counts in ms.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from common.audio.decode import MonoDecoder
from common.domain.values import BYTES_PER_MS
from scripts.bench.corpus import Clip
from scripts.cli.streaming import PIECE_BYTES, PIECE_MS, Message, StreamClient, paced

PAUSE_S = (0.8, 1.5)
"""Between two clips, at random."""


@dataclass(frozen=True, slots=True)
class Programme:
    """What is said on a stream: ``pcm`` is 16 kHz mono s16le."""

    language: str
    pcm: bytes
    reference: str

    @property
    def duration_s(self) -> float:
        return len(self.pcm) / BYTES_PER_MS / 1000


def string_together(
    clips: Sequence[Clip], language: str, seconds: float, *, seed: int = 0
) -> Programme:
    """Clips with pauses before, between and after them, until they last so long.

    Another ``seed`` takes others, in another order.
    """
    draw = random.Random(seed)  # noqa: S311 - nobody has to be unable to guess it
    order = list(clips)
    draw.shuffle(order)
    pcm = _pause(draw)
    said: list[str] = []
    for clip in order:
        if said and len(pcm) / BYTES_PER_MS >= seconds * 1000:
            break
        said.append(clip.reference)
        pcm += b"".join(
            block.astype("<i2", copy=False).tobytes() for block in MonoDecoder(clip.path)
        )
        pcm += _pause(draw)
    return Programme(language, pcm, " ".join(said))


def _pause(draw: random.Random) -> bytes:
    return bytes(round(draw.uniform(*PAUSE_S) * 1000) * BYTES_PER_MS)


@dataclass(frozen=True, slots=True)
class Played:
    """A stream that is over: what the gateway sent, and when each piece of audio was sent to it."""

    messages: tuple[Message, ...]
    sent: tuple[float, ...]
    code: int | None

    def of_type(self, kind: str) -> list[Message]:
        return [message for message in self.messages if message.type == kind]

    def sent_at(self, ms: float) -> float:
        """When the audio before ``ms`` was sent."""
        piece = math.ceil(ms / PIECE_MS) - 1
        return self.sent[min(max(piece, 0), len(self.sent) - 1)]

    @property
    def text(self) -> str:
        return " ".join(message.document["text"] for message in self.of_type("final"))

    @property
    def processing_s(self) -> float:
        """Processing time as the gateway reports it at the end; 0: not reported."""
        return float(self.of_type("status")[-1].document.get("processing_seconds", 0.0))

    def states(self, name: str) -> int:
        """How often it was in a state."""
        return sum(message.document["status"] == name for message in self.of_type("status"))


@dataclass(slots=True)
class Waits:
    """How long words were waited for, each counted from when the audio in question was sent.

    ``firsts``: for something to read, from the beginning of an utterance's first word. ``finals``:
    for the final, from the utterance's end. ``words``: for the final, from its last word's end.
    """

    firsts: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)


def waits_of(*streams: Played) -> Waits:
    """The waits of all streams.

    An utterance that goes on where one was cut off has no beginning that anybody waits at.
    """
    waits = Waits()
    for played in streams:
        _add_waits(waits, played)
    return waits


def _add_waits(waits: Waits, played: Played) -> None:
    finals = [message for message in played.of_type("final") if message.document["text"]]
    shown: dict[float, float] = {}
    for message in sorted((*played.of_type("partial"), *finals), key=lambda it: it.at):
        shown.setdefault(message.document["start"], message.at)
    cut = {
        after.document["start"]
        for before, after in pairwise(finals)
        if after.document["start"] <= before.document["end"]
    }
    for message in finals:
        document = message.document
        waits.finals.append(message.at - played.sent_at(document["end"] * 1000))
        if document["words"]:
            waits.words.append(message.at - played.sent_at(document["words"][-1]["end"] * 1000))
            if document["start"] not in cut:
                began = played.sent_at(document["words"][0]["start"] * 1000)
                waits.firsts.append(shown[document["start"]] - began)


async def play(
    address: str,
    key: str | None,
    programme: Programme,
    *,
    together: asyncio.Barrier | None = None,
    delay_s: float = 0.0,
    on_message: Callable[[Message], object] = lambda _: None,
    **options: Any,
) -> Played:
    """One stream from its first audio to its last final.

    The audio begins once the stream and all that go ``together`` are ready, and after ``delay_s``.
    ``on_message`` is called with each message.

    Raises:
        RequestRejected, GatewayLost: the gateway rejected it, or the connection broke.
    """
    sent: list[float] = []
    messages: list[Message] = []
    async with StreamClient(address, key, **options) as stream:

        async def speak() -> None:
            await stream.ready.wait()
            if together is not None:
                await together.wait()
            await asyncio.sleep(delay_s)
            async for piece in paced(_pieces(programme.pcm), speed=1.0):
                sent.append(time.monotonic())
                if not await stream.send(piece):
                    return
            await stream.finish()

        speaking = asyncio.create_task(speak())
        try:
            async for message in stream.messages():
                messages.append(message)
                on_message(message)
        finally:
            speaking.cancel()
            await asyncio.wait([speaking])
    stream.check()
    return Played(tuple(messages), tuple(sent), stream.code)


async def _pieces(pcm: bytes) -> AsyncIterator[bytes]:
    for piece in pieces_of(pcm):
        yield piece


def pieces_of(pcm: bytes) -> Iterator[bytes]:
    """Audio in the pieces in which it is sent."""
    for start in range(0, len(pcm), PIECE_BYTES):
        yield pcm[start : start + PIECE_BYTES]


async def play_all(
    address: str, key: str | None, programmes: Sequence[Programme], **options: Any
) -> list[Played]:
    """Several streams at once, started within 2 s of each other, out of step."""
    together = asyncio.Barrier(len(programmes))
    step_s = 2.0 / len(programmes)
    return list(
        await asyncio.gather(
            *(
                play(
                    address,
                    key,
                    programme,
                    together=together,
                    delay_s=number * step_s,
                    language=programme.language,
                    **options,
                )
                for number, programme in enumerate(programmes)
            )
        )
    )


def median(values: Sequence[float]) -> float:
    """The median, infinite where there is nothing."""
    return float(np.median(values)) if values else float("inf")


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, infinite where there is nothing."""
    return float(np.percentile(values, 95)) if values else float("inf")
