"""A fault as data: one form each, patches that must fit, and word of whether it took effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datapath.reload.step import Plan
from lab.corpus.fault import BadFault, Fault, Patch
from lab.corpus.models import models
from lab.corpus.steps import skipped


def nothing(plan: Plan) -> Plan:
    return plan


@pytest.mark.parametrize(
    "forms", [{}, {"change": nothing, "patches": (Patch("bpf_lxc.c", "a", "b"),)}], ids=["none", "two"]
)
def test_a_fault_has_one_form(forms: dict[str, object]) -> None:
    with pytest.raises(BadFault, match="give either change, install or patches"):
        Fault("x", "named", "is wrong", **forms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patch", "times"),
    [
        (Patch("bpf_lxc.c", "no such text", ""), 0),
        (Patch("bpf_lxc.c", "return", ""), "[0-9]+"),
        (Patch("x.c", "return", ""), 0),
    ],
    ids=["absent", "several times", "no such file"],
)
def test_a_patch_must_fit_in_one_place(tmp_path: Path, patch: Patch, times: object) -> None:
    with pytest.raises(BadFault, match=rf"its old text stands in {patch.file} {times} times"):
        Fault("x", "c", "is wrong", patches=(patch,)).patched(tmp_path)


def test_a_patched_copy_has_the_new_text(tmp_path: Path) -> None:
    patch = Patch("bpf_lxc.c", "SPDX-License-Identifier", "patched")
    library = Fault("x", "c", "is wrong", patches=(patch,)).patched(tmp_path)
    assert (library / "bpf_lxc.c").read_text().splitlines()[0].count("patched") == 1
    assert (library / "include").is_dir()


class Recorded:
    """Stands where an agent does: all that a fault sets of it is `change`."""

    change = staticmethod(nothing)


def test_it_tells_when_a_plan_became_another_one() -> None:
    applied: list[int] = []
    plan = models()["pod"]
    for change, times in ((nothing, 0), (lambda plan: replace(plan, steps=plan.steps[1:]), 1)):
        agent = Recorded()
        Fault("x", "plan", "is wrong", change=change).put_into(agent, lambda: applied.append(1))  # type: ignore[arg-type]
        assert agent.change(plan) == change(plan)
        assert len(applied) == times


def test_a_step_that_goes_wrong_tells_when_it_does() -> None:
    applied: list[int] = []
    plan = models()["pod"]
    agent = Recorded()
    fault = Fault("x", "plan", "is wrong", change=lambda plan: plan.change(skipped))
    fault.put_into(agent, lambda: applied.append(1))  # type: ignore[arg-type]
    changed = agent.change(plan)
    assert applied == []
    changed.steps[0].apply(None)  # type: ignore[arg-type]
    assert applied == [1]
