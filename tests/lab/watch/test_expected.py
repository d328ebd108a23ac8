"""What a scenario may say about itself (lab.watch.invariants.Expected), and what its reloads may say."""

from __future__ import annotations

from typing import Any

import pytest

from datapath.reload.outcome import Outcome
from lab.watch.invariants import BadExpectation, Expected, check_warnings


def outcome(*warnings: str) -> Outcome:
    return Outcome("pod-1", 101, 2, (), (), warnings, ())


def test_warnings_that_nobody_expects_are_violations() -> None:
    outcomes = [outcome(), outcome("map x: 3 connections do not fit into 8", "device eth7 does not exist: left out")]
    (violation,) = check_warnings(outcomes, Expected(warnings=frozenset({"eth7"})))
    assert str(violation) == "invariant 11: reload of pod-1 warns: map x: 3 connections do not fit into 8"
    assert len(check_warnings(outcomes, Expected())) == 2
    assert check_warnings(outcomes, Expected(warnings=frozenset({"eth7", "do not fit"}))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warnings": "eth7"}, "warnings is the text 'eth7': give a set of texts"),
        ({"migrated": "cilium_lxc"}, "migrated is the text 'cilium_lxc': give a set of texts"),
        ({"warnings": {""}}, "warnings: every warning contains the empty text"),
        ({"warning": {"eth7"}}, "nothing called warning can be expected; there are drops, migrated, "),
    ],
)
def test_expectations_that_would_match_something_else_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadExpectation, match=words):
        Expected().and_also(**changes)
