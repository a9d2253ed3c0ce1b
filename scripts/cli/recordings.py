"""Find recordings by files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from scripts.cli.client import plural

ENDINGS = tuple(
    f".{ending}"
    for line in (
        "3g2 3gp aac ac3 aif aifc aiff amr ape au avi caf dts flac flv m2ts m4a m4b m4v mka mkv",
        "mov mp2 mp3 mp4 mpeg mpg mts mxf oga ogg ogv opus ra rm sph spx tta voc w64 wav weba",
        "webm wma wmv wv",
    )
    for ending in line.split()
)
"""Extensions of recordings in a folder. A file that is named itself may have any."""

SHOWN = 3
"""How many of the skipped files are listed."""


def find_recordings(
    names: Sequence[Path], *, recursive: bool = False
) -> tuple[list[Path], list[str]]:
    """The recordings that ``names`` mean, each once, and a line about each folder or pattern.

    A folder stands for its recordings in the order of their names, those of folders inside it only
    if ``recursive``. A name of no file, with ``*``, ``?`` or ``[...]``, is a pattern; ``**`` goes
    through folders.

    Raises:
        click.UsageError: a folder or a pattern has no recordings.
    """
    found: list[Path] = []
    notes: list[str] = []
    for name in names:
        if name.is_dir():
            inside = name.rglob("*") if recursive else name.glob("*")
            some, note = _recordings_among(name, inside, recursive=recursive)
        elif not name.exists() and glob.has_magic(str(name)):
            inside = Path(name.anchor).glob(str(name.relative_to(name.anchor)))
            some, note = _recordings_among(name, inside, recursive=True)
        else:
            some, note = [name], ""
        found += some
        notes += [note] * bool(note)
    return list(dict.fromkeys(found)), notes


def _recordings_among(
    name: Path, inside: Iterable[Path], *, recursive: bool
) -> tuple[list[Path], str]:
    visible = sorted(path for path in inside if not path.name.startswith("."))
    files = [path for path in visible if path.is_file()]
    recordings = [path for path in files if path.suffix.lower() in ENDINGS]
    others = [path.name for path in files if path.suffix.lower() not in ENDINGS]
    folders = len(visible) - len(files)
    skipped = []
    if others:
        more = ", ..." if len(others) > SHOWN else ""
        skipped.append(f"{plural(len(others), 'other file')} ({', '.join(others[:SHOWN])}{more})")
    if folders and not recursive:
        skipped.append(f"{plural(folders, 'folder')} (see --recursive)")
    left_out = f"; skipped: {' and '.join(skipped)}" if skipped else ""
    if not recordings:
        raise click.UsageError(f"{name} has no recordings{left_out}")
    return recordings, f"{name}: {plural(len(recordings), 'recording')}{left_out}"
