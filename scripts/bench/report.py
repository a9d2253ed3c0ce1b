"""The figures of `steno bench`, as tables and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

VERSIONS = (
    "faster-whisper",
    "ctranslate2",
    "pywhispercpp",
    "sherpa-onnx",
    "onnxruntime",
    "av",
    "rq",
    "sqlalchemy",
    "jiwer",
    "whisper-normalizer",
)


@dataclass(frozen=True, slots=True)
class Target:
    """The target: ``limit`` in the figure's unit, met by values at or beyond it."""

    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, once a round; its value is the median."""

    name: str
    values: tuple[float, ...]
    unit: str = ""
    digits: int = 1
    target: Target | None = None

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.target.met_by(self.value)

    @property
    def spread(self) -> str:
        """The range, if there was more than one round."""
        if len(self.values) < 2:
            return ""
        return f"{min(self.values):.{self.digits}f}..{max(self.values):.{self.digits}f}"

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f}{self.unit and f' {self.unit}'}"

    def document(self) -> dict[str, Any]:
        """As JSON; ``value`` is the median of ``values``, ``target`` as it is printed."""
        return {
            "name": self.name,
            "value": self.value,
            "values": list(self.values),
            "unit": self.unit,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
        }


def counted(name: str, count: float, target: Target | None = None) -> Figure:
    """A figure that is a number of things."""
    return Figure(name, (float(count),), digits=0, target=target)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a comparison."""

    heading: str
    unit: str = ""
    digits: int = 2


@dataclass(slots=True)
class Comparison:
    """A table of ways: a row per way, a column per figure."""

    columns: tuple[Column, ...]
    rows: dict[str, tuple[Figure, ...]] = field(default_factory=dict)

    def add(self, row: str, *values: float | tuple[float, ...]) -> None:
        """Add a row: of each column its value, or one value a round."""
        self.rows[row] = tuple(
            Figure(
                f"{row}: {column.heading}",
                value if isinstance(value, tuple) else (value,),
                column.unit,
                column.digits,
            )
            for column, value in zip(self.columns, values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class BenchPart:
    """The result of one part of the benchmark.

    ``remarks`` are sentences for people; ``details`` go to the JSON alone.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]
    comparison: Comparison | None = None
    remarks: tuple[str, ...] = ()
    details: tuple[dict[str, Any], ...] = ()

    def document(self) -> dict[str, Any]:
        compared = self.comparison.rows if self.comparison else {}
        return {
            "title": self.title,
            "figures": [figure.document() for figure in self.figures],
            "comparison": {
                row: [figure.document() for figure in figures] for row, figures in compared.items()
            },
            "remarks": list(self.remarks),
            "details": list(self.details),
        }


def show(part: BenchPart, console: Console) -> None:
    """Print a part."""
    console.print()
    console.print(Text(part.title, style="bold"))
    if part.comparison is not None:
        headings = (column.heading for column in part.comparison.columns)
        table = Table("", *headings, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for row, figures in part.comparison.rows.items():
            cells = (
                f"{figure} ({figure.spread})" if figure.spread else str(figure)
                for figure in figures
            )
            table.add_row(row, *cells)
        console.print(table)
    if part.figures:
        console.print(_figures(part.figures))
    for remark in part.remarks:
        console.print(Text(remark, style="dim"))


def _figures(figures: Sequence[Figure]) -> Table:
    table = Table("", box=None, pad_edge=False)
    table.add_column("measured", justify="right")
    table.add_column("min..max", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    for figure in figures:
        mark = {
            None: Text(""),
            True: Text("met", style="green"),
            False: Text("MISSED", style="bold red"),
        }[figure.met]
        target = "" if figure.target is None else str(figure.target)
        table.add_row(figure.name, str(figure), figure.spread, target, mark)
    return table


def summary(parts: Sequence[BenchPart]) -> str:
    """How many targets were met, and the names of those that were not."""
    with_target = [figure for part in parts for figure in part.figures if figure.met is not None]
    missed = [figure.name for figure in with_target if not figure.met]
    line = f"{len(with_target) - len(missed)} of {len(with_target)} targets met"
    return line + (f"; missed: {'; '.join(missed)}" if missed else "")


def all_met(parts: Sequence[BenchPart]) -> bool:
    """Whether no target was missed."""
    return all(figure.met is not False for part in parts for figure in part.figures)


def machine(cores: int) -> dict[str, Any]:
    """The machine and versions that the figures belong to."""
    return {
        "cpu": _cpu_name(),
        "cores_used": cores,
        "cores": psutil.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
    }


def show_machine(machine: dict[str, Any], console: Console) -> None:
    """Print what `machine` found."""
    console.print(
        f"{machine['cpu']}, {machine['cores_used']} of {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}",
        highlight=False,
    )
    console.print(
        ", ".join(f"{name} {found}" for name, found in machine["versions"].items()),
        highlight=False,
    )
    if machine["load_before"][0] > 0.5:
        console.print(
            f"The machine was busy (load {machine['load_before'][0]}): times say little.",
            style="yellow",
        )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
