"""A result of more than two sides: what was measured of each beside that of the others, as tables and plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from lab.report.distributions import Sample, value_axis
from lab.report.figure import Figure, Table, number, plain, readable
from lab.results.compare import counted as counted_values
from lab.results.result import Result, Series
from lab.system.words import plural

FEWEST_SIDES = 3
"""Sides from which on a result is shown so; two are compared (lab.report.comparison)."""

PARTS = "phase"
"""The group whose metrics are the parts of one whole: they are drawn as one bar."""

_MOST = 6
"""Metrics of a group that a plot can tell apart; of more there is only the table."""

_WIDE = 20
"""Times the least value that the greatest has to be for a logarithmic axis."""

_MIB = 1 << 20

_COLOURS = ("--s1", "--s5", "--s4", "--s2", "--good", "--idle")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "circle-open")
_UNITS = {"s": "seconds", "ms": "milliseconds", "µs": "microseconds", "ns": "nanoseconds"}


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics whose names begin alike (`phase: load`), and their series by metric and side.

    `title` is empty for those whose names do not begin so.
    """

    title: str
    series: Mapping[str, Mapping[str, Series]]

    @property
    def measured(self) -> Mapping[str, Mapping[str, Series]]:
        """The metrics that some side has values of."""
        return {name: sides for name, sides in self.series.items() if any(each.values for each in sides.values())}


def has_many_sides(result: Result) -> bool:
    """Tell whether a result is shown so."""
    return len(result.sides) >= FEWEST_SIDES


def groups_of(result: Result) -> list[Group]:
    """Return the metrics of a result by what their names begin with; those of no group are the first."""
    found: dict[str, dict[str, dict[str, Series]]] = {"": {}}
    for series in result.series:
        title, colon, name = series.name.partition(": ")
        metrics = found.setdefault(title if colon else "", {})
        metrics.setdefault(name if colon else title, {})[series.side] = series
    return [Group(title, metrics) for title, metrics in found.items() if metrics]


def side_table(result: Result, group: Group) -> Table:
    """Return the medians of a group: a row for each side and a column for each metric, or the other way round.

    What a side has no value of is `-`. The longer of both goes down.
    """
    metrics = group.measured
    scales = {name: _scale(sides.values()) for name, sides in metrics.items()}
    heads = [_with_unit(name, scales[name][1]) for name in metrics]
    title = group.title or "Whole"
    if len(units := {unit for _, unit in scales.values()}) == 1:
        title, heads = _with_unit(title, units.pop()), list(metrics)
    cells = [
        [_cell(result, sides.get(side), scales[name][0]) for side in result.sides] for name, sides in metrics.items()
    ]
    if len(heads) > len(result.sides):
        return _table(title, heads, result.sides, cells)
    return _table(title, result.sides, heads, list(zip(*cells, strict=True)))


def overview(result: Result) -> Table:
    """Return all metrics that are plotted in one table, a column for each side."""
    rows = []
    for group in groups_of(result):
        metrics = group.measured if len(group.measured) <= _MOST else {}
        for name, sides in metrics.items():
            factor, unit = _scale(sides.values())
            head = name if not group.title else f"{group.title}: {name}"
            rows.append((_with_unit(head, unit), *(_cell(result, sides.get(side), factor) for side in result.sides)))
    columns = ("median", *result.sides)
    return Table(columns, rows, frozenset(range(1, len(columns))), "All sides beside each other")


def refusals(result: Result) -> list[tuple[str, str, str]]:
    """Return what could not be measured: the side, the metric, and why."""
    return [(series.side, series.name, series.refusal) for series in result.series if series.refusal]


def side_figures(result: Result) -> list[Figure]:
    """Return the groups as figures with their tables; a group of too many metrics has no plot, only its table."""
    return [figure for group in groups_of(result) for figure in _figures(result, group)]


def tables_without_figure(result: Result) -> list[Table]:
    """Return the tables of the groups that have too many metrics for a plot."""
    return [side_table(result, group) for group in groups_of(result) if len(group.measured) > _MOST]


def _figures(result: Result, group: Group) -> Iterator[Figure]:
    metrics = group.measured
    if not metrics or len(metrics) > _MOST:
        return
    units = dict.fromkeys(each.unit for sides in metrics.values() for each in sides.values())
    for unit in units:
        shown = {name: sides for name, sides in metrics.items() if all(each.unit == unit for each in sides.values())}
        if not shown:
            continue
        title = group.title or ", ".join(shown)
        yield (_bars if group.title == PARTS else _dots)(result, Group(title, shown))


def _bars(result: Result, group: Group) -> Figure:
    """Return one bar for each side, whose pieces are the metrics."""
    whole = max(sum(_middle(result, sides.get(side)) for sides in group.measured.values()) for side in result.sides)
    factor, unit = readable(whole, _unit(group))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(name),
            "y": [plain(side) for side in result.sides],
            "x": [_middle(result, sides.get(side)) * factor for side in result.sides],
            "marker": {"color": _COLOURS[place]},
            "hovertemplate": f"%{{y}}: {plain(name)} %{{x:.4g}} {unit}<extra></extra>",
        }
        for place, (name, sides) in enumerate(group.measured.items())
    ]
    alt = f"{_title(group, unit)} of {plural(len(result.sides), 'side')}, {_ends(result, group)}."
    layout = _layout(unit, {}) | {"barmode": "stack"}
    note = "Medians; the pieces of a bar follow each other."
    return _figure(result, group, unit, alt, data, layout, note)


