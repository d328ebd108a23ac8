"""Objects for the measurements: one that is given as a file, reloaded as if it were a pod's template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.build import headers
from datapath.build.templates import Kind, Template
from datapath.endpoint import Endpoint
from datapath.errors import ReloadlabError
from datapath.kernel.hooks import Direction
from datapath.object.reader import ObjectImage, read_object
from datapath.object.spec import Substitution
from datapath.reload.prepare import Compile, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach, InsertPolicy
from datapath.reload.workspace import Workspace
from datapath.timing import VerifyTimes

ENTRIES = (
    ("cil_from_container", "cil_to_container"),
    ("cil_to_host", "cil_from_host"),
    ("cil_from_netdev", "cil_to_netdev"),
    ("cil_from_overlay", "cil_to_overlay"),
)
"""Entry programs, ingress and egress, of the objects that there are."""

_OF_ENDPOINT = re.compile(r"((?:test_)?cilium_(?:calls|policy)_(?:hostns_|netdev_)?)\d{5}")
_POLICY_SECTION = re.compile(r"([14])/0x[0-9a-f]{4}")


class NoEntry(ReloadlabError):
    """An object with nothing that could be attached."""

    def __init__(self, path: str) -> None:
        wanted = ", ".join(name for pair in ENTRIES for name in pair)
        super().__init__(f"{path}: the object has none of {wanted}")


class GivenTemplate(Template):
    """An object that somebody else compiled: a template, or already an endpoint's own. Both become the endpoint's."""

    __slots__ = ()

    def substitution(self, endpoint: Endpoint) -> Substitution:
        """Return the endpoint's constants, and its id in every name that holds an id."""
        spec = self.image.spec
        names = {}
        for name in (*spec.maps, *(p.section for p in spec.programs.values())):
            if found := _OF_ENDPOINT.fullmatch(name):
                names[name] = f"{found[1]}{endpoint.id:05d}"
            elif found := _POLICY_SECTION.fullmatch(name):
                names[name] = f"{found[1]}/0x{endpoint.id:04x}"
        return Substitution(headers.substitution(endpoint).constants, names)


@dataclass(frozen=True)
class Given(Step):
    """Take an object that is already there, in the place of `compile`."""

    template: Template

    @property
    def name(self) -> str:
        return "compile"

    def describe(self) -> str:
        return f"take {self.template.path}"

    def apply(self, work: Workspace) -> None:
        work.template[Kind.LXC] = self.template


def given(path: Path) -> GivenTemplate:
    """Read an object file; ObjectError, or NoEntry if no program of it can be attached."""
    return given_image(path, read_object(path))


def given_image(path: Path, image: ObjectImage) -> GivenTemplate:
    image.spec.check()
    entries(image)
    return GivenTemplate("given", Kind.LXC, path, image, VerifyTimes())


def entries(image: ObjectImage) -> dict[Direction, str]:
    """Return which program is attached where; the object may have one of the two."""
    for pair in ENTRIES:
        found = {
            direction: name
            for direction, name in zip((Direction.INGRESS, Direction.EGRESS), pair, strict=True)
            if name in image.spec.programs
        }
        if found:
            return found
    raise NoEntry(image.spec.path)


def reload_of(template: Template, plan: Plan) -> Plan:
    """Return a pod's plan with another object in it, attached to the pod's interface."""
    programs = entries(template.image)
    has_policy = any(p.slot is not None and p.slot[0] in (1, 4) for p in template.image.spec.programs.values())

    def change(step: Step) -> Step | None:
        if isinstance(step, Compile):
            return Given(str(template.path), template)
        if isinstance(step, WriteObject):
            return replace(step, programs=tuple(programs.values()))
        if isinstance(step, Attach):
            program = programs.get(step.direction)
            return replace(step, program=program) if program is not None else None
        if isinstance(step, InsertPolicy) and not has_policy:
            return None
        return step

    return plan.change(change)
