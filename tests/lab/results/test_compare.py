from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lab.results.compare import Comparison, Named, Row, Verdict, compare
from lab.results.deciding import deciding
from lab.results.result import STARVED, Better, Course, Load, Result, Series, exact
from tests.lab.results.samples import machine, result, times


def pair(old: Result, new: Result, threshold: float = 0.02) -> Comparison:
    (found,) = compare([Named("old.json", old), Named("new.json", new)], threshold)
    return found


def one(old: Sequence[float], new: Sequence[float], **options: Any) -> Row:
    before, after = (result(Series("x", "s", tuple(values), **options)) for values in (old, new))
    return pair(before, after).rows[0]


def test_more_is_worse_of_times_and_better_of_rates() -> None:
    slow, fast = times(1, middle=0.03), times(2)
    assert one(fast, slow).verdict is Verdict.WORSE
    assert one(slow, fast).verdict is Verdict.BETTER
    assert one(fast, slow, better=Better.HIGHER).verdict is Verdict.BETTER
    assert one(slow, fast, better=Better.HIGHER).verdict is Verdict.WORSE


def test_a_change_below_the_threshold_is_none() -> None:
    row = one(times(1), times(2, middle=0.0202))
    assert row.change == pytest.approx(0.01, abs=0.005)
    assert (row.verdict, row.why) == (Verdict.SAME, "")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (times(1, rounds=5), times(2), "5 of the 6 rounds that are needed"),
        ((), times(2), "no values"),
        ((0.0, *times(1)), times(2), "values of 0 have no ratio"),
        ([0.02, 0.03] * 5, [0.021, 0.031] * 5, "noise: ±"),
    ],
)
def test_what_cannot_be_said_has_a_reason(old: Sequence[float], new: Sequence[float], why: str) -> None:
    more = exact("n", "n", 1)
    found = pair(result(Series("x", "s", tuple(old)), more), result(Series("x", "s", tuple(new)), more))
    row = found.rows[0]
    assert (row.verdict, row.why[: len(why)]) == (Verdict.UNKNOWN, why)
    assert found.regressions == ()


def test_a_metric_of_one_side_only_is_said_to_be_missing() -> None:
    both, more = Series("x", "s", times(1)), Series("y", "s", times(1))
    rows = pair(result(both, more), result(both)).rows
    assert [(row.name, row.why) for row in rows] == [("x", ""), ("y", "not in new.json")]


def test_a_refusal_is_quoted() -> None:
    refused = result(Series("x", "s", (), refusal="libbpf: no"), Series("y", "s", times(1)))
    assert pair(refused, refused).rows[0].why == "not measured: libbpf: no"


def test_exact_metrics_need_no_rounds_and_no_test() -> None:
    def found(old: float, new: float) -> Row:
        return pair(result(exact("n", "bytes", old)), result(exact("n", "bytes", new))).rows[0]

    assert [found(1000, new).verdict for new in (1000, 1001, 1020, 900)] == ["same", "same", "worse", "better"]
    assert found(0, 5).verdict is Verdict.WORSE
    assert found(1000, 1001).change == pytest.approx(0.001)
    assert found(1000, 1020).p is None


@pytest.mark.parametrize("unit", ["packets", "scenarios"])
def test_one_more_of_what_went_wrong_is_worse_however_many_there_were(unit: str) -> None:
    def found(old: float, new: float) -> Verdict:
        return pair(result(exact("lost", unit, old)), result(exact("lost", unit, new))).rows[0].verdict

    assert [found(1000, new) for new in (1000, 1001, 999)] == [Verdict.SAME, Verdict.WORSE, Verdict.BETTER]


