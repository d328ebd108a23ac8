"""Loaders that take the policy program of pod-1 away for a while: packets to it are lost then, and only then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from datapath.base.mapnames import POLICY_CALLS
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace

FIRST_POD = 101
"""The endpoint id of pod-1, and its slot in cilium_call_policy."""
GAP = 0.06
"""Seconds without the pod's policy program: a few packets of each flow."""


@dataclass(frozen=True)
class EmptySlot(Step):
    """Take the policy program of pod-1 away, and put it back after `gap` seconds; 0: leave it to FillSlot."""

    gap: float
    name = "empty slot"

    def describe(self) -> str:
        return "empty the slot of pod-1 in cilium_call_policy"

    def apply(self, work: Workspace) -> None:
        with open_pin(work.config.globals / POLICY_CALLS) as array:
            program = progarray.open_program_at(array.fd, FIRST_POD)
            assert program is not None
            try:
                progarray.clear(array.fd, FIRST_POD)
                time.sleep(self.gap)
                if self.gap:
                    progarray.put(array.fd, FIRST_POD, program)
            finally:
                os.close(program)


def before(name: str, *steps: Step) -> Callable[[Plan], Plan]:
    """Return a loader that does something more before the first step of this name."""

    def change(plan: Plan) -> Plan:
        at = [step.name for step in plan.steps].index(name)
        return replace(plan, steps=(*plan.steps[:at], *steps, *plan.steps[at:]))

    return change
