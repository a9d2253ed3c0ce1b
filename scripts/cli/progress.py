"""What `steno transcribe` shows while it works: a line for each recording, and the text below."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.cli.cli import as_typed
from scripts.cli.client import ENDED, clock

REFRESHES_PER_S = 8
NARROWEST_BAR, WIDEST_BAR = 10, 40
GAP = "  "
LONGEST_NAME = 28
TEXT_LINES = 6
"""How much of the growing text is shown at once."""


@dataclass(slots=True)
class Take:
    """One recording and the state of its job. ``size`` and ``sent`` in bytes."""

    path: Path
    size: int = 0
    sent: int = 0
    began_at: float | None = None
    """When its first upload began, on the monotonic clock."""
    started_at: float | None = None
    """When its last upload began."""
    ended_at: float | None = None
    """When its text had arrived."""
    job_id: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    """The last response of ``GET /status``."""
    updated_at: float = 0.0
    """When that arrived, on the monotonic clock."""
    working_since: float | None = None
    planned_percent: int = 0
    """A job's progress once it is planned, before any chunk is transcribed."""
    lines: list[str] = field(default_factory=list)
    """The text so far."""
    lines_of: int = 0
    """How many chunks ``lines`` covers."""
    lines_due: float = 0.0
    """When it may be fetched again, on the monotonic clock."""
    targets: list[tuple[str, Path]] = field(default_factory=list)
    """The files to write: format and place."""
    result: dict[str, Any] | None = None
    error: str | None = None
    over: bool = False
    """Whether it has ended: the text is written, or there is an ``error``."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def ended(self) -> bool:
        return self.state.get("status") in ENDED

    def fail(self, error: str) -> None:
        self.error = error
        self.over = True

    def update(self, state: dict[str, Any]) -> None:
        self.state = state
        self.updated_at = time.monotonic()
        if self.working_since is None and state["status"] == "PROCESSING":
            self.working_since = self.updated_at
        if not state["chunks_completed"]:
            self.planned_percent = state["progress"]

    @property
    def speed(self) -> float | None:
        """Speed (audio per wall time) since the work began; None while unknown."""
        if self.working_since is None or not self.state.get("duration_seconds"):
            return None
        elapsed = self.updated_at - self.working_since
        percent = self.state["progress"] - self.planned_percent
        transcribed_s = percent / (100 - self.planned_percent) * self.state["duration_seconds"]
        return transcribed_s / elapsed if elapsed > 1 and percent > 0 else None

    @property
    def left_s(self) -> float | None:
        """The gateway's estimate, less the time since it was made."""
        estimate = self.state.get("eta_seconds")
        return None if estimate is None else estimate - (time.monotonic() - self.updated_at)


