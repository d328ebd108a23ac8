"""What `reloadlab bench traffic` prints: tables, or JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.bench.pairs import Build
from lab.bench.rounds import Row
from lab.bench.tables import put, table, warn
from lab.bench.traffic import Figures, Measure, Report


def show(console: Console, report: Report) -> None:
    """Print a report as tables, one for each measure, with both IP versions side by side."""
    for build in report.builds:
        if build.name:
            console.print(f"{build.name}: {escape(_describe(build))}", highlight=False, soft_wrap=True)
    for kind in dict.fromkeys(figures.measure for figures in report.figures):
        put(console, _table([figures for figures in report.figures if figures.measure == kind]))
    warn(console, report.others)


def _describe(build: Build) -> str:
    defines = (f"-D {name}={value}" if value else f"-D {name}" for name, value in build.defines)
    return " ".join((f"sources of {build.library}" if build.library else "our sources", *defines))


def _table(versions: Sequence[Figures]) -> Table:
    kind, rounds = versions[0].measure, len(versions[0].groups[0][0].seconds)
    columns = [column for figures in versions for column in (f"IPv{figures.version}", "x", "quartiles")]
    title = f"{kind.name}, {kind.unit}, median of {rounds} rounds; x: time over the first row's"
    filled = table(title, *columns)
    for groups in zip(*(figures.groups for figures in versions), strict=True):
        for rows in zip(*groups, strict=True):
            pairs = zip(rows, groups, strict=True)
            cells = (cell for row, group in pairs for cell in _cells(kind, row, group[0]))
            filled.add_row(escape(rows[0].name), *cells)
        filled.add_section()
    return filled


def _cells(kind: Measure, row: Row, first: Row) -> tuple[str, ...]:
    ratio, low, high = row.ratio(first)
    value = kind.value(row.median)
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values, in the units that it says; ratios are of times, to the row `reference`."""
    return {
        "builds": [{"name": build.name, "sources": _describe(build)} for build in report.builds],
        "other_processes": round(report.others, 3),
        "measures": [
            {
                "name": figures.measure.name,
                "ip": figures.version,
                "unit": figures.measure.unit,
                "rows": [_row_json(figures.measure, row, group[0]) for group in figures.groups for row in group],
            }
            for figures in report.figures
        ],
    }


def _row_json(kind: Measure, row: Row, first: Row) -> dict[str, Any]:
    ratio, low, high = row.ratio(first)
    return {
        "name": row.name,
        "median": _round(kind.value(row.median)),
        "best": _round(kind.value(row.best)),
        "reference": first.name,
        "ratio": round(ratio, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "rounds": [_round(kind.value(seconds)) for seconds in row.seconds],
    }


def _round(value: float) -> float:
    return round(value, 3 if value < 1000 else 0)
