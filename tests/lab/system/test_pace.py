from __future__ import annotations

import os

import pytest

from lab.system.pace import ORDINARY, SLOWNESS_VARIABLE, BadSlowness, calibrate, factor_of, slowness


def test_an_ordinary_machine_has_the_factor_one() -> None:
    assert factor_of([ORDINARY / 2] * 9) == 1
    # Something else ran for a moment, or the machine is a little slower.
    assert factor_of([ORDINARY] * 5 + [ORDINARY * 40] * 4) == 1
    assert factor_of([ORDINARY * 2.9] * 9) == 1


def test_a_slow_machine_has_the_factor_by_which_it_is_slower() -> None:
    assert factor_of([ORDINARY * 12.2] * 9) == 12
    assert factor_of([ORDINARY * 1000] * 9) == 50


def test_a_factor_that_is_given_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "7.5")
    assert calibrate() == slowness() == 7.5


def test_the_tests_themselves_have_the_pace_of_the_machine() -> None:
    """From tests/conftest.py, in every worker."""
    assert SLOWNESS_VARIABLE in os.environ


def test_what_was_measured_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "1")
    monkeypatch.delenv(SLOWNESS_VARIABLE)
    assert slowness() == 1
    assert calibrate() == float(os.environ[SLOWNESS_VARIABLE])


@pytest.mark.parametrize("text", ["fast", "0", "0.5", "51", "nan", ""])
def test_a_factor_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, text)
    with pytest.raises(BadSlowness, match=r"RELOADLAB_SLOWNESS is .*, not a number from 1 to 50"):
        slowness()
