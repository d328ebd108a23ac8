from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lab.results.statistics import Difference, block_medians, holm, median_interval, paired, unpaired, warm_up


@pytest.mark.parametrize(("count", "bounds"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (100, (40, 61))])
def test_bounds_of_a_median_are_those_of_the_binomial_tables(count: int, bounds: tuple[int, int]) -> None:
    found = median_interval([float(n) for n in range(count, 0, -1)])
    assert found is not None
    assert (found.low, found.high) == bounds
    assert found.middle == (count + 1) / 2


def test_five_values_have_no_interval() -> None:
    assert median_interval([1.0] * 5) is None


def test_a_factor_on_everything_is_the_change() -> None:
    old = [1.0 + n / 7 for n in range(12)]
    for found in (unpaired(old, [1.1 * each for each in old]), paired(old, [1.1 * each for each in old])):
        assert found.change.middle == pytest.approx(0.1)
    # In every round alike, but small next to what the rounds differ by.
    assert found.paired
    assert found.effect == 1.0
    assert found.p == pytest.approx(2 / 2**12)
    assert unpaired(old, [1.1 * each for each in old]).p > 0.3


def test_equal_samples_do_not_differ() -> None:
    same = [2.0] * 8
    for found in (unpaired(same, same), paired(same, same)):
        assert (found.p, found.effect) == (1.0, 0.0)
        assert (found.change.low, found.change.middle, found.change.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("compare", [unpaired, paired])
def test_interval_has_the_true_change_in_95_of_100_cases(
    compare: Callable[[Sequence[float], Sequence[float]], Difference],
) -> None:
    noise, cases, hits = np.random.default_rng(5), 400, 0
    for _ in range(cases):
        old, new = noise.lognormal(0, 0.1, 15), 1.03 * noise.lognormal(0, 0.1, 15)
        change = compare(old.tolist(), new.tolist()).change
        hits += change.low <= 0.03 <= change.high
    # 95 % less three standard deviations.
    assert hits / cases > 0.95 - 3 * math.sqrt(0.95 * 0.05 / cases)


def test_a_hundred_thousand_values_are_quick_and_exact() -> None:
    noise = np.random.default_rng(1)
    old, new = noise.lognormal(0, 0.1, 100_000), 1.01 * noise.lognormal(0, 0.1, 100_000)
    for found in (unpaired(old.tolist(), new.tolist()), paired(old.tolist(), new.tolist())):
        assert found.change.low < 0.01 < found.change.high
        assert found.change.half_width < 0.0015


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_slow_rounds_at_the_beginning_are_the_warm_up() -> None:
    steady = [1.0, 1.01, 0.99, 1.0, 1.01, 1.0, 0.99, 1.0, 1.01, 0.99] * 2
    assert warm_up([[3.0, 2.0, 1.5, *steady], [3.1, 2.1, 1.4, *steady]]) == 3
    assert warm_up([steady, steady]) == 0


def test_noise_is_no_warm_up() -> None:
    """Without a look at whether they differ, rounds are left out of half of these."""
    noise = np.random.default_rng(3)
    found = [warm_up(noise.lognormal(0, 0.02, (2, 20)).tolist()) for _ in range(200)]
    assert sum(map(bool, found)) <= 10


def test_a_block_has_one_value() -> None:
    assert block_medians([1.0, 5.0, 2.0, 9.0, 7.0, 8.0], 3) == [2.0, 8.0]
    assert block_medians((1.0, 5.0), 1) == [1.0, 5.0]
