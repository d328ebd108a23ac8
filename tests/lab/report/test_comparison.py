"""comparison.py: the forest plot has what `reloadlab compare` finds, and nothing that it does not say."""

from __future__ import annotations

from dataclasses import replace

from lab.report.comparison import comparisons, result_figures, result_table
from lab.results.compare import Named
from lab.results.result import Course, Series, exact
from tests.lab.report.test_distributions import understood
from tests.lab.results.samples import machine, result, times

OLD = Named(
    "old.json", result(Series("reload <b>", "s", times(1)), Series("up", "s", times(4)), exact("size", "B", 70))
)
NEW = Named("new.json", result(Series("reload <b>", "s", times(3, middle=0.022)), Series("up", "s", times(5))))
AB = Named(
    "ab.json",
    result(
        *(Series("reload", "s", times(n), side=side, group="g") for n, side in enumerate("AB")),
        sides=("A", "B"),
        course=Course(rounds=30),
    ),
)


def test_every_metric_with_an_interval_is_a_point_with_its_bounds() -> None:
    (compared,) = comparisons(OLD, [NEW], 0.02)
    assert compared.figure is not None
    drawn = {trace.name: trace for trace in understood(compared.figure).data}
    rows = {row.name: row for row in compared.comparison.rows}
    change = rows["reload <b>"].difference
    assert change is not None
    worse = drawn["worse"]
    assert (list(worse.x), list(worse.y)) == ([change.change.middle * 100], ["reload &lt;b&gt;"])
    assert worse.error_x.array[0] == (change.change.high - change.change.middle) * 100
    assert "Worse: reload <b>." in compared.figure.alt
    assert compared.verdict.startswith("1 worse")
    assert [row[0] for row in compared.table.rows] == ["reload <b>", "up", "size"]


def test_what_cannot_be_compared_says_why_and_is_not_drawn() -> None:
    other = replace(NEW, result=replace(NEW.result, machine=replace(machine(), kernel="5.10.0")))
    (compared,) = comparisons(OLD, [other], 0.02)
    assert (compared.figure, compared.table.rows) == (None, [])
    assert compared.verdict.startswith("not comparable: kernel: ")


def test_what_is_worse_is_said_though_of_something_else_nothing_can_be() -> None:
    """As `compare`, which ends with 1 then."""
    noisy = [Series("noisy", "s", times(seed, noise=0.3)) for seed in (1, 2)]
    old, new = (
        Named(each.name, replace(each.result, series=(*each.result.series, more)))
        for each, more in zip((OLD, NEW), noisy, strict=True)
    )
    (compared,) = comparisons(old, [new], 0.02)
    assert compared.verdict.startswith("1 worse, ")
    assert "; not comparable: noisy: noise: ±" in compared.verdict


def test_sides_are_compared_without_an_old_result() -> None:
    assert [each.title for each in comparisons(None, [AB], 0.02)] == ["ab.json: A → B"]
    assert comparisons(None, [NEW], 0.02) == []


def test_all_values_of_a_result_are_drawn_by_unit() -> None:
    figures = result_figures(OLD.result)
    assert [figure.title for figure in figures] == ["Values in milliseconds"]
    assert len(understood(figures[0]).data) == 2
    rows = result_table(OLD.result).rows
    (even,) = result_table(result(Series("x", "s", (0.001, 0.004, 0.002, 0.003)))).rows
    assert even[3:6] == ("1.00 ms", "2.50 ms", "4.00 ms")
    assert rows[2] == ("size", "-", "1", "70.00 B", "70.00 B", "70.00 B", "lower", "exact")
