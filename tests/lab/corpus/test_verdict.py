"""What a trial says of its fault."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from datapath.reload.step import Plan
from lab.corpus.fault import Fault
from lab.corpus.verdict import Catch, Control, How, Outcome, Trial, Verdict


def fault(equivalent: str = "", *, idle: bool = False) -> Fault:
    def change(plan: Plan) -> Plan:
        return plan

    return Fault("x", "plan", "is wrong", change=change, equivalent=equivalent, idle=idle)


CATCH = Catch("b", How.INVARIANT, (6, 7), 'during "commit" of pod-1')


@pytest.mark.parametrize(
    ("outcome", "trial", "why"),
    [
        (Outcome.CAUGHT, Trial(("a", "b"), ("a", "b"), catch=CATCH), ""),
        (Outcome.SURVIVED, Trial(("a",), ("a", "b")), ""),
        (Outcome.NO_VERDICT, Trial(("a",), ("a", "b"), ("a",)), ""),
        (Outcome.NO_VERDICT, Trial(("a",), ("a", "b"), ("a",)), "no packet meets it"),
        (Outcome.NOT_EXERCISED, Trial((), ("a", "b")), "no packet meets it"),
        (Outcome.NO_VERDICT, Trial(("a",), ("a",), ("a",), unconfirmed=(replace(CATCH, scenario="a"),)), ""),
        (Outcome.FLAKY, Trial(("a", "b"), ("a", "b"), ("a",), unconfirmed=(CATCH,)), ""),
        (Outcome.NOT_EXERCISED, Trial((), ("a", "b")), ""),
        (Outcome.FALSE_ALARM, Trial(("a",), ("a", "b"), false_alarm=CATCH), ""),
        (Outcome.FLAKY, Trial(("a", "b"), ("a", "b"), unconfirmed=(CATCH,), false_alarm=CATCH), ""),
        (Outcome.FLAKY, Trial(("a", "b"), ("a", "b"), unconfirmed=(CATCH,)), "no packet meets it"),
        (Outcome.CAUGHT, Trial(("a", "b"), ("a", "b"), catch=CATCH, unconfirmed=(CATCH,)), ""),
        (Outcome.ERROR, Trial(("a", "b"), ("a", "b"), unconfirmed=(CATCH,), error="exit code 1"), ""),
        (Outcome.EQUIVALENT, Trial(("a",), ("a", "b")), "no packet meets it"),
        (Outcome.EQUIVALENT, None, "no packet meets it"),
        (Outcome.REFUTED, Trial(("a", "b"), ("a", "b"), catch=CATCH), "no packet meets it"),
    ],
)
def test_outcomes(outcome: Outcome, trial: Trial | None, why: str) -> None:
    verdict = Verdict.of(fault(why), trial)
    assert verdict.outcome is outcome
    assert verdict.good == (outcome in (Outcome.CAUGHT, Outcome.EQUIVALENT))


def test_what_never_takes_effect_need_not_be_exercised() -> None:
    """Its reason says so; one that is caught is refuted all the same."""
    idle = fault("there is nothing to leave out", idle=True)
    assert Verdict.of(idle, Trial((), ("a", "b"))).outcome is Outcome.EQUIVALENT
    assert Verdict.of(idle, Trial(("a", "b"), ("a", "b"), catch=CATCH)).outcome is Outcome.REFUTED


@pytest.mark.parametrize(
    ("trial", "passed", "problem"),
    [
        (Trial((), ("b",)), True, ""),
        (Trial((), ("b",), catch=CATCH), False, "failed too:\n"),
        (Trial(error="exit code 1"), None, "could not be run: exit code 1"),
        (Trial((), ("b",), ("b",)), None, "had no verdict, twice"),
    ],
    ids=["passed", "failed", "error", "blind"],
)
def test_what_came_of_a_control(trial: Trial, passed: bool | None, problem: str) -> None:
    control = Control("b", trial)
    assert (control.passed, control.problem) == (passed, problem)
    assert control.to_json()["passed"] is passed
    assert control.to_json()["scenario"] == "b"


def test_a_trial_survives_json() -> None:
    trial = Trial(("b",), ("a", "b"), ("b",), 7, 1.5, CATCH, (CATCH, CATCH), CATCH, "exit code 1")
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


def test_of_several_failures_the_catch_weighs_most() -> None:
    trial = Trial(catch=CATCH, unconfirmed=(replace(CATCH, scenario="a"),), false_alarm=replace(CATCH, scenario="c"))
    assert trial.failure is CATCH
    assert trial.failed == ("b", "a", "c")
    assert Trial().failure is None


@pytest.mark.parametrize(
    ("catch", "text"),
    [
        (CATCH, "invariant 6, 7"),
        (Catch("b", How.ASSERTION, (7,)), "assertion, invariant 7"),
        (Catch("b", How.RELOAD), "reload"),
        (Catch("b", How.HUNG), "hung"),
    ],
)
def test_by_what_a_scenario_noticed_it(catch: Catch, text: str) -> None:
    assert catch.by == text
