"""What a scenario may say about itself (lab.watch.invariants.Expected), and what its reloads may say."""

from __future__ import annotations

from typing import Any

import pytest

from datapath.reload.outcome import Outcome
from lab.traffic.report import Event, FlowReport, TrafficReport
from lab.watch.invariants import BadExpectation, Expected, check_traffic, check_warnings


def outcome(*warnings: str) -> Outcome:
    return Outcome("pod-1", 101, 2, (), (), warnings, ())


def test_warnings_that_nobody_expects_are_violations() -> None:
    outcomes = [outcome(), outcome("map x: 3 connections do not fit into 8", "device eth7 does not exist: left out")]
    (violation,) = check_warnings(outcomes, Expected(warnings=frozenset({"eth7"})))
    assert str(violation) == "invariant 11: reload of pod-1 warns: map x: 3 connections do not fit into 8"
    assert len(check_warnings(outcomes, Expected())) == 2
    assert check_warnings(outcomes, Expected(warnings=frozenset({"eth7", "do not fit"}))) == []


def test_findings_of_the_traffic_are_violations_with_their_times() -> None:
    events = (Event("retransmit", 30), Event("retransmit", 20), Event("detour", 40), Event("zero-window", 50))
    flow = FlowReport("t", "tcp", 9, 9, 9, 0, events=events)
    report = TrafficReport(1, 99, 2, 3, 4, (), (flow,))
    found = check_traffic(report, Expected(other_path=True))
    assert [(str(violation), violation.at) for violation in found] == [
        ("invariant 7: t: 2 segments retransmitted", (20, 30)),
        ("invariant 7: t: 1 times the receiver's window was closed", (50,)),
    ]
    (other,) = check_traffic(report, Expected(findings=frozenset({"retransmit", "zero-window"})))
    assert other.at == (40,)


def test_the_order_of_packets_is_a_violation_unless_it_is_not_judged() -> None:
    flow = FlowReport("t", "udp", 9, 9, 9, 0, events=(Event("reordered", 30), Event("duplicate", 40)))
    report = TrafficReport(1, 99, 2, 3, 4, (), (flow,))
    assert [violation.at for violation in check_traffic(report, Expected())] == [(30,), (40,)]
    assert [violation.at for violation in check_traffic(report, Expected(), in_order=False)] == [(40,)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warnings": "eth7"}, "warnings is the text 'eth7': give a set of texts"),
        ({"migrated": "cilium_lxc"}, "migrated is the text 'cilium_lxc': give a set of texts"),
        ({"network": "eth0"}, "network is the text 'eth0': give a set of texts"),
        ({"warnings": {""}}, "warnings: every text contains the empty one"),
        ({"findings": {"lose"}}, "findings: there is no kind lose; there are corrupted, detour, "),
        ({"warning": {"eth7"}}, "nothing called warning can be expected; there are drops, migrated, "),
    ],
)
def test_expectations_that_would_match_something_else_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadExpectation, match=words):
        Expected().and_also(**changes)
