"""What a control plane can do wrong with maps when another release begins: changes of the plans of an agent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datapath.reload.prepare import MigrateMaps
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.loaders.plan import CreateMaps, Load

_FILLING = (MigrateMaps, CreateMaps, Load)
"""The steps after which the programs of a reload find all that the control plane knows."""


@dataclass(frozen=True)
class Unfilled(Step):
    """Does what another step does, but has the control plane fill no map that is new."""

    step: Step

    @property
    def name(self) -> str:
        return self.step.name

    def describe(self) -> str:
        return f"{self.step.describe()} (not filled by the control plane)"

    def apply(self, work: Workspace) -> None:
        told, work.on_new_map = work.on_new_map, None
        try:
            self.step.apply(work)
        finally:
            work.on_new_map = told

    def undo(self, work: Workspace) -> None:
        self.step.undo(work)


def filled_late(plan: Plan) -> Plan:
    """Return the plan whose new maps stay empty; Agent.sync fills them afterwards.

    An agent that `creates_maps` makes and fills some before its first reload.
    """
    return plan.change(lambda step: Unfilled(step.target, step) if isinstance(step, _FILLING) else step)


def kept_maps(plan: Plan) -> Plan:
    """Return the plan of a loader that is not ours, which finds the entries of another release in maps of its sizes."""
    return plan.change(lambda step: replace(step, keep=True) if isinstance(step, CreateMaps) else step)
