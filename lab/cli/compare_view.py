"""What `reloadlab compare` prints: tables, JSON values, or Markdown."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from lab.cli.compare_options import NOT_COMPARABLE
from lab.cli.figures import figure, finite, percent, probability, scale
from lab.cli.tables import add_row, make_table, print_table
from lab.report.markdown import escaped, folded, table_head, table_row
from lab.results.compare import Comparison, Row, Verdict
from lab.results.statistics import Interval
from lab.system.words import plural

_COLUMNS = ("metric", "old", "new", "change", "95 %", "p", "effect", "rounds", "")
_FIGURES = _COLUMNS[1:-1]


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """Return 1 if something is worse, 3 if of some pair nothing can be said, 0 otherwise."""
    if any(comparison.regressions for comparison in comparisons):
        return 1
    return NOT_COMPARABLE if any(comparison.unsaid for comparison in comparisons) else 0


def tell_unsaid(comparisons: Sequence[Comparison]) -> None:
    """Print a line on standard error for each pair of which nothing can be said: why."""
    for comparison in comparisons:
        if comparison.unsaid:
            names = ", ".join(filter(None, (comparison.old, comparison.new)))
            print(f"reloadlab: {names}: not comparable: {comparison.unsaid}", file=sys.stderr)


def show(comparisons: Sequence[Comparison]) -> None:
    """Print a table for each pair, then what is worse."""
    for comparison in comparisons:
        if comparison.differences:
            continue
        table = make_table(*_COLUMNS, figures=_FIGURES, title=f"{comparison.old} -> {comparison.new}")
        for row in comparison.rows:
            if not _untouched(row):
                add_row(table, *_cells(row))
        print_table(table)
        for line in (*_closing(comparison), *comparison.about):
            print(line)
        print()


def markdown(comparisons: Sequence[Comparison], left_out: str = "") -> str:
    """Return the same as Markdown, for the summary of a job: what changed, and the whole table folded.

    `left_out` is what is not compared, in words.
    """
    parts = [f"Not compared: {escaped(left_out)}\n\n"] if left_out else []
    for comparison in comparisons:
        parts.append(f"### {' → '.join(map(escaped, filter(None, (comparison.old, comparison.new))))}\n\n")
        if comparison.unsaid:
            parts.append(f"Not comparable: {escaped(comparison.unsaid)}\n\n")
        if comparison.differences:
            continue
        parts += [f"- {escaped(line)}\n" for line in comparison.about] + ["\n"]
        changed = [row for row in comparison.rows if row.verdict in (Verdict.WORSE, Verdict.BETTER)]
        if changed:
            parts.append(_markdown_table(changed))
        parts += [f"{escaped(line)}\n\n" for line in _closing(comparison)]
        number = plural(len(comparison.rows), "metric")
        table = _markdown_table(comparison.rows)
        parts.append(folded(number, table))
    return "".join(parts)


def _markdown_table(rows: Sequence[Row]) -> str:
    lines = [table_row([escaped(cell or "-") for cell in _cells(each)]) for each in rows]
    return "".join([table_head(*_COLUMNS, figures=_FIGURES), *lines, "\n"])


def _closing(comparison: Comparison) -> list[str]:
    counts = {verdict: sum(row.verdict is verdict for row in comparison.rows) for verdict in Verdict}
    lines = [", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)]
    if untouched := sum(map(_untouched, comparison.rows)):
        number = sum(row.exact for row in comparison.rows)
        lines.append(f"{untouched} of {plural(number, 'exact metric')} unchanged")
    for unit, mean in comparison.means().items():
        number = sum(row.p is not None and row.unit == unit for row in comparison.rows)
        lines.append(f"geometric mean of {number} metrics in {unit}: cost {percent(mean - 1)}")
    return lines


def _untouched(row: Row) -> bool:
    """Tell whether an exact metric is what it was: of such, one line has them all."""
    return row.exact and row.change == 0


def _cells(row: Row) -> tuple[str, ...]:
    factor, unit = scale(row.unit, (value.middle for value in (row.old, row.new) if value is not None))
    before, after = (_interval(value, factor, unit, exact=row.exact) for value in (row.old, row.new))
    change = "" if row.change is None else percent(row.change)
    bounds, p, effect = "", "exact" if row.exact else "", ""
    if row.difference is not None:
        bounds = f"{percent(row.difference.change.low)} to {percent(row.difference.change.high)}"
        effect = f"{row.difference.effect:+.2f}"
        p = "" if row.p is None else probability(row.p)
    first, second = row.rounds
    rounds = "" if row.exact or not (first or second) else f"{first}" if first == second else f"{first}, {second}"
    verdict = f"{row.verdict}: {row.why}" if row.why else str(row.verdict)
    return row.name, before, after, change, bounds, p, effect, rounds, verdict


def _interval(value: Interval | None, factor: float, unit: str, *, exact: bool) -> str:
    if value is None:
        return ""
    middle = value.middle / factor
    if exact:
        return f"{middle:,.12g} {unit}"
    if math.isnan(value.low):
        return f"{figure(middle)} {unit}"
    widest = max(value.high - value.middle, value.middle - value.low)
    return f"{figure(middle)} {unit} ±{widest / value.middle:.1%}" if value.middle else f"0 {unit}"


def to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the comparisons as JSON values; changes are shares: 0.03 is 3 % more."""
    return {"exit_code": exit_code(comparisons), "comparisons": [_comparison(each) for each in comparisons]}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "old": comparison.old,
        "new": comparison.new,
        "about": list(comparison.about),
        "not_comparable": comparison.unsaid or None,
        "geometric_means": comparison.means(),
        "metrics": [_row(row) for row in comparison.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    found = row.difference
    return {
        "name": row.name,
        "unit": row.unit,
        "better": str(row.better),
        "exact": row.exact,
        "rounds": list(row.rounds),
        "old": _interval_json(row.old),
        "new": _interval_json(row.new),
        "change": finite(row.change),
        "change_low": None if found is None else found.change.low,
        "change_high": None if found is None else found.change.high,
        "p": row.p,
        "effect": None if found is None else found.effect,
        "paired": None if found is None else found.paired,
        "verdict": str(row.verdict),
        "why": row.why or None,
    }


def _interval_json(value: Interval | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    return {"median": value.middle, "low": finite(value.low), "high": finite(value.high)}
