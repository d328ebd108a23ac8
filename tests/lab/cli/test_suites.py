"""What pytest is called with for suites of ours and for those of somebody else."""

from __future__ import annotations

from pathlib import Path

from lab.cli.suites import our_suites, pytest_arguments


def test_only_our_suites_choose_plugins_and_configuration() -> None:
    ours = pytest_arguments([])
    assert ours[-1] == str(our_suites())
    assert "no:hypothesispytest" in ours
    assert str(our_suites() / "suite.ini") in ours
    assert pytest_arguments([Path("a"), Path("b::c")]) == ["a", "b::c"]