def test_packets_lost_in_each_of_several_trials_are_added_up() -> None:
    """As `bench releases` counts them: chance may be in it, and a ratio is not."""

    def found(old: tuple[float, ...], new: tuple[float, ...]) -> tuple[Verdict, str]:
        before, after = (result(Series("lost", "packets", each), exact("n", "n", 1)) for each in (old, new))
        row, _ = pair(before, after).rows
        return row.verdict, row.why

    assert found((0.0, 0.0, 0.0), (0.0, 27.0, 95.0)) == (Verdict.WORSE, "")
    assert found((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == (Verdict.SAME, "")
    assert found((0.0, 1.0), (0.0, 1.0, 0.0)) == (Verdict.UNKNOWN, "counted in 2 and in 3 trials")


def test_of_a_side_that_only_one_result_has_nothing_can_be_said() -> None:
    def released(*sides: str) -> Result:
        series = (Series("reload", "s", times(len(side)), side=side) for side in sides)
        return result(*series, sides=sides, bench="releases")

    found = pair(released("1.16", "1.9"), released("1.9", "1.17.4"))
    assert [(row.name, row.why) for row in found.rows] == [
        ("1.16: reload", "not in new.json"),
        ("1.9: reload", ""),
        ("1.17.4: reload", "not in old.json"),
    ]
    assert found.unsaid == "1.16: reload: not in new.json; 1.17.4: reload: not in old.json"
    assert found.about[:2] == ("old.json, 1.9: library our sources", "new.json, 1.9: library our sources")
    assert pair(released("1.16"), released("1.17.4")).differences == ("they have no metric in common",)


def test_every_side_of_two_results_is_told_what_it_is() -> None:
    made = result(*(Series("reload", "s", times(1), side=side) for side in "AB"), sides=("A", "B"))
    old, new = (
        replace(made, subjects={"A": {"library": "our sources"}, "B": {"library": library}}) for library in ("/1", "/2")
    )
    assert pair(old, new).about[:4] == (
        "old.json, A: library our sources",
        "new.json, A: library our sources",
        "old.json, B: library /1",
        "new.json, B: library /2",
    )


def test_noisy_machine_says_nothing_of_separate_runs() -> None:
    loud = result(Series("x", "s", times(1)), exact("n", "n", 1), load=Load((9.0,), (9.0,), 0.4))
    found = pair(loud, result(Series("x", "s", times(2, middle=0.04)), exact("n", "n", 1)))
    assert [row.why for row in found.rows] == ["other processes had 40% of the CPUs", ""]
    # What is exact holds all the same, and is not all that was asked.
    assert [row.verdict for row in found.rows] == [Verdict.UNKNOWN, Verdict.SAME]
    assert found.unsaid == "x: other processes had 40% of the CPUs"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bench": "traffic"}, "benchmark: reload, traffic"),
        ({"options": {"pods": "3"}}, "option pods: 2, 3"),
        ({"machine": replace(machine(), kernel="5.10.0")}, f"kernel: {machine().kernel!r}, '5.10.0'"),
        ({"machine": replace(machine(), mitigations={"meltdown": "Vulnerable"})}, "meltdown: "),
        ({"series": (Series("y", "s", times(1)),)}, "they have no metric in common"),
    ],
    ids=["bench", "options", "kernel", "mitigations", "metrics"],
)
def test_results_of_different_things_cannot_be_compared(change: dict[str, Any], said: str) -> None:
    made = result(Series("x", "s", times(1)))
    found = pair(made, replace(made, **change))
    assert any(each.startswith(said) for each in found.differences)
    assert not found.rows


def test_the_frequency_of_the_moment_is_no_difference() -> None:
    made = result(Series("x", "s", times(1)))
    assert not pair(made, replace(made, machine=replace(machine(), frequency_mhz=1.0))).differences


def test_sides_of_one_run_are_paired_round_by_round() -> None:
    """The load of the machine, which both sides have, is larger than what they differ by."""
    drift = [1 + number for number in range(20)]
    a = tuple(0.02 * load * (1 + number % 3 / 200) for number, load in enumerate(drift))
    b = tuple(1.03 * each * (1 + number % 2 / 200) for number, each in enumerate(a))
    series = [Series("reload", "s", values, side=side, group="rounds") for side, values in (("A", a), ("B", b))]
    both = result(*series, sides=("A", "B"))
    (found,) = compare([Named("ab.json", both)], 0.02)
    (row,) = found.rows
    assert row.difference is not None
    assert row.difference.paired
    assert row.verdict is Verdict.WORSE
    assert row.change == pytest.approx(0.0325, abs=0.003)
    # Two separate runs of the same values say nothing.
    assert one(a, b).verdict is Verdict.UNKNOWN


def test_warm_up_does_not_count_and_a_block_is_one_round() -> None:
    values = (9.0,) * 10 + tuple(n for each in times(1, rounds=10) for n in (each, 5.0, each))
    series = [Series("x", "s", values[1:], side=side, group="g", block=3) for side in "AB"]
    both = result(*series, sides=("A", "B"), course=Course(rounds=10, warm_up=3))
    (found,) = compare([Named("ab.json", both)], 0.02)
    assert found.rows[0].rounds == (10, 10)
    assert found.rows[0].old is not None
    assert found.rows[0].old.high < 0.03


def test_a_single_result_without_sides_has_nothing_to_compare() -> None:
    (found,) = compare([Named("x.json", result(Series("x", "s", times(1))))], 0.02)
    assert found.differences == ("it has no second side: name another result",)


def test_correction_counts_all_metrics_of_all_results() -> None:
    old, new = times(1, rounds=6), times(2, middle=0.03, rounds=6)
    alone = pair(result(Series("x", "s", old)), result(Series("x", "s", new))).rows[0]
    assert alone.verdict is Verdict.WORSE
    many = [Series(f"same {n}", "s", old) for n in range(50)]
    more = result(*many, Series("x", "s", new))
    found = compare([Named("o", result(*many, Series("x", "s", old))), Named("1", more), Named("2", more)], 0.02)
    assert all(each.rows[-1].verdict is Verdict.UNKNOWN for each in found)
    assert alone.p is not None
    assert found[0].rows[-1].p == pytest.approx(102 * alone.p)


