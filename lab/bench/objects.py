"""Object files for the benchmarks: one is reloaded as if it were a pod's template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.base.timing import VerifyTimes
from datapath.build import headers
from datapath.build.template import Kind, Template
from datapath.endpoint import Endpoint
from datapath.errors import ReloadlabError
from datapath.kernel.hooks import Direction
from datapath.object.reader import ObjectImage, read_object
from datapath.object.spec import Substitution
from datapath.reload.prepare import Compile, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach
from datapath.reload.workspace import Workspace

ENTRIES = (
    ("cil_from_container", "cil_to_container"),
    ("cil_to_host", "cil_from_host"),
    ("cil_from_netdev", "cil_to_netdev"),
    ("cil_from_overlay", "cil_to_overlay"),
)
"""The entry programs of each kind of object, for ingress and egress."""

_OF_ENDPOINT = re.compile(r"((?:test_)?cilium_(?:calls|policy)_(?:hostns_|netdev_|v2_)?)\d{5}")
_POLICY_SECTION = re.compile(r"([14])/0x[0-9a-f]{4}")


class NoEntryProgram(ReloadlabError):
    """An object without an entry program."""

    def __init__(self, path: str) -> None:
        wanted = ", ".join(name for pair in ENTRIES for name in pair)
        super().__init__(f"{path}: the object has none of {wanted}")


class ObjectTemplate(Template):
    """A template read from an object file, which may be a template or the object of some endpoint."""

    __slots__ = ()

    def substitution(self, endpoint: Endpoint) -> Substitution:
        """Return the endpoint's constants, and new names with its id for all names that contain an id."""
        spec = self.image.spec
        names = {}
        for name in (*spec.maps, *(p.section for p in spec.programs.values())):
            if found := _OF_ENDPOINT.fullmatch(name):
                names[name] = f"{found[1]}{endpoint.id:05d}"
            elif found := _POLICY_SECTION.fullmatch(name):
                names[name] = f"{found[1]}/0x{endpoint.id:04x}"
        fitted = headers.fitting(headers.substitution(endpoint), spec, ifindex=endpoint.ifindex or 0)
        return Substitution(fitted.constants, names)


@dataclass(frozen=True)
class UseObjectFile(Step):
    """Use an object file instead of compiling one."""

    template: Template

    name = "compile"

    def describe(self) -> str:
        return f"use {self.template.path}"

    def apply(self, work: Workspace) -> None:
        work.template[Kind.LXC] = self.template


def object_template(path: Path) -> ObjectTemplate:
    """Read an object file as a template. ObjectError, or NoEntryProgram if it has no entry program."""
    image = read_object(path)
    image.spec.check()
    entry_programs(image)
    return ObjectTemplate("given", Kind.LXC, path, image, VerifyTimes())


def entry_programs(image: ObjectImage) -> dict[Direction, str]:
    """Return the entry programs by direction, at least one; NoEntryProgram if there is none."""
    for pair in ENTRIES:
        found = {
            direction: name
            for direction, name in zip((Direction.INGRESS, Direction.EGRESS), pair, strict=True)
            if name in image.spec.programs
        }
        if found:
            return found
    raise NoEntryProgram(image.spec.path)


def plan_with_object(template: Template, plan: Plan) -> Plan:
    """Return a pod's plan that loads and attaches the given object instead of the compiled one, at the same hooks."""
    hooks = {step.direction for step in plan.steps if isinstance(step, Attach)}
    programs = {direction: name for direction, name in entry_programs(template.image).items() if direction in hooks}

    def change(step: Step) -> Step | None:
        if isinstance(step, Compile):
            return UseObjectFile(str(template.path), template)
        if isinstance(step, WriteObject):
            return replace(step, programs=tuple(programs.values()))
        if isinstance(step, Attach):
            program = programs.get(step.direction)
            return replace(step, program=program) if program is not None else None
        return step

    return plan.change(change)
