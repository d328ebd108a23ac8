"""Steps in series of which the truth is known. What is promised is counted with a fixed seed."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.results.compare import ALARM
from lab.results.steps import SHORTEST, LibraryMissing, fewest, find_steps
from tests.lab.results.samples import NEEDS_RUPTURES

pytestmark = NEEDS_RUPTURES

SERIES = 200
FOUND = 0.95
"""The promised share of steps of 3 % that are found when they are LATE commits old, of one metric among METRICS."""

METRICS, LATE = 10, 6


def course(noise: np.random.Generator, commits: int) -> NDArray[np.float64]:
    """Return the medians of results: 0.7 % of noise, and one of twenty, at random, is off by a tenth."""
    return np.asarray(0.02 * noise.lognormal(0, 0.007, commits) * (1 + 0.1 * (noise.random(commits) < 0.05)))


def test_of_series_without_steps_at_most_the_promised_share_raises_an_alarm() -> None:
    noise = np.random.default_rng(21)
    alarms = sum(bool(find_steps(course(noise, 30).tolist(), ALARM)) for _ in range(SERIES))
    assert 0 < alarms / SERIES <= ALARM + 2 * math.sqrt(ALARM * (1 - ALARM) / SERIES)


def test_a_step_of_3_percent_is_found_in_the_promised_share_and_between_the_right_commits() -> None:
    noise, found, placed, covered = np.random.default_rng(22), 0, 0, 0
    number = SERIES // 4
    for _ in range(number):
        values = course(noise, 40)
        at = len(values) - LATE
        values[at:] *= 1.03
        steps = [step for step in find_steps(values.tolist(), ALARM / METRICS) if step.change.middle >= 0.02]
        found += bool(steps)
        placed += any(abs(step.at - at) <= 1 for step in steps)
        covered += any(step.change.low <= 0.03 <= step.change.high for step in steps)
    assert found / number >= FOUND
    assert placed / found >= FOUND
    assert covered / found >= 0.9


def test_what_goes_up_and_comes_down_again_is_two_steps() -> None:
    values = 0.02 * np.random.default_rng(3).lognormal(0, 0.005, 45)
    values[15:30] *= 1.05
    up, down = find_steps(values.tolist(), ALARM)
    assert (up.at, down.at) == (15, 30)
    assert up.change.middle > 0.04
    assert down.change.middle < -0.04


def test_accidents_of_one_commit_or_two_are_no_steps() -> None:
    values = 0.02 * np.random.default_rng(4).lognormal(0, 0.005, 30)
    values[10] *= 1.5
    values[-2:] *= 1.5
    assert find_steps(values.tolist(), ALARM) == []


@pytest.mark.parametrize("number", [0, 1, 2 * SHORTEST - 1, 50])
def test_a_series_of_one_value_over_and_over_has_no_step(number: int) -> None:
    assert find_steps([0.02] * number, ALARM) == []


@pytest.mark.parametrize("level", [ALARM, ALARM / 14, ALARM / 60])
def test_a_series_that_is_just_long_enough_shows_a_clear_step(level: float) -> None:
    half = fewest(level) // 2
    values = 0.02 * np.random.default_rng(5).lognormal(0, 0.001, fewest(level))
    values[half:] *= 2
    assert [step.at for step in find_steps(values.tolist(), level)] == [half]


def test_a_library_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(LibraryMissing, match="the package ruptures, which is not there for this version of Python"):
        find_steps([0.02] * 20, ALARM)
