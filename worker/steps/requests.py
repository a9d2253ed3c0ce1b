"""The requests of enhancements: how each is stored as a part of its job, and made again of that.

A part's data is ``[round, index, of, first, last]`` in round 0, with the ids of its first and last
segment, and ``[round, index, of, notes]`` in all later ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from common.db.enhancements import Material, options_of
from common.db.flow import NewPart
from common.db.tables import Job
from common.domain.enhancement import Enhancement, Part, call_of
from common.domain.enhancing.parts import note_data, notes_of
from worker.context import Context


def data_of(part: Part, number: int) -> list[Any]:
    """The stored form of a part of round ``number``."""
    place = [number, part.index, part.of]
    if number == 0:
        return [*place, part.segments[0].id, part.segments[-1].id]
    return [*place, [note_data(note) for note in part.notes]]


def part_of(data: Sequence[Any], material: Material) -> Part:
    """Read the output of `data_of`."""
    number, index, of = data[:3]
    if number:
        return Part(index=index, of=of, notes=notes_of(data[3]))
    first, last = data[3:]
    segments = tuple(it for it in material.segments if first <= it.id <= last)
    return Part(index=index, of=of, segments=segments)


def new_part(
    context: Context, job: Job, work: Enhancement, part: Part, place: int, number: int
) -> NewPart:
    """A part of round ``number``, the job's ``place``-th; equal requests have equal hashes."""
    call = call_of(work, part)
    request = [
        options_of(job.options).server or context.settings.enhanced_ai.base_url,
        job.model,
        [[message.role, message.content] for message in call.messages],
        call.max_tokens,
        None if call.form is None else call.form.schema,
        str(work.task),
    ]
    units = sum(it.end_ms - it.start_ms for it in part.segments)
    content = json.dumps(request, ensure_ascii=True, sort_keys=True).encode()
    return NewPart(place, units, data_of(part, number), hashlib.sha256(content).hexdigest())
