"""What named faults do to plans and steps: a step at another place, or half undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datapath.kernel.pins import Pin
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace


def moved_before(plan: Plan, kind: type[Step], first: Callable[[Step, Step], bool]) -> Plan:
    """Return the plan with each step of a kind put before the first step for which `first(step, that)` holds."""
    steps = list(plan.steps)
    for step in [step for step in plan.steps if type(step) is kind]:
        steps.remove(step)
        number = next((number for number, other in enumerate(steps) if first(step, other)), len(steps))
        steps.insert(number, step)
    return replace(plan, steps=tuple(steps))


def stay(step: Step, work: Workspace, pins: list[Pin], moved: list[Pin]) -> None:
    """Forget that these pins were moved aside: neither the commit nor the undo of `step` knows of them."""
    reverts = [pin.revert for pin in pins]
    for action in reversed(work.take_undo(step)):
        if action not in reverts:
            work.on_undo(step, action)
    for pin in pins:
        moved.remove(pin)
