"""What an error says of the violations of a scenario."""

from __future__ import annotations

from lab.scenario.verdict import SHOWN, InvariantsViolated
from lab.watch.violation import Violation


def test_many_violations_of_an_invariant_do_not_hide_the_others() -> None:
    found = [Violation(14, f"difference {number}") for number in range(SHOWN + 3)] + [Violation(7, "lost")]
    error = InvariantsViolated(found)
    lines = str(error).splitlines()
    assert lines[:3] == ["invariants violated:", "  invariant 7: lost", "  invariant 14: difference 0"]
    assert lines[-2:] == [f"  invariant 14: difference {SHOWN - 1}", "  invariant 14: and 3 more"]
    assert error.violations == tuple(found)
