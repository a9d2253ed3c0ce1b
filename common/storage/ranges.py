"""A remote file, read in large blocks on demand."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 4 << 20
"""Size of a request: at 1 Gbit/s the round trip is short beside the transfer."""
BLOCKS_HELD = 4
"""Readers read forward, and now and then an index at the file's start or end."""


class RangedFile(io.RawIOBase):
    """Reads ``size`` bytes by ``fetch(start, count)``, block by block, and caches the last few.

    ``head`` is the first block. ``fetch`` returns exactly the bytes that it is asked for; its
    errors are passed on.
    """

    def __init__(self, size: int, head: bytes, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._position = 0
        self._blocks = OrderedDict({0: head})

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a seek to before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` up to the end of the file."""
        wanted = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(wanted) and self._position < self._size:
            index, start = divmod(self._position, BLOCK_BYTES)
            piece = self._block(index)[start : start + len(wanted) - filled]
            wanted[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            start = index * BLOCK_BYTES
            self._blocks[index] = self._fetch(start, min(BLOCK_BYTES, self._size - start))
            if len(self._blocks) > BLOCKS_HELD:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]
