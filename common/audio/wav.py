"""WAV headers, and the detection of file headers before bare samples."""

from __future__ import annotations

import struct

SAMPLE_BYTES = 2
RIFF_LIMIT = 0xFFFF_FFFF
"""The largest size in the 32 bits of a RIFF header."""


def wav_header(rate: int, channels: int, frames: int) -> bytes:
    """The header of a WAV file with 16-bit PCM; RF64 (EBU Tech 3306) where RIFF is too small."""
    width = channels * SAMPLE_BYTES
    size = frames * width
    layout = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * width, width, SAMPLE_BYTES * 8
    )
    head = 4 + len(layout) + 8
    if head + size <= RIFF_LIMIT:
        riff = struct.pack("<4sI4s", b"RIFF", head + size, b"WAVE")
        return riff + layout + struct.pack("<4sI", b"data", size)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, head + 36 + size, size, frames, 0)
    riff = struct.pack("<4sI4s", b"RF64", RIFF_LIMIT, b"WAVE")
    return riff + sizes + layout + struct.pack("<4sI", b"data", RIFF_LIMIT)


_MAGIC = (
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"ID3", "MP3"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (0, b"#!AMR", "AMR"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b"FLV\x01", "FLV"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF"),
    (4, b"ftyp", "MP4"),
)


def container_of(beginning: bytes) -> str | None:
    """The format of the file that begins so; None where it may be bare samples."""
    for offset, magic, kind in _MAGIC:
        if beginning[offset:].startswith(magic):
            return kind
    return None