def test_geometric_mean_counts_costs() -> None:
    slow, fast = times(1, middle=0.04), times(1, middle=0.02)
    old = result(Series("a", "s", fast), Series("b", "s", fast), Series("r", "1/s", fast, Better.HIGHER))
    new = result(Series("a", "s", slow), Series("b", "s", fast), Series("r", "1/s", slow, Better.HIGHER))
    assert pair(old, new).means() == {"s": pytest.approx(2**0.5)}


def sides(*metrics: tuple[str, tuple[float, ...], tuple[float, ...]]) -> Comparison:
    series = [
        Series(name, "s", values, side=side, group="rounds" if values else "", refusal="" if values else "no")
        for name, *both in metrics
        for side, values in zip("AB", both, strict=True)
    ]
    (found,) = compare([Named("ab.json", result(*series, sides=("A", "B"), bench="ab"))], 0.02)
    return found


def test_of_two_sides_the_reload_decides_whether_anything_is_said() -> None:
    """A step that stays the same does not make up for a reload of which nothing can be said."""
    step = ("step: commit", times(3), times(4))
    assert sides(("reload", times(1), times(2)), step).unsaid == ""
    assert (
        sides(("reload", times(1), times(2)), ("step: commit", times(1, noise=0.3), times(2, noise=0.3))).unsaid == ""
    )
    assert sides(("reload", times(1, noise=0.3), times(2, noise=0.3)), step).unsaid.startswith("reload: noise: ±")
    assert sides(("reload", times(1), ()), step).unsaid == "reload: not measured: no"


@pytest.mark.parametrize(
    ("bench", "names", "decide"),
    [
        ("ab", ["reload", "CPU time", "step: commit"], {"reload"}),
        ("releases", ["reload", "phase: load"], {"reload"}),
        ("run", ["reload: pod", "reload: host", "step: commit", "worst delay"], {"reload: pod"}),
        ("run", ["reload: host", "step: commit"], {"reload: host", "step: commit"}),
        (
            "reload",
            ["reload: floor: the bare system calls", "reload: pipeline, verifying in 2 threads", "many: 2 pods"],
            {"reload: pipeline, verifying in 2 threads"},
        ),
        ("traffic", ["UDP", "TCP"], {"UDP", "TCP"}),
    ],
)
def test_what_decides(bench: str, names: list[str], decide: set[str]) -> None:
    assert deciding(bench, names) == decide


def test_what_a_side_was_asked_for_and_cannot_do_is_no_success() -> None:
    """As with --trials: a reload under traffic that fails has no delay, and has lost nothing that anybody counted."""
    reload, delay = ("reload", times(1), times(2)), "worst delay: all is reloaded"
    assert sides(reload, (delay, times(3, rounds=2), ())).unsaid == f"{delay}: not measured: no"
    assert sides(reload, (delay, (), ())).unsaid == f"{delay}: not measured: no"
    assert sides(reload, (delay, times(3, rounds=2), times(4, rounds=2))).unsaid == ""


def test_of_traffic_that_got_no_cpu_nothing_is_said_but_what_it_lost() -> None:
    """Packets that were not sent cannot be lost."""

    def found(lost: int, starved: float) -> Comparison:
        series = [
            each
            for number, side in enumerate("AB")
            for each in (
                Series("reload", "s", times(number), side=side, group="rounds"),
                Series("worst delay: all", "s", times(number, rounds=8), side=side),
                Series(f"{STARVED}: all", "share", (0.0, starved * number), side=side),
                exact("lost: all", "packets", lost * number, side=side),
            )
        ]
        (both,) = compare([Named("ab.json", result(*series, sides=("A", "B"), bench="ab"))], 0.02)
        return both

    why = "the traffic had no CPU for 40% of a trial"
    blind = found(0, 0.4)
    assert {row.name: row.why for row in blind.rows if row.why == why} == {"worst delay: all": why, "lost: all": why}
    assert blind.unsaid == f"worst delay: all: {why}; lost: all: {why}"
    assert [row.name for row in found(2, 0.4).regressions] == ["lost: all"]
    assert found(0, 0.1).unsaid == ""


def test_without_a_metric_that_stands_for_all_every_one_decides() -> None:
    one, two = Series("UDP", "s", times(1)), Series("TCP", "s", times(2))
    both = result(one, two, bench="traffic")
    assert pair(both, both).unsaid == ""
    assert pair(both, result(one, bench="traffic")).unsaid == "TCP: not in new.json"
    refused = result(one, Series("TCP", "s", (), refusal="no route"), bench="traffic")
    assert pair(both, refused).unsaid == "TCP: not measured: no route"


def test_reasons_are_counted_if_there_are_many() -> None:
    few = result(*(Series(f"m{number}", "s", times(number, rounds=2)) for number in range(5)))
    why = "2 of the 6 rounds that are needed"
    assert pair(few, few).unsaid == f"m0: {why}; m1: {why}; m2: {why}; and 2 more metrics"