def _dots(result: Result, group: Group) -> Figure:
    """Return a row for each side with the medians of the metrics, and the middle half of their values."""
    factor, unit = _scale([each for sides in group.measured.values() for each in sides.values()])
    data, values = [], list[float]()
    for place, (name, sides) in enumerate(group.measured.items()):
        cuts = {side: _cuts(result, sides.get(side), factor) for side in result.sides}
        known = {side: cut for side, cut in cuts.items() if cut is not None}
        values += [value for cut in known.values() for value in cut]
        data.append(_markers(name, known, unit, place))
    alt = f"{_title(group, unit)} of {plural(len(result.sides), 'side')}, {_ends(result, group)}."
    exact = all(each.exact for sides in group.measured.values() for each in sides.values())
    note = "These do not depend on chance." if exact else "Mark: the median; line: the middle half of the values."
    return _figure(result, group, unit, alt, data, _layout(unit, _axis(values)), note)


def _axis(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis for values that are far from each other, else one that begins at 0."""
    if min(values) > 0 and max(values) / min(values) > _WIDE:
        return value_axis([Sample("", values)])
    return {"rangemode": "tozero"}


def _unit(group: Group) -> str:
    return next(each.unit for sides in group.measured.values() for each in sides.values())


def _markers(name: str, cuts: Mapping[str, tuple[float, float, float]], unit: str, place: int) -> dict[str, Any]:
    colour = _COLOURS[place]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [high - middle for _, middle, high in cuts.values()],
        "arrayminus": [middle - low for low, middle, _ in cuts.values()],
        "color": colour,
        "thickness": 1.5,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": [middle for _, middle, _ in cuts.values()],
        "y": [plain(side) for side in cuts],
        "error_x": error,
        "marker": {"color": colour, "symbol": _SYMBOLS[place], "size": 9},
        "hovertemplate": f"%{{y}}: {plain(name)} %{{x:.4g}} {unit}<extra></extra>",
    }


def _layout(unit: str, axis: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": _UNITS.get(unit, unit)}, **axis},
        "yaxis": {"autorange": "reversed", "type": "category"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "showlegend": True,
    }


def _figure(
    result: Result,
    group: Group,
    unit: str,
    alt: str,
    data: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    note: str,
) -> Figure:
    rows = {**layout["yaxis"], "categoryarray": [plain(side) for side in result.sides]}
    content = {"data": data, "layout": {**layout, "yaxis": rows}}
    height = 130 + 30 * len(result.sides)
    return Figure(_title(group, unit), alt, content, (side_table(result, group),), height, note)


def _title(group: Group, unit: str) -> str:
    return _capital(_with_unit(group.title, _UNITS.get(unit, unit)))


def _with_unit(name: str, unit: str) -> str:
    """Return a name with its unit, unless it says that itself."""
    return name if unit in name.split() else f"{name}, {unit}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _ends(result: Result, group: Group) -> str:
    """Return which side has the lowest and which the highest median of the first metric."""
    name, sides = next(iter(group.measured.items()))
    middles = {side: _middle(result, each) for side, each in sides.items() if each.values}
    low, high = min(middles, key=lambda side: middles[side]), max(middles, key=lambda side: middles[side])
    factor, unit = _scale(sides.values())
    least, most = (f"{_cell(result, sides[side], factor)} {unit} ({side})" for side in (low, high))
    return f"{name}: {least} to {most}" if middles[low] != middles[high] else f"{name}: {least} and all others"


def _values(result: Result, series: Series | None) -> list[float]:
    return [] if series is None else counted_values(series, result)


def _middle(result: Result, series: Series | None) -> float:
    """Return the median; 0 without values, as of a phase that a side does not have."""
    values = _values(result, series)
    return median(values) if values else 0.0


def _cuts(result: Result, series: Series | None, factor: float) -> tuple[float, float, float] | None:
    """Return the quartiles; None without values."""
    values = [value * factor for value in _values(result, series)]
    if not values:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def _scale(series: Any) -> tuple[float, str]:
    """Return by what to multiply values that stand side by side, and their unit then."""
    known = [(abs(value), each.unit) for each in series for value in each.values if value and math.isfinite(value)]
    if not known:
        return 1, next((each.unit for each in series), "")
    middle, unit = median(value for value, _ in known), known[0][1]
    return (2.0**-20, "MiB") if unit == "bytes" and middle >= _MIB else readable(middle, unit)


def _cell(result: Result, series: Series | None, factor: float) -> str:
    values = _values(result, series)
    if not values:
        return "-"
    middle = float(median(values) * factor)
    return f"{middle:,.0f}" if factor == 1 and middle.is_integer() else number(middle)


def _table(title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    lines = [(head, *line) for head, line in zip(rows, cells, strict=True)]
    return Table(("", *columns), lines, frozenset(range(1, len(columns) + 1)), _capital(title))
