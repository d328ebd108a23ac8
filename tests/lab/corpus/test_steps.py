"""Faulty steps in the place of others: they have all that those have, whichever fault it is."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from itertools import product

import pytest

from datapath.endpoint import Attachment
from datapath.reload.plans import host_plan, overlay_plan, pod_plan
from datapath.reload.prepare import FillArrays, RepinMaps
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach, Detach
from lab.corpus.classic import leave_slots_empty
from lab.corpus.faults import all_faults
from lab.corpus.halves import FillAllBut
from lab.corpus.named_maps import ReuseCalls
from lab.corpus.steps import each_of, instead, skipped
from tests.datapath.reload.test_plans import CONFIG, HOST, LINKS, POD


def plans(attach: Attachment) -> list[Plan]:
    config = replace(CONFIG, attach=attach, filter_priority=7)
    pods = [
        pod_plan(config, replace(POD, ifindex=11).with_endpoint_routes(on), subject="pod-1") for on in (False, True)
    ]
    return [*pods, host_plan(config, HOST, LINKS, subject="host"), overlay_plan(config, 7)]


def values(step: Step, kind: type[Step]) -> dict[str, object]:
    return {field.name: getattr(step, field.name) for field in fields(kind)}


def test_a_faulty_step_takes_the_place_of_its_kind() -> None:
    for plan in plans(Attachment.TC):
        changed = instead({RepinMaps: ReuseCalls})(plan)
        assert [step.key for step in changed.steps] == [step.key for step in plan.steps]
        assert {type(step) for step in changed.steps} == {type(step) for step in plan.steps} - {RepinMaps} | {
            ReuseCalls
        }


def test_a_faulty_step_may_have_more_fields() -> None:
    change = instead({FillArrays: partial(FillAllBut, left_out=("tail_*",))})
    for plan in plans(Attachment.TC):
        made = [step for step in change(plan).steps if isinstance(step, FillAllBut)]
        assert [step.left_out for step in made] == [("tail_*",)] * sum(type(s) is FillArrays for s in plan.steps)
        assert change(plan) == leave_slots_empty("tail_*")(plan)


def test_each_step_of_a_kind_is_changed() -> None:
    off, on, *_ = plans(Attachment.TC)
    change = each_of(Detach, skipped)
    assert [step for step in change(off).steps if isinstance(step, Detach)] == []
    assert change(on) == on


@pytest.mark.parametrize("attach", [Attachment.TC, Attachment.TCX])
def test_a_faulty_step_loses_no_field_of_the_right_one(attach: Attachment) -> None:
    """Not the directory of its links, nor how it attaches; each fault that changes plans is tried."""
    wrong = []
    for plan, kind in product(plans(attach), (Attach, Detach)):
        right = {step.key: values(step, kind) for step in plan.steps if type(step) is kind}
        for fault in all_faults():
            changed = plan if fault.change is None else fault.change(plan)
            kept = [step for step in changed.steps if isinstance(step, kind) and step.key in right]
            wrong += [(fault.name, step.key) for step in kept if values(step, kind) != right[step.key]]
    assert wrong == []
