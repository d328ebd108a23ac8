"""Policies that refuse a packet and do not say so."""

from __future__ import annotations

from lab.watch.attribution import Ownership
from lab.watch.checks.drops import check_verdicts
from lab.watch.drop_events import DropEvent
from lab.watch.drops import Dropped

POLICY, DENIED, MISSED = 133, 181, 140


def dropped(*reasons: int, refusals: dict[str, dict[int, int]]) -> Dropped:
    events = tuple(DropEvent(at, reason, "policy.h", 161, 101, 7, None) for at, reason in enumerate(reasons, 1))
    return Dropped(Ownership(()), {"node": events}, (), True, {}, {}, (), refusals)


def test_each_refusal_that_is_reported_is_right() -> None:
    found = dropped(POLICY, DENIED, POLICY, MISSED, refusals={"node": {POLICY: 2, DENIED: 1}})
    assert check_verdicts(found, "node") == []


def test_a_drop_without_its_verdict_is_found() -> None:
    """Each reason by itself: a verdict of the one makes up for none of the other."""
    found = dropped(POLICY, DENIED, POLICY, refusals={"node": {DENIED: 3}})
    (violation,) = check_verdicts(found, "node")
    assert violation.invariant == 6
    assert violation.what.startswith("2 of 2 packets dropped as Policy denied without a policy verdict: ")
    assert violation.at == (1, 3)


def test_where_messages_were_lost_nothing_is_said() -> None:
    assert check_verdicts(dropped(POLICY, refusals={}), "node") == []
