"""junit.py: XML that any reader takes, whatever is in names and messages, with counts that agree."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from lab.report.junit import FINDINGS, junit
from lab.scenario.records import Record
from tests.lab.report.runs import document, parallel

LOST = Record(
    "scenarios/test_hitless.py::test_lost[x]",
    "failed",
    1.25,
    message="invariants violated:\n  invariant 7: a -> b: 2 lost",
    violations=("invariant 7: a -> b: 2 lost", "invariant 6: dropped"),
    reloads=({"subject": "pod-1"},),
    sent=120,
    lost=2,
    gaps=("the kernel's log is not read",),
)
ALL = (
    Record("a.py::test_passed", "passed"),
    LOST,
    Record("a.py::test_error", "error", message="file a.py, line 3\nE       fixture 'x' not found\n>  available"),
    Record("a.py::test_skipped", "skipped", message="Skipped: no such kernel"),
    Record("a.py::test_later"),
    Record("a.py::test_stopped", message="stopped while it ran"),
    Record("a.py::test_running", "running"),
)


def suite_of(run: dict[str, Any]) -> Element:
    """Return the suite of the XML, which must have the parts and the counts of the format."""
    text = junit(run)
    whole = ElementTree.fromstring(text)
    assert (whole.tag, [child.tag for child in whole]) == ("testsuites", ["testsuite"])
    suite = whole[0]
    assert [child.tag for child in suite] == ["properties", *["testcase"] * (len(suite) - 1)]
    cases = suite.findall("testcase")
    allowed = [[], ["failure"], ["error"], ["skipped"]]
    for case in cases:
        tags = [child.tag for child in case if child.tag != "properties"]
        assert tags in allowed
    found = Counter(child.tag for case in cases for child in case)
    counts = {"tests": len(cases), "failures": found["failure"], "errors": found["error"]}
    for element in (whole, suite):
        assert {name: int(element.get(name, "")) for name in counts} == counts
    assert int(suite.get("skipped", "")) == found["skipped"]
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(names)) == len(names)
    for name in ("time", "timestamp"):
        assert re.fullmatch(r"[\d.]+|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get(name, ""))
    return suite


def case_of(run: dict[str, Any], name: str) -> Element:
    (found,) = (case for case in suite_of(run).findall("testcase") if case.get("name") == name)
    return found


def properties(element: Element) -> list[tuple[str | None, str | None]]:
    return [(each.get("name"), each.get("value")) for each in element.findall("properties/property")]


def test_outcomes_are_told_by_their_elements() -> None:
    cases = suite_of(document(ALL)).findall("testcase")
    told = {case.get("name"): [(child.tag, child.get("message")) for child in case[1:]] for case in cases}
    assert told == {
        "test_passed": [],
        "test_lost[x]": [("failure", "invariant 7: a -> b: 2 lost (and 1 more)")],
        "test_error": [("error", "fixture 'x' not found")],
        "test_skipped": [("skipped", "no such kernel")],
        "test_later": [("skipped", "not run: the run was stopped before it began")],
        "test_stopped": [("skipped", "not run: stopped while it ran")],
        "test_running": [("error", "the run ended while it ran")],
    }
    assert {case.get("classname") for case in cases} == {"a", "scenarios.test_hitless"}


def test_a_case_has_its_reloads_packets_and_findings() -> None:
    case = case_of(document(ALL), "test_lost[x]")
    assert case.get("time") == "1.250"
    assert properties(case) == [
        ("reloads", "1"),
        ("sent", "120"),
        ("lost", "2"),
        ("denied", "0"),
        ("kernel", dict(properties(suite_of(document(ALL))))["kernel"]),
        ("findings", "2"),
        ("finding", "invariant 7: a -> b: 2 lost"),
        ("finding", "invariant 6: dropped"),
        ("not checked", "the kernel's log is not read"),
    ]
    assert case.findtext("failure") == LOST.message


def test_the_run_tells_what_it_was_of() -> None:
    told = dict(properties(suite_of(document(ALL))))
    assert told["kernel"]
    assert told["cpus"]
    wanted = {"version": "0.1.0", "library": "/home/me/bpf", "defines": "POLICY_VERDICT_NOTIFY", "complete": "true"}
    assert told | wanted | {"loader": "built-in", "attach": "as each scenario says"} == told


def test_of_many_findings_the_rest_are_counted() -> None:
    many = Record("a.py::test_b", "failed", violations=tuple(map(str, range(FINDINGS + 3))))
    told = [value for name, value in properties(case_of(document([many]), "test_b")) if name == "finding"]
    assert told[-2:] == [str(FINDINGS - 1), "and 3 more"]


def test_what_ends_a_run_is_an_error() -> None:
    run = document([], error="pytest ended with exit code 3:\nINTERNALERROR> x")
    case = case_of(run, "the run")
    assert case.get("classname") == "reloadlab"
    (error,) = case.findall("error")
    assert error.get("message") == "the run did not come to its end: pytest ended with exit code 3:"
    assert error.text is not None
    assert error.text.endswith("INTERNALERROR> x")


def test_a_run_that_checked_nothing_is_an_error() -> None:
    case = case_of(document([ALL[3]]), "the run")
    assert [error.get("message") for error in case.findall("error")] == ["nothing was checked: all skipped"]


@pytest.mark.parametrize(("problems", "failures"), [((), 0), (("one", "two"), 1)])
def test_parallel_reloads_are_a_case(problems: tuple[str, ...], failures: int) -> None:
    case = case_of(document([ALL[0]], parallel(*problems)), "parallel reloads")
    assert len(case.findall("failure")) == failures
    assert ("reloads per second, workers 2", "52.0") in properties(case)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a<b>&\"c'", "a<b>&\"c'"),
        ("nul\0 esc\x1b del\x7f next\x85", "nul\\x00 esc\\x1b del\\x7f next\\x85"),
        ("\ud800 \ufffe \ufdd0", "\\ud800 \\ufffe \\ufdd0"),
        ("]]> <!-- é € 😀", "]]> <!-- é € 😀"),
    ],
)
def test_any_text_can_be_told(text: str, shown: str) -> None:
    record = Record(f"{text}.py::{text}", "failed", message=text, violations=(text,), gaps=(text,))
    case = case_of(document([record], error=text), shown)
    assert case.findtext("failure") == shown
    assert ("finding", shown) in properties(case)


def test_names_that_become_the_same_are_numbered() -> None:
    names = ("a.py::test_b[\x1b]", "a.py::test_b[\\x1b]", "a.py::test_b[\\x1b] (2)", "broken.py")
    cases = suite_of(document([Record(name, "passed") for name in names])).findall("testcase")
    assert [case.get("name") for case in cases] == [
        "test_b[\\x1b]",
        "test_b[\\x1b] (2)",
        "test_b[\\x1b] (2) (2)",
        "collection",
    ]
