"""The systematic faults: each changes its own step, in plans of its own shape, and nothing else."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from datapath.reload.step import Plan
from lab.corpus.equivalents import REASONS
from lab.corpus.fault import Fault
from lab.corpus.faults import all_faults
from lab.corpus.models import models, place_of, shape_of
from lab.corpus.steps import Changed
from lab.corpus.systematic import WAYS, faults

FAULTS = {fault.name: fault for fault in faults()}


def changed(name: str, plan: Plan) -> Plan:
    fault = FAULTS[name]
    assert fault.change is not None
    return fault.change(plan)


def names(plan: Plan) -> list[str]:
    """Return what is done, step by step, with what is wrong with it."""
    return [f"{type(s).__name__} {s.name}" if isinstance(s, Changed) else s.name for s in plan.steps]


def test_no_two_faults_have_the_same_name() -> None:
    assert len({fault.name for fault in all_faults()}) == len(all_faults())


@pytest.mark.parametrize("shape", models())
def test_every_step_of_every_plan_goes_wrong_in_every_way(shape: str) -> None:
    plan = models()[shape]
    assert shape_of(plan) == shape
    for step in plan.steps:
        place = place_of(plan, step)
        where = f"{shape}/{step.name.replace(' ', '-')}{f':{place}' if place else ''}"
        ways = [way for way in WAYS if f"{where}/{way}" in FAULTS]
        assert ways == [w for w in WAYS if step.name != "commit" or w not in ("swapped", "after-commit")], where


def test_every_fault_changes_plans_of_its_shape_and_no_other() -> None:
    for fault in FAULTS.values():
        assert fault.change is not None
        differs = {shape for shape, plan in models().items() if fault.change(plan) != plan}
        # An obsolete device is none of a plan that was made without a state directory.
        wanted = set() if fault.name.endswith("obsolete-kept") else {fault.name.partition("/")[0]}
        assert differs == wanted, fault.name


def test_the_host_s_steps_are_told_apart_by_what_they_are_for() -> None:
    plan = models()["host"]
    after = changed("host/attach-ingress:cilium_net/dropped", plan)
    wrong = [step for step in after.steps if isinstance(step, Changed)]
    assert [(step.name, step.target) for step in wrong] == [("attach ingress", "cilium_net")]


def test_ways() -> None:
    plan = models()["pod"]
    before = names(plan)
    at = before.index("insert policy")

    def one(way: str) -> list[str]:
        return names(changed(f"pod/insert-policy/{way}", plan))

    assert one("dropped") == [*before[:at], "Skipped insert policy", *before[at + 1 :]]
    assert one("twice") == [*before[:at], "Twice insert policy", *before[at + 1 :]]
    assert one("not-undone") == [*before[:at], "Kept insert policy", *before[at + 1 :]]
    assert one("swapped") == [*before[:at], "attach ingress", "insert policy", *before[at + 2 :]]
    assert one("after-commit") == [*before[:at], "Skipped insert policy", *before[at + 1 :], "insert policy"]


@pytest.mark.parametrize("pattern", REASONS)
def test_every_reason_is_that_of_some_fault(pattern: str) -> None:
    found: list[Fault] = [fault for fault in FAULTS.values() if fnmatchcase(fault.name, pattern)]
    assert found
    assert all(fault.equivalent for fault in found)


def test_a_fault_that_never_takes_effect_says_why() -> None:
    idle = [fault for fault in FAULTS.values() if fault.idle]
    assert {fault.name.rpartition("/")[2] for fault in idle} == {"not-undone"}
    assert all(fault.equivalent for fault in idle)
