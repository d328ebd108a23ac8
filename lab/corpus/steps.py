"""Steps that go wrong in the same way whatever they do: skipped, done twice, done without an undo, done on one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain, repeat

from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace

GAP = 0.002
"""Seconds for which a faulty step leaves a hook without a program."""

Chooses = Callable[[Plan, Step], bool]
"""Tells whether a step of a plan is the one that goes wrong."""


def _unheard() -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Telling(Step):
    """A step in the place of another. It calls `applied` when it does, or takes back, something else than that one."""

    applied: Callable[[], object] = field(default=_unheard, compare=False, kw_only=True)


@dataclass(frozen=True)
class Changed(Telling):
    """A step in the place of `step`, under its name: gates stop at it, and what is undone is what `step` has done."""

    step: Step

    @property
    def name(self) -> str:
        return self.step.name

    def describe(self) -> str:
        return f"{self.step.describe()} ({type(self).__name__.lower()})"


@dataclass(frozen=True)
class Skipped(Changed):
    """Does nothing."""

    def apply(self, work: Workspace) -> None:
        self.applied()


@dataclass(frozen=True)
class Twice(Changed):
    """Does it, and then again."""

    def apply(self, work: Workspace) -> None:
        self.step.apply(work)
        self.applied()
        self.step.apply(work)


@dataclass(frozen=True)
class Kept(Changed):
    """Does it, and does not take it back."""

    def apply(self, work: Workspace) -> None:
        self.step.apply(work)

    def undo(self, work: Workspace) -> None:
        if work.take_undo(self.step):
            self.applied()


@dataclass(frozen=True)
class Misplaced(Changed):
    """Does it where the plan has another step, or none."""

    def describe(self) -> str:
        return self.step.describe()

    def apply(self, work: Workspace) -> None:
        self.applied()
        self.step.apply(work)

    def undo(self, work: Workspace) -> None:
        self.step.undo(work)


def skipped(step: Step) -> Step:
    """Return a step that does nothing in the place of this one."""
    return Skipped(step.target, step)


def twice(step: Step) -> Step:
    """Return a step that does twice what this one does."""
    return Twice(step.target, step)


def kept(step: Step) -> Step:
    """Return a step that is never taken back."""
    return Kept(step.target, step)


def in_place(faulty: Mapping[type[Step], Callable[..., Step]]) -> Callable[[Step], Step]:
    """Return what makes the faulty step of a step: by its kind, with the values of all of its fields.

    A faulty step is a subclass with the same fields; one with more of them is given as a `partial` that has those.
    """

    def change(step: Step) -> Step:
        make = faulty.get(type(step))
        return step if make is None else make(**{each.name: getattr(step, each.name) for each in fields(step)})

    return change


def instead(faulty: Mapping[type[Step], Callable[..., Step]]) -> Callable[[Plan], Plan]:
    """Return the change of a plan that puts faulty steps in the place of these kinds, as `in_place` does."""
    change = in_place(faulty)
    return lambda plan: plan.change(change)


def each_of(kind: type[Step], change: Callable[[Step], Step]) -> Callable[[Plan], Plan]:
    """Return the change of a plan that puts what `change` makes of it in the place of each step of a kind."""
    return lambda plan: each(plan, lambda _, step: isinstance(step, kind), change)


def each(plan: Plan, chosen: Chooses, change: Callable[[Step], Step]) -> Plan:
    """Return the plan with every chosen step replaced by what `change` makes of it."""
    return plan.change(lambda step: change(step) if chosen(plan, step) else step)


def swapped(plan: Plan, chosen: Chooses) -> Plan:
    """Return the plan with the first chosen step done after the one that follows it."""
    steps = list(plan.steps)
    for at, step in enumerate(steps[:-1]):
        if chosen(plan, step):
            steps[at : at + 2] = steps[at + 1], step
            break
    return replace(plan, steps=tuple(steps))


def postponed(plan: Plan, chosen: Chooses) -> Plan:
    """Return the plan with the chosen steps done when all others are, in their order; their places stay, empty."""
    late = [step for step in plan.steps if chosen(plan, step)]
    return replace(each(plan, chosen, skipped), steps=(*each(plan, chosen, skipped).steps, *late)) if late else plan


def telling(plan: Plan, changed: Plan, applied: Callable[[], object]) -> Plan:
    """Return `changed`, which calls `applied` as soon as something is done otherwise than by `plan`.

    Where `changed` only ends earlier, the steps that it lacks stand in it as skipped ones.
    """
    kept = len(changed.steps)
    lost = map(skipped, plan.steps[kept:] if changed.steps == plan.steps[:kept] else ())

    def told(step: Step, original: Step | None) -> Step:
        if isinstance(step, Telling):
            return replace(step, applied=applied)
        return step if step == original else Misplaced(step.target, step, applied=applied)

    pairs = zip((*changed.steps, *lost), chain(plan.steps, repeat(None)), strict=False)
    return replace(changed, steps=tuple(told(step, original) for step, original in pairs))
