"""Loaders that take the policy program of pod-1 away for a while: packets to it are lost then, and only then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from datapath.base.mapnames import METRICS, POLICY_CALLS
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.abi.reasons import MISSED_TAIL_CALL
from lab.watch.metrics import totals

FIRST_POD = 101
"""The endpoint id of pod-1, and its slot in cilium_call_policy."""
GAP, MISSED = 0.06, 20
"""Seconds without the pod's policy program, and tail calls that packets have missed by then: a few of each flow."""
PATIENCE = 5.0
"""Seconds after which no more missed tail calls are waited for."""


@dataclass(frozen=True)
class EmptySlot(Step):
    """Take the policy program of pod-1 away, and put it back; with a `gap` of 0, leave it to FillSlot.

    It is put back after `gap` seconds, or later, when `missed` tail calls are counted: however little CPU the traffic
    gets. `meanwhile` is done while the slot is empty.
    """

    gap: float = GAP
    missed: int = MISSED
    meanwhile: Callable[[], object] | None = None
    name = "empty slot"

    def describe(self) -> str:
        return "empty the slot of pod-1 in cilium_call_policy"

    def apply(self, work: Workspace) -> None:
        with open_pin(work.config.globals / POLICY_CALLS) as array:
            program = progarray.open_program_at(array.fd, FIRST_POD)
            assert program is not None
            try:
                before = _missed(work) if self.missed else 0
                progarray.clear(array.fd, FIRST_POD)
                time.sleep(self.gap)
                if self.meanwhile is not None:
                    self.meanwhile()
                deadline = time.monotonic() + PATIENCE
                while self.missed and _missed(work) - before < self.missed and time.monotonic() < deadline:
                    time.sleep(0.005)
                if self.gap:
                    progarray.put(array.fd, FIRST_POD, program)
            finally:
                os.close(program)


def _missed(work: Workspace) -> int:
    """Return how many tail calls packets have missed on the node so far."""
    with open_pin(work.config.globals / METRICS) as counters:
        return sum(value.count for key, value in totals(counters).items() if key.reason == MISSED_TAIL_CALL)


def before(name: str, *steps: Step) -> Callable[[Plan], Plan]:
    """Return a loader that does something more before the first step of this name."""

    def change(plan: Plan) -> Plan:
        at = [step.name for step in plan.steps].index(name)
        return replace(plan, steps=(*plan.steps[:at], *steps, *plan.steps[at:]))

    return change
