"""trials.py: what went wrong in trials is told first, and nothing tried is not well."""

from __future__ import annotations

from typing import Any

import pytest

from lab.report.documents import KINDS, Document
from lab.report.trials import sentence, tables

FAULT: dict[str, Any] = {
    "fault": "skip-revert",
    "kind": "step",
    "outcome": "survived",
    "what": "skips <revert>",
    "trial": {"sent": 1200, "seconds": 1.0, "error": "", "catch": None},
}
CATCH = {"scenario": "scenarios/test_rollback.py::test_one", "text": "x", "step": "commit"}
CAUGHT = {**FAULT, "fault": "a", "outcome": "caught", "trial": {**FAULT["trial"], "catch": CATCH}}
CORPUS = {"format": 2, "complete": True, "seconds": 1.0, "faults": [CAUGHT, FAULT], "control": []}
CASE = {
    "what": "reload of pod-1",
    "fault": "ENOMEM",
    "ended": "failed: x",
    "wrong": ["a pin is left"],
    "command": "reloadlab faults pod-1",
}
SWEEP = {"cases": 3, "survived": 2, "failures": [CASE], "findings": ["b"], "gaps": ["c"], "seconds": 1.0}
CALL = {"round": 1, "reload": "pod-1", "number": 4, "call": "bpf(BPF_MAP_CREATE)"}
PROOF = {
    "calls": [CALL, CALL],
    "sent": 50,
    "lost": 1,
    "findings": [{"invariant": 7, "what": "lost", "call": 1}],
    "gaps": [],
}
MEETINGS = {
    "meetings": 5,
    "failures": [{"what": "a meets b", "wrong": ["x", "y"]}],
    "findings": [],
    "gaps": [],
    "seconds": 1.0,
}


def document(kind: str, content: dict[str, Any]) -> Document:
    return Document("file.json", kind, content)


@pytest.mark.parametrize(
    ("kind", "content", "words", "row"),
    [
        (
            "corpus",
            CORPUS,
            "2 known bugs put into the lab: 1 caught, 1 survived",
            ("skip-revert", "step", "survived", "-", "skips <revert>", "1,200"),
        ),
        (
            "sweep",
            SWEEP,
            "3 faults at system calls: 2 survived, 1 not",
            ("reload of pod-1", "ENOMEM", "failed: x", "a pin is left", "reloadlab faults pod-1"),
        ),
        (
            "proof",
            PROOF,
            "packets at 2 system calls: 50 packets sent, 1 lost, 1 finding",
            ("pod-1, round 1", "4", "bpf(BPF_MAP_CREATE)", "7", "lost"),
        ),
        ("meetings", MEETINGS, "5 meetings of two reloads: something was wrong at 1", ("a meets b", "x; y")),
    ],
    ids=["corpus", "sweep", "proof", "meetings"],
)
def test_what_went_wrong_is_the_first_row(kind: str, content: dict[str, Any], words: str, row: tuple[str, ...]) -> None:
    good, said = sentence(document(kind, content))
    assert (good, said) == (False, words)
    assert tables(document(kind, content))[0].rows[0] == row


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "run"])
def test_what_tried_nothing_is_not_well(kind: str) -> None:
    empty: dict[str, dict[str, Any]] = {
        "corpus": {**CORPUS, "faults": [], "complete": False},
        "sweep": {**SWEEP, "cases": 0, "survived": 0, "failures": [], "findings": []},
        "proof": {**PROOF, "calls": [], "findings": []},
        "meetings": {**MEETINGS, "meetings": 0, "failures": []},
    }
    assert not sentence(document(kind, empty[kind]))[0]


def test_a_finding_at_a_call_that_is_not_there_is_told_without_it() -> None:
    wrong = {**PROOF, "findings": [{"invariant": 7, "what": "lost", "call": 99}]}
    assert tables(document("proof", wrong))[0].rows[0] == ("-", "-", "no call in particular", "7", "lost")


@pytest.mark.parametrize(("passed", "outcome"), [(False, "failed"), (None, "not known")])
def test_a_control_that_did_not_pass_is_told(passed: bool | None, outcome: str) -> None:
    control = [{"scenario": "a", "passed": True}, {"scenario": "b", "passed": passed}]
    found = document("corpus", {**CORPUS, "faults": [CAUGHT], "control": control})
    good, said = sentence(found)
    assert (good, said) == (False, "1 known bug put into the lab: 1 caught; 1 scenario did not pass without a bug")
    assert tables(found)[-1].rows == [("b", outcome)]


def test_what_could_not_be_watched_is_told() -> None:
    assert tables(document("sweep", SWEEP))[-1].rows == [("c",)]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("proof", PROOF | {"lost": 0, "findings": []}),
        ("sweep", SWEEP | {"survived": 3, "failures": [], "findings": []}),
        ("meetings", MEETINGS | {"failures": []}),
    ],
)
def test_what_nothing_can_be_said_of_is_not_well(kind: str, content: dict[str, Any]) -> None:
    reason = "no verdict: the traffic got no CPU"
    assert sentence(document(kind, content | {"undecided": ""}))[0]
    good, said = sentence(document(kind, content | {"undecided": reason}))
    assert not good
    assert said.endswith(f"; {reason}")
