"""A fault as data: one form each, patches that must fit, and word of whether it took effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.corpus import steps
from lab.corpus.fault import BadFault, Fault, Patch
from lab.corpus.models import models


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


@dataclass(frozen=True)
class Note(Step):
    """Notes that it is done, and taken back."""

    notes: list[str]

    @property
    def name(self) -> str:
        return self.target

    def describe(self) -> str:
        return self.target

    def apply(self, work: Workspace) -> None:
        self.notes.append(self.target)

    def undo(self, work: Workspace) -> None:
        self.notes.append(f"no {self.target}")


@dataclass(frozen=True)
class Otherwise(Note):
    """Does it otherwise."""


def first(plan: Plan, step: Step) -> bool:
    return step is plan.steps[0]


@pytest.mark.parametrize(
    ("change", "done"),
    [
        (nothing, ["a", "b", "c"]),
        (lambda plan: replace(plan, steps=plan.steps[1:]), ["*", "b", "*", "c"]),
        (lambda plan: replace(plan, steps=plan.steps[:2]), ["a", "b", "*"]),
        (lambda plan: steps.swapped(plan, first), ["*", "b", "*", "a", "c"]),
        (lambda plan: steps.postponed(plan, first), ["*", "b", "c", "*", "a"]),
        (lambda plan: plan.change(lambda s: Otherwise("b", s.notes) if s.name == "b" else s), ["a", "*", "b", "c"]),
        (lambda plan: plan.change(steps.skipped), ["*", "*", "*"]),
        (lambda plan: plan.change(steps.kept), ["a", "b", "c"]),
    ],
    ids=["as it is", "without the first", "without the last", "swapped", "late", "otherwise", "skipped", "kept"],
)
def test_it_tells_when_something_is_done_otherwise(change: Callable[[Plan], Plan], done: list[str]) -> None:
    """A star stands for the word of it; none comes when a plan is made."""
    notes: list[str] = []
    agent = Recorded()
    Fault("x", "plan", "is wrong", change=change).put_into(agent, lambda: notes.append("*"))  # type: ignore[arg-type]
    plan = agent.change(Plan("pod-1", 1, 1, tuple(Note(name, notes) for name in "abc")))
    assert notes == []
    for step in plan.steps:
        step.apply(None)  # type: ignore[arg-type]
    assert notes == done


def test_a_step_at_another_place_is_taken_back_as_it_is() -> None:
    notes: list[str] = []
    plan = Plan("pod-1", 1, 1, tuple(Note(name, notes) for name in "ab"))
    moved = steps.telling(plan, steps.swapped(plan, first), lambda: None)
    for step in moved.steps:
        step.undo(None)  # type: ignore[arg-type]
    assert notes == ["no b", "no a"]


def test_a_plan_that_only_ends_earlier_keeps_its_places() -> None:
    """So that a gate there fires."""
    plan = models()["pod"]
    short = steps.telling(plan, replace(plan, steps=plan.steps[:-2]), lambda: None)
    assert [step.key for step in short.steps] == [step.key for step in plan.steps]
