"""Skips the beginning of a recording without decoding it, where that moves no time.

Decoding counts samples, so whoever begins late must count those of the skipped packets. The first
packets are decoded to learn how many samples a packet of this recording has:

- Where the container's unit of time is at most a sample, it is the packet's duration, as long as
  the time stamps agree with the count.
- Elsewhere (Matroska, AVI) durations are rounded: there, all packets must have the same number.

The last packets before the wanted audio are decoded, too: codecs depend on what came before, and
they must decode to as many samples as counted. After a gap, a jump, a packet without a duration, or
anything else out of the ordinary, everything has to be decoded.

One thing shows in no packet: that it does not decode. So this is only for recordings whose complete
decoding had no such packets (`common.audio.decode.DAMAGED`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from typing import Protocol, TypeAlias

import av
from av.audio.stream import AudioStream
from av.stream import Stream

from common.audio.probe import decode_packet, has_usable_rate

HEAD_PACKETS = 48
"""Packets that are decoded to learn their length."""
PRIMING_PACKETS = 16
"""The first of them may be shorter: encoders begin with silence, which decoders leave out."""
SETTLING_MS = 2_000
"""Audio decoded before the first that is wanted. MP3 needs 0.3 s, Opus 80 ms."""
AGREEMENT_MS = 0.5
"""How far exact time stamps may be from the count."""
_Counted: TypeAlias = "tuple[av.Packet[Stream], int]"
"""A packet, and the number of samples that it decodes to."""

SYNC = {"mp3": 0xFF, "aac": 0xFF}
"""The first byte of each packet, by format; a packet with another is a tag, or damaged."""


class Clock(Protocol):
    """Counts the audio of a recording; see `common.audio.decode`."""

    decoded_ms: float
    jumped: bool

    def advance(self, time_s: float | None, samples: int, rate: int) -> int:
        """Count audio that begins at a time stamp; returns the length of the gap before it."""

    def lag_ms(self, time_s: float | None) -> float:
        """How far a time stamp is ahead of the count; 0 where there is none."""


def skip(
    packets: Iterator[av.Packet[Stream]], stream: AudioStream, clock: Clock, until_ms: int
) -> av.AudioFrame | None:
    """Take the packets of ``stream`` before ``until_ms``, and count them on the clock.

    Returns the first frame of the recording. None: everything has to be decoded, from the start.
    """
    try:
        first, head = _head(islice(packets, HEAD_PACKETS), clock)
        if first is None or clock.decoded_ms > until_ms - SETTLING_MS:
            return None
        counter = _counter_of(head[PRIMING_PACKETS:], stream, first.sample_rate)
        if counter is not None and _skip(packets, counter, clock, until_ms):
            return first
    except av.FFmpegError:
        pass
    return None


def _skip(
    packets: Iterator[av.Packet[Stream]], counter: _Counter, clock: Clock, until_ms: int
) -> bool:
    """Count the packets before ``until_ms``; returns whether that is right."""
    lag_ms: float | None = None
    for packet in packets:
        samples, time_s = counter.samples(packet), counter.time_s(packet)
        if samples is None:
            return False
        if counter.is_exact:
            now_ms = clock.lag_ms(time_s)
            lag_ms = now_ms if lag_ms is None else lag_ms
            if abs(now_ms - lag_ms) > AGREEMENT_MS:
                return False
        if clock.advance(time_s, samples, counter.rate) or clock.jumped:
            return False
        left_ms = until_ms - clock.decoded_ms
        if left_ms < SETTLING_MS:
            decoded = _length(decode_packet(packet))
            if left_ms < SETTLING_MS / 2 and decoded != samples:
                return False
        if left_ms <= 0:
            return True
    return False  # the recording ends before


class _Counter:
    """Counts the samples of packets without decoding them.

    ``tick`` is the container's unit of time, in seconds. ``each`` is the number of samples that
    every packet has, None: the one that its duration gives. ``sync`` is the first byte of each.
    """

    def __init__(self, rate: int, tick: Fraction, each: int | None, sync: int | None) -> None:
        self.rate = rate
        self.is_exact = each is None
        self._tick = tick
        self._each = each
        self._sync = sync
        self._lengths: dict[int, int | None] = {}
        """By duration: the arithmetic takes longer than all the rest."""

    def samples(self, packet: av.Packet[Stream]) -> int | None:
        """The number of samples a packet decodes to; None: it cannot be told."""
        if packet.is_corrupt or packet.is_discard or not packet.size:
            return None
        if packet.has_sidedata("skip_samples") or packet.has_sidedata("new_extradata"):
            return None
        if self._sync is not None and memoryview(packet)[0] != self._sync:
            return None
        duration = packet.duration or 0
        if duration not in self._lengths:
            self._lengths[duration] = self._length(duration)
        return self._lengths[duration]

    def time_s(self, packet: av.Packet[Stream]) -> float | None:
        """Its time stamp."""
        pts = packet.pts
        return None if pts is None else pts * self._tick.numerator / self._tick.denominator

    def _length(self, duration: int) -> int | None:
        if duration <= 0:
            return None
        ticks = self._tick * self.rate
        length = duration * ticks
        if self._each is None:
            return int(length) if length.denominator == 1 else None
        return self._each if abs(length - self._each) <= max(Fraction(1), ticks) else None


def _head(
    packets: Iterable[av.Packet[Stream]], clock: Clock
) -> tuple[av.AudioFrame | None, list[_Counted]]:
    """Decode the first packets and count them on the clock.

    Returns the first frame and all packets; no frame if some do not follow another.
    """
    first: av.AudioFrame | None = None
    head: list[_Counted] = []
    for packet in packets:
        frames = decode_packet(packet)
        if frames is None or not all(map(has_usable_rate, frames)):
            return None, head
        for frame in frames:
            gap_ms = clock.advance(frame.time, frame.samples, frame.sample_rate)
            if clock.jumped or (gap_ms and first is not None):
                return None, head
            first = first or frame
            if frame.sample_rate != first.sample_rate:
                return None, head
        head.append((packet, _length(frames)))
    return first, head


def _counter_of(head: Sequence[_Counted], stream: AudioStream, rate: int) -> _Counter | None:
    """What counts the samples of these packets right; None: nothing does."""
    tick = stream.time_base
    if tick is None or not head:
        return None
    lengths = [length for _, length in head]
    sync = SYNC.get(stream.container.format.name)
    rules: list[int | None] = [None] if tick * rate <= 1 else []
    if len(set(lengths)) == 1:
        rules.append(lengths[0])
    for each in rules:
        counter = _Counter(rate, tick, each, sync)
        if [counter.samples(packet) for packet, _ in head] == lengths:
            return counter
    return None


def _length(frames: list[av.AudioFrame] | None) -> int:
    return sum(frame.samples for frame in frames or ())
