"""Comparisons as forest plots: the change of every metric with its interval, and the same as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lab.report.distributions import Sample, box_figure
from lab.report.figure import Figure, Table, number, plain, readable
from lab.results.compare import Comparison, Named, Row, Verdict, compare
from lab.results.result import Result, Series
from lab.results.statistics import Interval
from lab.system.words import plural

_COLOURS = {Verdict.WORSE: "--bad", Verdict.BETTER: "--good", Verdict.SAME: "--s1", Verdict.UNKNOWN: "--idle"}
_SYMBOLS = {Verdict.WORSE: "diamond", Verdict.BETTER: "square", Verdict.SAME: "circle", Verdict.UNKNOWN: "circle-open"}
"""A colour and a form for every verdict."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison as a page shows it; `figure` is None where nothing has an interval.

    `title` says what is compared: two files, or two sides of a file; `note` what of them is not.
    """

    title: str
    comparison: Comparison
    figure: Figure | None
    table: Table
    note: str = ""

    @property
    def verdict(self) -> str:
        """What is worse, in a line."""
        unsaid = f"not comparable: {self.comparison.unsaid}" if self.comparison.unsaid else ""
        if unsaid and not self.comparison.regressions:
            return unsaid
        rows = self.comparison.rows
        counts = {verdict: sum(row.verdict is verdict for row in rows) for verdict in Verdict}
        words = {Verdict.UNKNOWN: "where nothing can be said"}
        told = ", ".join(f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.items() if count)
        return f"{told}; {unsaid}" if unsaid else told


def comparisons(old: Named | None, results: Sequence[Named], threshold: float) -> list[Compared]:
    """Compare `old` with each result, and the sides of each result that has two."""
    found = [] if old is None or not results else [("", each) for each in compare([old, *results], threshold)]
    for named in results:
        if len(named.result.sides) == 2:
            found += [(f"{named.name}: ", each) for each in compare([named], threshold)]
    return [_compared(f"{place}{each.old} → {each.new}", each, threshold) for place, each in found]


def _compared(title: str, comparison: Comparison, threshold: float) -> Compared:
    return Compared(title, comparison, _forest(title, comparison, threshold), _table(title, comparison))


def _forest(title: str, comparison: Comparison, threshold: float) -> Figure | None:
    rows = [row for row in comparison.rows if row.difference is not None]
    if not rows:
        return None
    data = [trace for verdict in Verdict if (trace := _points(rows, verdict))]
    shapes = [
        {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "--ink", "width": 1}},
        {
            "type": "rect",
            "x0": -threshold * 100,
            "x1": threshold * 100,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "fillcolor": "--soft",
            "line": {"width": 0},
            "layer": "below",
        },
    ]
    layout = {
        "xaxis": {"title": {"text": "change, %"}, "zeroline": False},
        "yaxis": {"autorange": "reversed", "type": "category", "categoryarray": [plain(row.name) for row in rows]},
        "shapes": shapes,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
    worse = [row.name for row in rows if row.verdict is Verdict.WORSE]
    alt = f"Change of {plural(len(rows), 'metric')} with intervals of 95 %. " + (
        f"Worse: {', '.join(worse)}." if worse else "None is worse."
    )
    note = f"The band is the threshold, {threshold:.1%}; a change counts where it is beyond and significant."
    return Figure(title, alt, {"data": data, "layout": layout}, height=130 + 26 * len(rows), note=note)


def _points(rows: Sequence[Row], verdict: Verdict) -> dict[str, Any] | None:
    found = [(row, row.difference.change) for row in rows if row.verdict is verdict and row.difference is not None]
    if not found:
        return None
    middles = [change.middle * 100 for _, change in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "nothing can be said" if verdict is Verdict.UNKNOWN else str(verdict),
        "x": middles,
        "y": [plain(row.name) for row, _ in found],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [(change.high - change.middle) * 100 for _, change in found],
            "arrayminus": [(change.middle - change.low) * 100 for _, change in found],
            "color": _COLOURS[verdict],
            "thickness": 1.5,
        },
        "marker": {"color": _COLOURS[verdict], "symbol": _SYMBOLS[verdict], "size": 9},
        "hovertemplate": "%{y}: %{x:+.2f} %<extra></extra>",
    }


def _table(title: str, comparison: Comparison) -> Table:
    columns = ("metric", "old", "new", "change", "interval of 95 %", "p", "verdict")
    rows = [_cells(row) for row in comparison.rows]
    return Table(columns, rows, frozenset({1, 2, 3, 4, 5}), title)


def _cells(row: Row) -> tuple[str, ...]:
    bounds, p = "-", "exact" if row.exact else "-"
    if row.difference is not None:
        change = row.difference.change
        bounds = f"{change.low:+.1%} to {change.high:+.1%}"
        p = "-" if row.p is None else "<0.0001" if row.p < 0.0001 else f"{row.p:.4f}"
    moved = "-" if row.change is None else f"{row.change:+.1%}" if math.isfinite(row.change) else "from 0"
    verdict = f"{row.verdict}: {row.why}" if row.why else str(row.verdict)
    return row.name, _middle(row.old, row.unit), _middle(row.new, row.unit), moved, bounds, p, verdict


def _middle(value: Interval | None, unit: str) -> str:
    return "-" if value is None else _amount(value.middle, unit)


def _amount(value: float, unit: str) -> str:
    """Return a value with its unit; seconds in the unit in which one reads them."""
    factor, name = readable(value, unit)
    return f"{number(value * factor)} {name}"


def result_table(result: Result) -> Table:
    """Return every series of a result with its cuts."""
    columns = ("metric", "side", "n", "least", "median", "most", "better", "note")
    rows = [_series(series) for series in result.series]
    return Table(columns, rows, frozenset({2, 3, 4, 5}), f"Series of {result.bench}")


def _series(series: Series) -> tuple[str, ...]:
    note = series.refusal or ("exact" if series.exact else "-")
    side, better, count = series.side or "-", str(series.better), f"{len(series.values):,}"
    if not series.values:
        return series.name, side, count, "-", "-", "-", better, note
    cuts = (min(series.values), median(series.values), max(series.values))
    return series.name, side, count, *(_amount(cut, series.unit) for cut in cuts), better, note


def _title(series: Series) -> str:
    return f"{series.side}: {series.name}" if series.side else series.name


def result_figures(result: Result) -> list[Figure]:
    """Return the values of a result as box plots, a figure for each unit that was measured."""
    units = dict.fromkeys(series.unit for series in result.series if not series.exact and series.values)
    return [_values(result, unit) for unit in units]


def _values(result: Result, unit: str) -> Figure:
    factor, shown = (1e3, "milliseconds") if unit == "s" else (1, unit)
    measured = [series for series in result.series if series.unit == unit and not series.exact and series.values]
    samples = [Sample(_title(series), [each * factor for each in series.values]) for series in measured]
    alt = f"Box plots of {plural(len(samples), 'metric')} in {shown}."
    return box_figure(f"Values in {shown}", alt, samples, shown)
