"""The course of a trial: what is run again, when a catch counts, and where the trial goes on when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.reload.step import Plan
from lab.corpus.course import Course, ordered
from lab.corpus.fault import Fault
from lab.corpus.verdict import Catch, How, Outcome, Trial, Verdict


def nothing(plan: Plan) -> Plan:
    return plan


FAULT = Fault("x", "plan", "is wrong", change=nothing, only=("test_that",))
PASSED, FAILED = Trial(("b",), ("b",), (), 5, 1.0), Trial(("b",), ("b",), (), 5, 1.0, Catch("b", How.INVARIANT, (6,)))
FIRST = Trial(("b",), ("a", "b"), (), 7, 1.0, FAILED.catch)
"""What the first process finds: b fails."""


def course(*parts: Trial) -> Course:
    """Return the course of a trial on a, b, c and d whose processes have found these."""
    found = Course(FAULT, ("a", "b", "c", "d"))
    for part in parts:
        found.note(part)
    return found


def test_a_trial_begins_with_all_scenarios() -> None:
    assert course().next_scenarios() == ("a", "b", "c", "d")


def test_a_scenario_that_failed_is_run_alone() -> None:
    after = course(FIRST)
    assert after.next_scenarios() == ("b",)
    assert after.trial.catch is None


@pytest.mark.parametrize(("again", "tries"), [((FAILED,), 2), ((PASSED, FAILED), 3)], ids=["at once", "of three"])
def test_what_fails_twice_is_caught(again: tuple[Trial, ...], tries: int) -> None:
    after = course(FIRST, *again)
    assert after.next_scenarios() == ()
    assert after.trial.catch == Catch("b", How.INVARIANT, (6,), tries=tries)
    assert (after.trial.scenarios, after.trial.applied, after.trial.unconfirmed) == (("a", "b"), ("b",), ())
    # Seconds of all runs, packets of the first.
    assert (after.trial.seconds, after.trial.sent) == (1.0 + len(again), 7)


def test_one_failure_is_enough_if_no_more_are_needed() -> None:
    after = Course(FAULT, ("a", "b", "c", "d"), needed=1)
    after.note(FIRST)
    assert after.next_scenarios() == ()
    assert after.trial.catch == Catch("b", How.INVARIANT, (6,), tries=1)


def test_what_does_not_fail_again_is_unconfirmed() -> None:
    """The trial goes on behind it, and may still catch the fault."""
    after = course(FIRST, PASSED, PASSED)
    assert after.next_scenarios() == ("c", "d")
    assert after.trial.unconfirmed == (Catch("b", How.INVARIANT, (6,), tries=3),)
    failing = Trial(("c",), ("c",), catch=Catch("c", How.HUNG))
    after.note(failing)
    assert after.next_scenarios() == ("c",)
    after.note(failing)
    assert after.next_scenarios() == ()
    assert after.trial.catch == Catch("c", How.HUNG, tries=2)
    assert len(after.trial.unconfirmed) == 1


BLIND = replace(PASSED, blind=("b",))


def test_a_repetition_without_a_verdict_is_no_try() -> None:
    """Traffic that got no CPU cannot say whether it fails again."""
    after = course(FIRST, BLIND, PASSED, BLIND)
    assert after.next_scenarios() == ("b",)
    after.note(FAILED)
    assert after.trial.catch == Catch("b", How.INVARIANT, (6,), tries=3)


def test_repetitions_end_where_none_has_a_verdict() -> None:
    after = course(FIRST, BLIND, BLIND, BLIND)
    assert after.next_scenarios() == ("c", "d")
    assert (after.trial.blind, after.trial.unconfirmed) == (("b",), (FAILED.catch,))
    after.note(Trial(("c",), ("c", "d")))
    assert Verdict.of(FAULT, after.trial).outcome is Outcome.NO_VERDICT


def test_a_failure_without_effect_confirms_nothing() -> None:
    alarm = replace(PASSED, applied=(), false_alarm=FAILED.catch)
    after = course(FIRST, alarm, alarm)
    assert after.next_scenarios() == ("c", "d")
    assert after.trial.false_alarm is None


def test_a_false_alarm_is_kept_and_the_others_follow() -> None:
    after = course(Trial((), ("a",), false_alarm=Catch("a", How.DIED)))
    assert after.next_scenarios() == ("b", "c", "d")
    after.note(Trial(("b",), ("b", "c", "d")))
    assert after.next_scenarios() == ()
    assert after.trial.false_alarm == Catch("a", How.DIED)
    assert after.trial.scenarios == ("a", "b", "c", "d")


def test_what_had_no_verdict_is_run_again_when_the_others_have_been() -> None:
    """Once: it may be blind again."""
    blind = Trial(("a", "b"), ("a", "b", "c", "d"), ("b",))
    after = course(blind)
    assert (after.next_scenarios(), after.trial.blind) == (("b",), ())
    after.note(Trial(("b",), ("b",), ("b",)))
    assert (after.next_scenarios(), after.trial.blind) == ((), ("b",))
    assert (after.trial.scenarios, after.trial.applied) == (("a", "b", "c", "d"), ("a", "b"))
    after = course(blind, PASSED)
    assert (after.next_scenarios(), after.trial.blind) == ((), ())


def test_what_ran_before_an_error_is_kept() -> None:
    after = course(Trial(("b",), ("a", "b"), (), 7, 1.0, error="exit code 1"))
    assert (after.trial.scenarios, after.trial.applied, after.trial.sent) == (("a", "b"), ("b",), 7)


@pytest.mark.parametrize("parts", [(), (FIRST,)], ids=["at the first", "at a repetition"])
def test_an_error_ends_a_trial(parts: tuple[Trial, ...]) -> None:
    after = course(*parts, Trial(error="exit code 1"))
    assert (after.next_scenarios(), after.trial.error, after.trial.catch) == ((), "exit code 1", None)


def test_the_control_is_not_repeated() -> None:
    control = Course(None, ("b",))
    control.note(FAILED)
    assert control.next_scenarios() == ()
    assert control.trial.catch == FAILED.catch


def test_a_control_without_a_verdict_is_run_again() -> None:
    """Traffic that got no CPU says nothing about the scenario."""
    control = Course(None, ("b",))
    blind = Trial((), ("b",), ("b",), 5, 1.0)
    control.note(blind)
    assert control.next_scenarios() == ("b",)
    control.note(blind)
    assert (control.next_scenarios(), control.trial.blind) == ((), ("b",))


def test_hints_come_first_and_none_is_left_out(request: pytest.FixtureRequest) -> None:
    class Item:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

    items = [Item(name) for name in ("a", "test_rollback", "test_hitless", "test_that")]
    wanted = ["test_that", "test_hitless", "test_rollback", "a"]
    assert ordered(FAULT, items) == wanted  # type: ignore[arg-type]
