"""Splits a file into the parts that FFmpeg reads: one a recording, with headers and tags corrected.

FFmpeg assumes that a file is one recording with correct headers. This splits chained Ogg files
(RFC 3533, section 4) and concatenated WAV or AIFF files. It replaces impossible sizes in the
headers of WAV, AIFF and Wave64 files, and leaves out the tags after an MP3.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO, cast

OGG_MAGIC = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ", b"fishead\0", b"\x80theora")
"""The beginnings of a stream's first page."""
OGG_HEAD = 27
OGG_FIRST, OGG_LAST = 2, 4
"""Flags of a stream's first and last page."""
SCANNED = 1 << 20
"""Bytes read at once in a scan."""

OGG_PAGE = 65_307
"""The size of the largest page, in bytes."""


@dataclass(frozen=True, slots=True)
class _Format:
    """A chunked format: each chunk has a name of four bytes and a size of four."""

    names: tuple[bytes, ...]
    kinds: tuple[bytes, ...]
    order: str
    data: bytes

    def begins(self, head: bytes) -> bool:
        return head[:4] in self.names and head[8:12] in self.kinds


WAVE = _Format((b"RIFF", b"RF64", b"BW64"), (b"WAVE",), "<", b"data")
AIFF = _Format((b"FORM",), (b"AIFF", b"AIFC"), ">", b"SSND")
UNKNOWN = b"\xff\xff\xff\xff"
"""The size that means "until the end" to FFmpeg."""
PLACEHOLDERS = (
    range(0x7F00_0000, 0x8001_0000),  # SoX 0x7F000008 and 0x7FFFF000, arecord 0x80000000
    range(0xFFFF_0000, 1 << 32),  # FFmpeg
    range(1 << 62, 1 << 64),
)
"""Sizes that mean "unknown" in a file with fewer bytes."""
ROUND = 100_000_000
"""So do multiples of this number, which no recording has."""
RIFF_PADDING = 8
"""Bytes that some writers count but do not write: their own header, the last chunk's padding."""
LEFTOVER = 4_096
"""Bytes after the audio that are not worth decoding."""

APE = b"APETAGEX"

MOST_PARTS = 10_000
"""The last of so many parts takes all the rest: each takes a while to open."""

WHOLE, CUT, UNDERSTATED = "whole", "cut", "understated"
"""How a header's size compares with the file: the same, more, or less."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes of a file from ``start`` to before ``end``, which are one recording.

    ``patches`` are bytes to read in place of others, by their offset in the file. ``size_is``
    compares the header's size with the file, None where the header has none.
    """

    start: int
    end: int
    patches: Mapping[int, bytes] = field(default_factory=dict)
    size_is: str | None = None

    def of(self, file: BinaryIO) -> BinaryIO:
        """The part as a seekable file."""
        return cast("BinaryIO", _View(file, self))


class _View(io.RawIOBase):
    def __init__(self, file: BinaryIO, part: FilePart) -> None:
        self._file = file
        self._part = part
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = self._part.end - self._part.start
        self._at = max(0, offset + {os.SEEK_CUR: self._at, os.SEEK_END: size}.get(whence, 0))
        return self._at

    def readinto(self, buffer: Any) -> int:
        start = self._part.start + self._at
        wanted = max(0, min(len(buffer), self._part.end - start))
        if not wanted:  # an offset far beyond the end cannot even be sought
            return 0
        self._file.seek(start)
        found = bytearray(self._file.read(wanted))
        for place, patch in self._part.patches.items():
            for at, byte in enumerate(patch, place - start):
                if 0 <= at < len(found):
                    found[at] = byte
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def file_parts(file: BinaryIO) -> list[FilePart]:
    """The recordings in a file, in order; at least one. Reads all of an Ogg file."""
    size = file.seek(0, os.SEEK_END)
    head = _read(file, 0, 12)
    if head[:4] == b"OggS":
        joined = _ogg_links(file, size)
    elif form := next((form for form in (WAVE, AIFF) if form.begins(head)), None):
        joined = _joined(file, form, size)
    elif head[:4] == b"riff":
        return [_wave64(file, size)]
    else:
        return [_without_tags(file, head, size)]
    found = list(islice(joined, MOST_PARTS))
    found[-1] = replace(found[-1], end=size)
    return found


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _ogg_links(file: BinaryIO, size: int) -> Iterator[FilePart]:
    start, begun = 0, False
    for at, flags, body in _ogg_pages(file):
        if not (flags & OGG_FIRST and body.startswith(OGG_MAGIC)):
            begun = True
        elif begun:
            yield FilePart(start, at)
            start, begun = at, False
    yield FilePart(start, size)