class Board:
    """Shows takes on a terminal, with messages above them; without a terminal only the messages."""

    def __init__(self, takes: Sequence[Take], console: Console) -> None:
        self._takes = takes
        self._console = console
        self._live: Live | None = None
        self._notice = ""

    @property
    def moves(self) -> bool:
        """Whether anything is shown on a terminal."""
        return self._live is not None

    def __enter__(self) -> Self:
        self._resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._pause()

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(Text(as_typed(message)), soft_wrap=True)

    def notice(self, message: str) -> None:
        """Show a status line until the next one; without a terminal it stays."""
        if message and message != self._notice and self._live is None:
            self.say(message)
        self._notice = message

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the terminal while the block lasts."""
        shown = self._live is not None
        self._pause()
        try:
            yield
        finally:
            if shown:
                self._resume()

    def _resume(self) -> None:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                self,
                console=self._console,
                refresh_per_second=REFRESHES_PER_S,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def _pause(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height, width = options.max_height, options.max_width
        working = [take for take in self._takes if not take.over]
        parts: list[RenderableType] = [_table(working[: max(1, height - TEXT_LINES - 4)], width)]
        if len(self._takes) > 1:
            parts.append(Text(_count(self._takes), style="dim"))
        if self._notice:
            parts.append(Text(self._notice, style="yellow", overflow="ellipsis", no_wrap=True))
        rows = min(len(working), max(1, height - TEXT_LINES - 4)) + len(parts) - 1
        room = min(TEXT_LINES, height - rows - 2)
        texts = next((take.lines for take in working if take.lines), [])
        if texts and room > 0:
            parts.append(Text())
            parts += _last_lines(texts, room, console, width)
        yield Group(*parts)


def _count(takes: Sequence[Take]) -> str:
    failed = sum(take.error is not None for take in takes)
    done = sum(take.over for take in takes) - failed
    return f"{done} of {len(takes)} done" + (f", {failed} failed" if failed else "")


def _table(takes: Sequence[Take], width: int) -> RenderableType:
    """Name, bar and figures; in a narrow terminal the least important figures give way."""
    name_width = min(
        max((cell_len(take.name) for take in takes), default=0), LONGEST_NAME, max(8, width // 3)
    )
    rows = [(take, *_figures(take)) for take in takes]
    room = width - name_width - 2 * len(GAP) - NARROWEST_BAR
    lines = [_that_fit(figures, room) for _, _, figures in rows]
    figures_width = max((cell_len(line) for line in lines), default=0)
    bar_width = min(WIDEST_BAR, width - name_width - 2 * len(GAP) - figures_width)
    grid = Table.grid(padding=(0, len(GAP), 0, 0))
    for (take, share, _), line in zip(rows, lines, strict=True):
        grid.add_row(
            Text(shortened(take.name, name_width), no_wrap=True),
            ProgressBar(
                total=None if share is None else 1.0,
                completed=share or 0.0,
                width=max(1, bar_width),
                pulse=share is None,
            ),
            Text(line, no_wrap=True, overflow="crop"),
        )
    return grid


def _that_fit(figures: Sequence[str], room: int) -> str:
    """The figures in a row; the last ones go where they do not fit, the first one stays."""
    count = len(figures)
    while count > 1 and cell_len(GAP.join(figures[:count])) > room:
        count -= 1
    return GAP.join(figures[:count])


def _figures(take: Take) -> tuple[float | None, list[str]]:
    """The share that is done (None: unknown) and its figures, the most important first."""
    if take.job_id is None:
        if take.started_at is None:
            return 0.0, ["waiting to be sent"]
        share = take.sent / take.size if take.size else 1.0
        if share >= 1:
            return None, ["being checked"]
        rate = take.sent / max(0.1, time.monotonic() - take.started_at)
        return share, [
            f"{share:4.0%}",
            "sending",
            f"{decimal(take.sent)} of {decimal(take.size)}",
            f"{decimal(int(rate))}/s",
        ]
    state = take.state
    if state.get("status") in {None, "PENDING"}:
        before = state.get("queue_position")
        return 0.0, ["waiting", *([f"{before} before it"] if before else [])]
    total = state["chunks_total"]
    if not total:
        return None, ["looking for speech"]
    figures = [f"{state['progress']:3} %"]
    if (left := take.left_s) is not None:
        figures.append(f"{clock(max(1.0, left)):>5} left")
    grows = "" if state["planned"] else "+"
    figures.append(f"{state['chunks_completed']:{len(str(total))}}/{total}{grows} chunks")
    if (speed := take.speed) is not None:
        figures.append(f"{speed:.1f}x")
    return state["progress"] / 100, figures


def shortened(name: str, width: int) -> str:
    """The name in so many columns, its end kept: that is where names differ."""
    if cell_len(name) <= width:
        return name
    tail = name[-(width // 2) :]
    return set_cell_size(name, width - 1 - cell_len(tail)) + "…" + tail


def _last_lines(texts: Sequence[str], room: int, console: Console, width: int) -> list[Text]:
    """The end of the text, wrapped; each segment starts a line, so that nothing jumps about."""
    wrapped: list[Text] = []
    for text in reversed(texts):
        piece = Text(f"  {text}", style="dim").wrap(console, max(8, width - 2))
        for line in piece[1:]:
            line.pad_left(2)
        wrapped[:0] = piece
        if len(wrapped) >= room:
            break
    return wrapped[-room:]
