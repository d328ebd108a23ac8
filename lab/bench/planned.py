"""What the objects of a planned reload ask of the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datapath.build.objectfile import ObjectFile
from datapath.build.template import Template
from datapath.kernel.hooks import Direction
from datapath.object.spec import CollectionSpec
from datapath.reload.prepare import WriteObject
from datapath.reload.step import Plan
from datapath.reload.switchover import Attach


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """One object of a reload, the interface that it is for, and its programs that are attached there."""

    file: ObjectFile
    template: Template
    ifname: str
    hooks: Mapping[Direction, str]

    def spec(self, *, all_programs: bool) -> CollectionSpec:
        """Return what is loaded, with its own constants and names: what the hooks reach, or everything."""
        whole = self.template.image.spec
        wanted = whole if all_programs else self.template.reached(tuple(self.hooks.values()))
        return wanted.substitute(self.file.substitution(self.template), strict=False)


def planned_objects(plan: Plan, template: Template) -> Sequence[PlannedObject]:
    """Return the objects of a plan, in their order; all are made of one template."""
    attaches = [step for step in plan.steps if isinstance(step, Attach)]
    found = []
    for step in plan.steps:
        if isinstance(step, WriteObject):
            own = [each for each in attaches if each.object == step.target]
            hooks = {each.direction: each.program for each in own}
            found.append(PlannedObject(step.object, template, own[0].target, hooks))
    return found
