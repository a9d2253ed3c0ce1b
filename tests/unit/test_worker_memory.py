"""An engine process counts as grown by what it holds, not by what it has freed."""

from __future__ import annotations

import numpy as np

from common.asr.faster_whisper import _keep_large_blocks
from scripts.bench.direct import apart
from worker.memory import Memory

BLOCKS = 2_000
BLOCK = 50_000
LIMIT = 50_000_000


def growth() -> tuple[bool, bool, bool]:
    """Whether it has grown with 100 MB in use; with all but 4 MB freed; after a model was loaded.

    The blocks in use lie between the freed ones, as after loading.
    """
    _keep_large_blocks()
    memory = Memory()
    blocks = [np.ones(BLOCK, np.uint8) for _ in range(BLOCKS)]
    in_use = memory.has_grown(LIMIT)
    blocks = blocks[::25]
    freed = memory.has_grown(LIMIT)
    more = [np.ones(BLOCK, np.uint8) for _ in range(BLOCKS)]
    memory.note_loaded()
    return in_use, freed, memory.has_grown(LIMIT) and bool(more)


def test_only_memory_in_use_counts_as_growth_since_a_model_was_loaded() -> None:
    # In a process of its own: the settings of the allocator stay.
    assert apart(growth) == (True, False, False)
