"""What named faults do to plans: a step instead of another, or at another place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from datapath.reload.step import Plan, Step


def instead(plan: Plan, kind: type[Step], faulty: type[Step]) -> Plan:
    """Return the plan with each step of a kind replaced by one of its faulty subclass, which has the same fields."""

    def change(step: Step) -> Step:
        return faulty(*(getattr(step, field.name) for field in fields(step))) if type(step) is kind else step

    return plan.change(change)


def moved_before(plan: Plan, kind: type[Step], first: Callable[[Step, Step], bool]) -> Plan:
    """Return the plan with each step of a kind put before the first step for which `first(step, that)` holds."""
    steps = list(plan.steps)
    for step in [step for step in plan.steps if type(step) is kind]:
        steps.remove(step)
        number = next((number for number, other in enumerate(steps) if first(step, other)), len(steps))
        steps.insert(number, step)
    return replace(plan, steps=tuple(steps))
