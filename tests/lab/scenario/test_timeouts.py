"""A scenario has as much more time as the machine is slower; other tests have theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.system.pace import SLOWNESS_VARIABLE
from tests.nested import SHORT_NAMES

pytest_plugins = ["pytester"]

SUITE = """
import pytest

@pytest.fixture(autouse=True)
def told(request):
    mark = request.node.get_closest_marker("timeout")
    print(f"\\n{request.node.name}:", "none" if mark is None else (*mark.args, mark.kwargs))

@pytest.fixture
def reloadlab_scenario():
    return None

def test_of_all(reloadlab_scenario): pass

@pytest.mark.timeout(7, method="thread")
def test_of_its_own(reloadlab_scenario): pass

@pytest.mark.timeout(timeout=8)
def test_named(reloadlab_scenario): pass

@pytest.mark.timeout(0)
def test_unlimited(reloadlab_scenario): pass

def test_without_a_node(): pass
"""


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(("--timeout", "40"), "(120.0, {})"), (("-o", "timeout=50"), "(150.0, {})"), ((), "none")],
)
def test_a_scenario_gets_more_time(
    pytester: pytest.Pytester,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: tuple[str, ...],
    seconds: str,
) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "3")
    pytester.makepyfile(test_mine=SUITE)
    result = pytester.runpytest_subprocess("-s", *SHORT_NAMES, "--reloadlab-record", str(tmp_path), *limit)
    result.assert_outcomes(passed=5)
    told = dict(line.split(": ", 1) for line in result.outlines if line.startswith("test_") and ": " in line)
    assert told == {
        "test_of_all": seconds,
        "test_of_its_own": "(21.0, {'method': 'thread'})",
        "test_named": "(24.0, {})",
        "test_unlimited": "(0, {})",
        "test_without_a_node": "none",
    }


def test_an_ordinary_machine_changes_nothing(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "1")
    pytester.makepyfile(test_mine=SUITE)
    result = pytester.runpytest_subprocess("-s", *SHORT_NAMES, "--reloadlab-record", str(tmp_path), "--timeout", "40")
    result.stdout.fnmatch_lines(["test_of_all: none*"])
