"""Compare results: what became worse, by how much, and what cannot be said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.results.about import about
from lab.results.deciding import deciding, reasons
from lab.results.result import NOISY, RUN, STARVED, Better, Result, Series
from lab.results.statistics import (
    CONFIDENCE,
    FEWEST,
    Difference,
    Interval,
    block_medians,
    holm,
    median_interval,
    paired,
    unpaired,
)

ALARM = 1 - CONFIDENCE
"""Probability that a comparison of equal things finds any difference, at most, whatever the number of metrics."""

_FAULTS = frozenset({"packets", "scenarios"})
"""Units of metrics that count what went wrong: they are as good as exact."""


class Verdict(StrEnum):
    """What is said of a metric: `~` where nothing can be said."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    UNKNOWN = "~"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `p` is corrected for the number of metrics; `why` says why nothing can be said.

    `old` and `new` are None where there is no value; their bounds are the value itself where it is exact, and not a
    number where there are too few values. `difference` is None for exact metrics: `change` has it all. `decides` tells
    whether without this one nothing is said at all.
    """

    name: str
    unit: str
    exact: bool
    better: Better
    old: Interval | None = None
    new: Interval | None = None
    rounds: tuple[int, int] = (0, 0)
    change: float | None = None
    difference: Difference | None = None
    p: float | None = None
    verdict: Verdict = Verdict.UNKNOWN
    why: str = ""
    decides: bool = False

    @property
    def cost(self) -> float | None:
        """How many times the old cost is the new one: above 1 is worse, also where more is better."""
        if self.change is None or self.change <= -1:
            return None
        return 1 + self.change if self.better is Better.LOWER else 1 / (1 + self.change)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results or two sides of one. `differences` say why they cannot be compared; then there are no rows.

    `about` are lines that say what was compared, where and how.
    """

    old: str
    new: str
    rows: tuple[Row, ...] = ()
    differences: tuple[str, ...] = ()
    about: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict is Verdict.WORSE)

    @property
    def unsaid(self) -> str:
        """Why nothing can be said of the pair, empty if something can: that is, of every metric that decides.

        Where nothing was measured, one exact metric is enough.
        """
        if self.differences:
            return "; ".join(self.differences)
        unknown = [row for row in self.rows if row.verdict is Verdict.UNKNOWN]
        decide = [row for row in unknown if row.decides]
        if not any(row.decides for row in self.rows) and len(unknown) == len(self.rows):
            decide = unknown
        return reasons({row.name: row.why for row in decide})

    def means(self) -> dict[str, float]:
        """Return the geometric mean of the costs of the metrics of a unit that were tested, where there are two."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.p is not None and row.cost is not None:
                found.setdefault(row.unit, []).append(math.log(row.cost))
        return {unit: math.exp(math.fsum(logs) / len(logs)) for unit, logs in found.items() if len(logs) > 1}


@dataclass(frozen=True, slots=True)
class Named:
    """A result and what it is called, such as its file."""

    name: str
    result: Result


def compare(results: Sequence[Named], threshold: float) -> list[Comparison]:
    """Compare the first result with each of the others, or the sides of a single one, in which rounds are paired.

    `threshold` is the smallest change that counts, 0.02 for 2 %. The rate of false alarms (ALARM) is that of all
    comparisons together.
    """
    old, *others = results
    if others:
        drafts = [_two_results(old, new) for new in others]
    else:
        first, *sides = old.result.sides
        drafts = [_two_sides(old, first, side) for side in sides]
        if not sides:
            drafts = [Comparison(old.name, "", differences=("it has no second side: name another result",))]
    return _judged(drafts, threshold)


def _two_sides(named: Named, old: str, new: str) -> Comparison:
    compared = [(side, named.result, side) for side in (old, new)]
    return Comparison(old, new, tuple(_rows(named, named, old, new)), about=about(compared))


def _two_results(old: Named, new: Named) -> Comparison:
    found = tuple(differences(old.result, new.result))
    if found:
        return Comparison(old.name, new.name, differences=found)
    sides = dict.fromkeys((*old.result.sides, *new.result.sides))
    rows = [row for side in sides for row in _rows(old, new, side, side)]
    if not any(row.old and row.new for row in rows):
        return Comparison(old.name, new.name, differences=("they have no metric in common",))
    compared = [
        (f"{named.name}, {side}" if side else named.name, named.result, side)
        for side in sides
        if side in old.result.sides and side in new.result.sides
        for named in (old, new)
    ]
    return Comparison(old.name, new.name, tuple(rows), about=about(compared))


def differences(old: Result, new: Result) -> Iterable[str]:
    """Yield what makes two results incomparable."""
    if old.bench != new.bench:
        yield f"benchmark: {old.bench}, {new.bench}"
    for name in sorted(old.options.keys() | new.options.keys()):
        mine, theirs = old.options.get(name, "not given"), new.options.get(name, "not given")
        if mine != theirs:
            yield f"option {name}: {mine}, {theirs}"
    yield from old.machine.differences(new.machine)


def _rows(old: Named, new: Named, old_side: str, new_side: str) -> Iterable[Row]:
    """Yield a row for each metric that either has."""
    both = [
        series
        for named, side in ((old, old_side), (new, new_side))
        for series in named.result.of_side(side).values()
        if not series.exact
    ]
    measured = [series.name for series in both if series.values]
    blind = dict(_blind(both))
    decide = deciding(old.result.bench, measured, [*blind, *(series.name for series in both if series.refusal)])
    for name, row in _drafts(old, new, old_side, new_side):
        is_lost = row.exact and bool(row.change and row.change > 0)
        yield replace(row, why=row.why if is_lost else blind.get(name, row.why), decides=name in decide)


def _blind(series: Iterable[Series]) -> Iterable[tuple[str, str]]:
    """Yield metrics of what packets notice, each with why it says nothing: for too long nothing was sent."""
    for each in series:
        kind, _, what = each.name.partition(": ")
        if kind == STARVED and (share := max(each.values, default=0.0)) > NOISY:
            why = f"the traffic had no CPU for {share:.0%} of a trial"
            yield from ((f"worst delay: {what}", why), (f"lost: {what}", why))


def _drafts(old: Named, new: Named, old_side: str, new_side: str) -> Iterable[tuple[str, Row]]:
    """Yield the name of each metric on its side, and its row without a verdict."""
    mine, theirs = old.result.of_side(old_side), new.result.of_side(new_side)
    one_run = old.result is new.result
    prefix = f"{old_side}: " if old_side and not one_run else ""
    noise = "" if one_run else _noise(old) or _noise(new)
    in_pairs = one_run or old.result.bench == RUN
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        before, after = mine.get(name), theirs.get(name)
        if before is None or after is None:
            known = before or after
            assert known is not None
            missing = (new, new_side) if after is None else (old, old_side)
            where = missing[1] if one_run else missing[0].name
            yield name, Row(prefix + name, known.unit, known.exact, known.better, why=f"not in {where}")
        elif before.unit != after.unit or before.exact is not after.exact or before.better is not after.better:
            yield name, Row(prefix + name, before.unit, before.exact, before.better, why="measured in another way")
        elif before.exact or before.unit in _FAULTS:
            yield name, _exact_row(prefix + name, before, after)
        else:
            values = counted(before, old.result), counted(after, new.result)
            yield name, _measured_row(prefix + name, before, after, values, noise, in_pairs=in_pairs)


def _noise(named: Named) -> str:
    others = named.result.load.others
    if others is None or others <= NOISY:
        return ""
    return f"other processes had {others:.0%} of the CPUs"


def counted(series: Series, result: Result) -> list[float]:
    """Return the independent values of a series, without those of the warm-up."""
    return block_medians(series.values, series.block)[result.course.warm_up if series.group else 0 :]


def _exact_row(name: str, old: Series, new: Series) -> Row:
    if not old.values or not new.values:
        return Row(name, old.unit, True, old.better, why=_refusal(old, new))
    trials = len(old.values), len(new.values)
    if trials[0] != trials[1]:
        return Row(name, old.unit, True, old.better, why=f"counted in {trials[0]} and in {trials[1]} trials")
    before, after = sum(old.values), sum(new.values)
    change = 0.0 if before == after else after / before - 1 if before else math.inf
    pair = Interval(before, before, before), Interval(after, after, after)
    return Row(name, old.unit, True, old.better, *pair, rounds=(1, 1), change=change)


def _refusal(old: Series, new: Series) -> str:
    said = old.refusal or new.refusal
    return f"not measured: {said}" if said else "no values"


def _measured_row(
    name: str, old: Series, new: Series, values: tuple[list[float], list[float]], noise: str, *, in_pairs: bool
) -> Row:
    before, after = values
    rounds = len(before), len(after)
    row = Row(name, old.unit, False, old.better, _summary(before), _summary(after), rounds)
    if not before or not after:
        return replace(row, why=_refusal(old, new))
    if min(rounds) < FEWEST:
        return replace(row, why=f"{min(rounds)} of the {FEWEST} rounds that are needed")
    if min(*before, *after) <= 0:
        return replace(row, why="values of 0 have no ratio")
    in_pairs = in_pairs and bool(old.group) and old.group == new.group and len(before) == len(after)
    difference = paired(before, after) if in_pairs else unpaired(before, after)
    return replace(row, difference=difference, change=difference.change.middle, why=noise)


def _summary(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return median_interval(values) or Interval(middle, math.nan, math.nan)


def _judged(drafts: Sequence[Comparison], threshold: float) -> list[Comparison]:
    """Give every row its verdict; the tests of all comparisons are corrected together."""
    tests = [row.difference.p for draft in drafts for row in draft.rows if row.difference and not row.why]
    corrected = iter(holm(tests))
    return [
        replace(
            draft,
            rows=tuple(
                _judge(replace(row, p=next(corrected)) if row.difference and not row.why else row, threshold)
                for row in draft.rows
            ),
        )
        for draft in drafts
    ]


def least_change(unit: str, threshold: float, *, exact: bool) -> float:
    """Return the smallest change of a metric that counts: of what went wrong, one more is worse."""
    return 0.0 if exact and unit in _FAULTS else threshold


def _judge(row: Row, threshold: float) -> Row:
    if row.why or row.change is None:
        return row
    if row.exact:
        counts = row.change and abs(row.change) >= least_change(row.unit, threshold, exact=True)
        return replace(row, verdict=_direction(row) if counts else Verdict.SAME)
    assert row.difference is not None
    change, significant = row.difference.change, row.p is not None and row.p < ALARM
    if significant and abs(change.middle) >= threshold:
        return replace(row, verdict=_direction(row))
    if max(-change.low, change.high) < threshold:
        return replace(row, verdict=Verdict.SAME)
    if significant:
        return replace(row, why=f"there is a difference, and not clear whether it reaches {threshold:.1%}")
    return replace(row, why=f"noise: ±{change.half_width:.1%}, too much to see {threshold:.1%}")


def _direction(row: Row) -> Verdict:
    assert row.change is not None
    return Verdict.WORSE if (row.change > 0) is (row.better is Better.LOWER) else Verdict.BETTER
