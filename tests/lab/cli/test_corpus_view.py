"""What `reloadlab corpus` tells of its control."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lab.cli.corpus_view import Report, print_counts
from lab.corpus.verdict import Catch, Control, How, Trial

PASSED = Control("a", Trial((), ("a",)))


@pytest.mark.parametrize(
    ("trial", "passed", "said"),
    [
        (Trial((), ("b",), catch=Catch("b", How.RELOAD, text="no such map")), False, "b failed too:\nno such map"),
        (Trial(error="the process ended with exit code 3"), None, "b could not be run: the process ended"),
        (Trial((), ("b",), ("b",)), None, "b had no verdict, twice"),
    ],
    ids=["failed", "error", "no verdict"],
)
def test_a_control_that_did_not_pass_is_told(trial: Trial, passed: bool | None, said: str) -> None:
    """An error has no scenario of its own: the control names it."""
    report = Report(control=[PASSED, Control("b", trial)], complete=True)
    assert not report.good
    assert [(each["scenario"], each["passed"]) for each in report.to_json(1.0)["control"]] == [
        ("a", True),
        ("b", passed),
    ]
    out = io.StringIO()
    print_counts(Console(file=out, width=200), report)
    assert f"without a fault, {said}" in out.getvalue()
    assert "without a fault, a " not in out.getvalue()


def test_a_control_that_passed_is_well() -> None:
    assert Report(control=[PASSED], complete=True).good
