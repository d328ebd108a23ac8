"""The output of `reloadlab bench traffic`: tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from lab.bench.pairs import Build
from lab.bench.rounds import Measurement
from lab.bench.traffic import Metric, MetricComparison, PacketCosts
from lab.cli.tables import make_table, print_table


def show(report: PacketCosts) -> None:
    """Print a report as tables, one for each metric, with both IP versions side by side."""
    for build in report.builds:
        if build.name:
            print(f"{build.name}: {_describe(build)}")
    for metric in dict.fromkeys(item.metric for item in report.comparisons):
        print_table(_table([item for item in report.comparisons if item.metric == metric]))
        print()


def _describe(build: Build) -> str:
    defines = (f"-D {name}={value}" if value else f"-D {name}" for name, value in build.defines)
    return " ".join((f"sources of {build.library}" if build.library else "our sources", *defines))


def _table(versions: Sequence[MetricComparison]) -> Table:
    metric, rounds = versions[0].metric, len(versions[0].groups[0][0].seconds)
    columns = [column for item in versions for column in (f"IPv{item.version}", "x", "quartiles")]
    title = f"{metric.name}, {metric.unit}, median of {rounds} rounds; x: time over the first row's"
    filled = make_table("", *columns, figures=columns, title=title)
    for groups in zip(*(item.groups for item in versions), strict=True):
        if filled.row_count:
            filled.add_row()
        for rows in zip(*groups, strict=True):
            pairs = zip(rows, groups, strict=True)
            cells = (cell for row, group in pairs for cell in _cells(metric, row, group[0]))
            filled.add_row(escape(rows[0].name), *cells)
    return filled


def _cells(metric: Metric, row: Measurement, first: Measurement) -> tuple[str, ...]:
    ratio, low, high = row.ratio(first)
    value = metric.value(row.median)
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"
