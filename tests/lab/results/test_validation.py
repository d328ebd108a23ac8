"""What a comparison promises, checked on runs of which the truth is known: tests/lab/results/samples.py has the noise.

tests/lab/results/recorded.py has runs that were measured: `make null-runs` and `tools/ab-runs` measure others.
"""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from lab.bench.ab import FEWEST_ROUNDS, enough, warm_up_of
from lab.bench.sides import SIDES
from lab.results.compare import ALARM, Named, Verdict, compare
from lab.results.deciding import RELOAD
from lab.results.result import Course, Result, Series
from tests.lab.results.recorded import recorded
from tests.lab.results.samples import lockstep, result, times

PAIRS = 200
RELOADS = 8
THRESHOLD = 0.02
FOUND = 0.95
"""The promised share of slow-downs of 3 % that are found at a precision of 1 %."""

MOST_ROUNDS = 120


def run(noise: np.random.Generator, *, slower: float) -> tuple[Result, int]:
    """Measure two sides of RELOADS metrics as `bench ab` does: stop at 1 % of the first one, find the warm-up."""
    sides = [lockstep(noise, MOST_ROUNDS, slower=slower) for _ in range(RELOADS)]
    first = [side.tolist() for side in sides[0]]
    rounds = next(
        (n for n in range(FEWEST_ROUNDS, MOST_ROUNDS) if enough([side[:n] for side in first], 0.01)), MOST_ROUNDS
    )
    warm = warm_up_of([side[:rounds] for side in first])
    series = [
        Series(RELOAD if number == 0 else f"step {number}", "s", tuple(values[:rounds]), side=name, group="rounds")
        for number, pair in enumerate(sides)
        for name, values in zip(SIDES, pair, strict=True)
    ]
    return result(*series, sides=SIDES, bench="ab", course=Course(rounds - warm, warm)), rounds


def test_of_null_runs_at_most_the_promised_share_raises_an_alarm() -> None:
    """An alarm is any metric that is called worse or better, of all RELOADS together; without Holm there are more."""
    noise, alarms, uncorrected = np.random.default_rng(11), 0, 0
    for _ in range(PAIRS):
        made, _rounds = run(noise, slower=0.0)
        # Whatever the size: the smallest threshold is the hardest.
        (found,) = compare([Named("null", made)], 1e-6)
        alarms += any(row.verdict in (Verdict.WORSE, Verdict.BETTER) for row in found.rows)
        uncorrected += any(row.difference is not None and row.difference.p < ALARM for row in found.rows)
    assert alarms / PAIRS <= most(PAIRS) < uncorrected / PAIRS


def most(runs: int) -> float:
    """Return the share of so many runs that may raise an alarm."""
    return ALARM + 2 * math.sqrt(ALARM * (1 - ALARM) / runs)


def test_of_recorded_null_runs_at_most_the_promised_share_raised_an_alarm() -> None:
    """What made-up noise may lack: the noise of a machine, of a metric with itself and with the others."""
    found = [each for run in recorded("null") for each in compare([Named("null", run)], 1e-6)]
    alarms = sum(any(row.verdict in (Verdict.WORSE, Verdict.BETTER) for row in each.rows) for each in found)
    uncorrected = sum(any(row.difference and row.difference.p < ALARM for row in each.rows) for each in found)
    assert len(found) == 127
    assert alarms / len(found) <= most(len(found)) < uncorrected / len(found)


def test_a_recorded_slow_down_of_3_to_4_percent_was_found_in_every_run() -> None:
    found = [each for run in recorded("planted") for each in compare([Named("planted", run)], THRESHOLD)]
    reloads = [next(row for row in each.rows if row.name == RELOAD) for each in found]
    assert [row.verdict for row in reloads] == [Verdict.WORSE] * 20
    assert 0.03 < median(row.change for row in reloads if row.change) < 0.045


def test_a_slow_down_of_3_percent_is_found_in_the_promised_share() -> None:
    noise, found, needed = np.random.default_rng(12), 0, []
    for _ in range(PAIRS // 2):
        made, rounds = run(noise, slower=0.03)
        needed.append(rounds)
        (comparison,) = compare([Named("planted", made)], THRESHOLD)
        found += RELOAD in [row.name for row in comparison.regressions]
    assert max(needed) < MOST_ROUNDS, "the precision was reached"
    assert found / len(needed) >= FOUND


@pytest.mark.parametrize(("slower", "worse"), [(0.0, False), (0.03, True)])
def test_separate_runs_differ_by_what_was_made_slower(slower: float, worse: bool) -> None:
    old, new = (result(Series("reload", "s", values)) for values in (times(1), times(2, middle=0.02 * (1 + slower))))
    (found,) = compare([Named("old", old), Named("new", new)], THRESHOLD)
    assert [row.verdict for row in found.rows] == [Verdict.WORSE if worse else Verdict.SAME]
