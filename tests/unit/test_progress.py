"""What is shown on a terminal: it fits, and it is true."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from scripts.cli.progress import TEXT_LINES, Board, Take
from tests.support.scripted_gateway import WORKING, state


def a_take(name: str = "talk.mp3", **changes: Any) -> Take:
    take = Take(Path("somewhere") / name, size=1000)
    take.job_id = "1"
    take.update(state("1", name) | WORKING | changes)
    return take


def sending(name: str = "talk.mp3") -> Take:
    return Take(Path(name), size=1000, sent=250, started_at=time.monotonic() - 1)


def drawn(takes: list[Take], width: int = 80, height: int = 24) -> list[str]:
    """The lines of the board on a terminal of that size."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    return [
        "".join(segment.text for segment in line)
        for line in console.render_lines(Board(takes, console), pad=False)
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize(
    "name", ["a.mp3", "a very long name of a talk that was given by somebody.mp3", "会議の録音.wav"]
)
def test_every_recording_has_one_line_that_fits(width: int, name: str) -> None:
    takes = [sending(name), a_take(name), a_take(name, status="PENDING", queue_position=12)]
    lines = drawn(takes, width)
    assert len(lines) == len(takes) + 1
    assert all(cell_len(line) <= width for line in lines)


def test_a_narrow_terminal_loses_the_least_important_figures_first() -> None:
    assert "50 %   0:02 left  1/2 chunks" in drawn([a_take()], 80)[0]
    assert "50 %   0:02 left" in drawn([a_take()], 44)[0]
    assert "chunks" not in drawn([a_take()], 44)[0]
    assert "50 %" in drawn([a_take()], 26)[0]


def test_the_bars_of_all_recordings_stand_below_each_other() -> None:
    lines = drawn([a_take("a.mp3"), a_take("a longer name.mp3"), sending("b.mp3")])[:3]
    assert len({line.index("━") for line in lines}) == 1


def test_names_that_differ_in_their_ends_stay_different() -> None:
    names = [f"recording of the meeting number {number}.mp3" for number in range(3)]
    assert len({line.split("  ")[0] for line in drawn([a_take(name) for name in names])[:3]}) == 3


def test_a_name_with_markup_in_it_is_shown_as_it_is() -> None:
    assert drawn([a_take("[red]x.mp3")])[0].startswith("[red]x.mp3 ")


@pytest.mark.parametrize("height", [3, 8, 24])
def test_many_recordings_and_a_long_text_never_exceed_the_terminal(height: int) -> None:
    takes = [a_take(f"{number}.mp3") for number in range(100)]
    takes[0].lines = ["some words that are said " * 5] * 50
    assert len(drawn(takes, 60, height)) <= height


def test_the_end_of_the_growing_text_is_below() -> None:
    take = a_take()
    take.lines = [f"Sentence {number}." for number in range(20)]
    assert [line.strip() for line in drawn([take])[2:]] == take.lines[-TEXT_LINES:]


def test_finished_recordings_give_way_to_those_at_work() -> None:
    done, failed = a_take("done.mp3"), a_take("failed.mp3")
    done.over = True
    failed.fail("why")
    lines = drawn([done, failed, a_take("next.mp3")])
    assert "next.mp3" in lines[0]
    assert lines[1] == "1 of 3 done, 1 failed"


def test_the_estimate_counts_down_between_answers() -> None:
    take = a_take(eta_seconds=100.0)
    take.updated_at -= 40
    assert take.left_s == pytest.approx(60, abs=5)
    assert "1:00 left" in drawn([take])[0] or "0:5" in drawn([take])[0]


def test_a_total_that_grows_is_marked() -> None:
    assert "1/2+ chunks" in drawn([a_take(planned=False)])[0]
    assert "1/2 chunks" in drawn([a_take(planned=True)])[0]


def test_nothing_is_promised_while_nothing_is_known() -> None:
    assert "left" not in drawn([a_take(eta_seconds=None)])[0]
    assert a_take(chunks_completed=0).speed is None
    assert a_take(duration_seconds=None).speed is None


def test_the_speed_leaves_out_what_planning_counts_for() -> None:
    take = a_take(progress=5, chunks_completed=0, duration_seconds=100.0)
    assert take.working_since is not None
    take.working_since -= 10
    take.update(state("1", "talk.mp3") | WORKING | {"progress": 24, "duration_seconds": 100.0})
    assert take.speed == pytest.approx(2.0, abs=0.1)


def test_what_is_not_a_terminal_gets_lines_and_no_drawing() -> None:
    file = io.StringIO()
    with Board([a_take()], Console(file=file)) as board:
        assert not board.moves
        board.say("said [red]once[/red]")
        board.notice("trying again")
        board.notice("trying again")
        board.notice("")
    assert file.getvalue() == "said [red]once[/red]\ntrying again\n"


def test_a_terminal_is_left_clean() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=10, color_system=None)
    with Board([a_take()], console) as board:
        assert board.moves
        with board.released():
            assert not board.moves
        assert board.moves
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 2
    assert file.getvalue().endswith("\x1b[2K")


def test_a_job_that_is_done_needs_no_more_questions() -> None:
    assert a_take(status="COMPLETED").ended
    assert not a_take().ended
