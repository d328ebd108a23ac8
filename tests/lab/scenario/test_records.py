from __future__ import annotations

from pathlib import Path

import pytest

from lab.scenario.records import (
    ERROR,
    FAILED,
    NOT_RUN,
    PASSED,
    RUNNING,
    SKIPPED,
    Record,
    file_name,
    read,
    short_name,
    write,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("a.py::test_b[x y]", "a.py::test_b[x-y]", id="special characters"),
        pytest.param("a.py::test_b[é]", "a.py::test_b[è]", id="not ASCII"),
        pytest.param("a.py::test_b[\ud800]", "a.py::test_b[\ud801]", id="surrogates"),
        pytest.param(f"a.py::test_b[1{'x' * 300}]", f"a.py::test_b[2{'x' * 300}]", id="long, differ at the start"),
        pytest.param(f"a.py::test_b[{'x' * 300}1]", f"a.py::test_b[{'x' * 300}2]", id="long, differ at the end"),
        pytest.param("a.py::TestB::test_c", "a.py::TestB__test_c", id="separators"),
    ],
)
def test_no_two_scenarios_share_a_file(tmp_path: Path, one: str, other: str) -> None:
    write(tmp_path, Record(one, FAILED))
    write(tmp_path, Record(other, PASSED))
    assert {record.name: record.outcome for record in read(tmp_path.glob("*.json"))} == {one: FAILED, other: PASSED}
    for name in (one, other):
        assert len(file_name(name).encode()) < 200


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record("a.py::test_b", FAILED, 1.5, "message", ("invariant 1: x",), ({"subject": "pod-1"},), 3, 1)
    write(tmp_path, record)
    assert read(tmp_path.iterdir()) == [record]


def test_the_worst_phase_counts() -> None:
    record = Record("a")
    for outcome, wanted in [(RUNNING, RUNNING), (PASSED, PASSED), (RUNNING, PASSED), (FAILED, FAILED), (ERROR, ERROR)]:
        record = record.worsened(outcome, outcome if outcome in (FAILED, ERROR) else "")
        assert record.outcome == wanted
    assert record.worsened(PASSED).outcome == ERROR
    assert record.message == "failed\n\nerror"


def test_what_has_no_end_is_settled_when_the_session_is_over() -> None:
    for outcome in (NOT_RUN, PASSED, SKIPPED, FAILED, ERROR):
        assert Record("a", outcome).settled(ended=False) == Record("a", outcome)
    assert Record("a", RUNNING).settled(ended=True) == Record("a", NOT_RUN, message="stopped while it ran")
    assert Record("a", RUNNING).settled(ended=False) == Record("a", ERROR, message="pytest died while it ran a")


def test_only_passed_and_skipped_are_good() -> None:
    outcomes = (NOT_RUN, RUNNING, PASSED, SKIPPED, FAILED, ERROR)
    assert [outcome for outcome in outcomes if Record("a", outcome).good] == [PASSED, SKIPPED]


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("scenarios/test_rollback.py::test_second_attach_fails", "rollback: second attach fails"),
        ("test_mine.py::test_mine[a-b]", "mine: mine[a-b]"),
        ("test_typo.py", "typo"),
    ],
)
def test_short_name(nodeid: str, name: str) -> None:
    assert short_name(nodeid) == name