def _ogg_pages(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Offset, flags and first bytes of each page (RFC 3533, section 6); damage is skipped."""
    at = origin = 0
    block = _read(file, at, SCANNED)
    while True:
        head = block.find(b"OggS", at - origin)
        needed = OGG_HEAD + 255 + 8
        if (head < 0 or head + needed > len(block)) and len(block) == SCANNED:
            at = origin = origin + (len(block) - 3 if head < 0 else head)
            block = _read(file, at, SCANNED)
            continue
        if head < 0 or head + OGG_HEAD > len(block):
            return
        body = head + OGG_HEAD + block[head + OGG_HEAD - 1]
        yield origin + head, block[head + 5], block[body : body + 8]
        at = origin + body + sum(block[head + OGG_HEAD : body])
        if at - origin > len(block):
            origin = at
            block = _read(file, at, SCANNED)


def has_last_ogg_page(file: BinaryIO) -> bool:
    """Whether the last page is whole and marked as the last of its stream."""
    size = file.seek(0, os.SEEK_END)
    tail = _read(file, max(0, size - 2 * OGG_PAGE), 2 * OGG_PAGE)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + OGG_HEAD:
        return False
    count = tail[start + OGG_HEAD - 1]
    lengths = tail[start + OGG_HEAD : start + OGG_HEAD + count]
    whole = len(tail) >= start + OGG_HEAD + count + sum(lengths)
    return whole and len(lengths) == count and bool(tail[start + 5] & OGG_LAST)


def _joined(file: BinaryIO, form: _Format, size: int) -> Iterator[FilePart]:
    at = 0
    while at < size:
        part = _chunked(file, form, at, size)
        yield part
        at = part.end


def _chunked(file: BinaryIO, form: _Format, start: int, size: int) -> FilePart:
    """The WAV or AIFF file from ``start`` to the next one."""
    found = _data(file, form, start, size)
    if found is None:
        return FilePart(start, size)
    at, claimed = found
    available = size - at
    to_the_end = {start: (b"RIFF" if form is WAVE else b"FORM") + UNKNOWN, at - 4: UNKNOWN}
    if claimed > available:
        if is_placeholder(claimed):
            return FilePart(start, size, to_the_end, WHOLE)
        return FilePart(start, size, size_is=CUT if claimed - available > RIFF_PADDING else WHOLE)
    after = at + claimed
    end = _end_of_chunks(file, form, after + claimed % 2, size)
    if end is None and claimed % 2:
        end = _end_of_chunks(file, form, after, size)
    if end is not None:
        return FilePart(start, end, size_is=WHOLE)
    if claimed and (size - after <= LEFTOVER or _is_blank(file, after)):
        return FilePart(start, size, size_is=WHOLE)
    return FilePart(start, size, to_the_end, UNDERSTATED if claimed else WHOLE)


def is_placeholder(size: int) -> bool:
    """Whether a header's size, larger than the file, means "unknown"."""
    return size % ROUND == 0 or any(size in sizes for sizes in PLACEHOLDERS)


def _data(file: BinaryIO, form: _Format, start: int, size: int) -> tuple[int, int] | None:
    """The offset of the audio, and its size by the header."""
    at, wide = start + 12, None
    while at + 8 <= size:
        name, length = _chunk(file, form, at)
        at += 8
        if name == form.data:
            return at, wide if wide is not None and length == 0xFFFF_FFFF else length
        if name == b"ds64":  # EBU Tech 3306
            wide = int.from_bytes(_read(file, at + 8, 8), "little")
        at += length + length % 2
    return None


def _end_of_chunks(file: BinaryIO, form: _Format, at: int, size: int) -> int | None:
    """Where the chunks from ``at`` end, or another file begins; None where there are none."""
    while at + 8 <= size:
        if form.begins(_read(file, at, 12)):
            return at
        name, length = _chunk(file, form, at)
        if not (name.isascii() and name.decode("ascii").isprintable()):
            return None
        at += 8 + length + length % 2
        if at > size + RIFF_PADDING:
            return None
    return size


def _chunk(file: BinaryIO, form: _Format, at: int) -> tuple[bytes, int]:
    name, length = struct.unpack(f"{form.order}4sI", _read(file, at, 8))
    return name, length


def _wave64(file: BinaryIO, size: int) -> FilePart:
    """A Sony Wave64 file: chunks have names of 16 bytes, and sizes of 8 that count both."""
    at = 40
    while at + 24 <= size:
        head = _read(file, at, 24)
        length = int.from_bytes(head[16:], "little")
        if head[:4] != b"data":
            at += max(24, length + -length % 8)
            continue
        if 24 < length <= size - at:
            break
        if length != 24 and not is_placeholder(length):
            return FilePart(0, size, size_is=CUT)
        whole = {16: size.to_bytes(8, "little"), at + 16: (size - at).to_bytes(8, "little")}
        return FilePart(0, size, whole, WHOLE)
    return FilePart(0, size)


def _is_blank(file: BinaryIO, at: int) -> bool:
    """Whether all bytes from ``at`` are zero, as in preallocated files."""
    file.seek(at)
    while block := file.read(SCANNED):
        if block.strip(b"\0"):
            return False
    return True


def _without_tags(file: BinaryIO, head: bytes, size: int) -> FilePart:
    """An MP3 or its like without the tags around it; other files whole."""
    is_stream = len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0
    if not is_stream and not head.startswith((b"ID3", APE)):
        return FilePart(0, size)
    start = 0
    if head.startswith(APE):
        start = 32 + int.from_bytes(_read(file, 12, 4), "little")
    end = size
    while tag := _tag_size(_read(file, max(start, end - 227), min(227, end - start))):
        if tag > end - start:
            break
        end -= tag
    return FilePart(min(start, end), end)


def _tag_size(tail: bytes) -> int:
    """The size of the tag that ends with ``tail``; 0 without one."""
    if tail[-128:-125] == b"TAG":
        return 128 + (227 if tail[-227:-223] == b"TAG+" else 0)
    footer = tail[-32:]
    if footer.startswith(APE):
        size, _, flags = struct.unpack("<III", footer[12:24])
        return int(size) + (32 if flags >> 31 else 0)
    if tail.endswith(b"LYRICS200") and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    return 0


def tag_end(packet: bytes) -> int:
    """The end of the tag that begins in an MP3 packet, from the packet's start; 0 without one."""
    if (at := packet.find(b"ID3")) >= 0:
        return at + id3_size(packet[at : at + 10])
    if (at := packet.find(APE)) >= 0:
        return at + 32 + int.from_bytes(packet[at + 12 : at + 16], "little")
    return 0


def id3_size(head: bytes) -> int:
    """The size of the ID3v2 tag that begins with ``head`` (id3.org, 3.1); 0 without one."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def xing_size(file: BinaryIO) -> int | None:
    """The size of an MP3 from its first frame, by its header of Xing, LAME or Fraunhofer."""
    start = id3_size(_read(file, 0, 10))
    head = _read(file, start, 2_048)
    for mark, at in ((b"Xing", 12), (b"Info", 12), (b"VBRI", 10)):
        place = head.find(mark)
        if place < 0:
            continue
        if mark != b"VBRI" and head[place + 7] & 3 != 3:
            return None
        return start + int.from_bytes(head[place + at : place + at + 4], "big")
    return None
