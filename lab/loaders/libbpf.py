"""Objects in the form that libbpf takes: an endpoint's own compilation, whose slots the loader fills.

libbpf (1.0 and later) refuses map definitions in the section `maps`, and does not put constants in as Cilium's loaders
do. Our sources can be compiled without both (-D FOR_LIBBPF); slots are then named by the sections alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import POLICY_CALLS, is_calls_map
from datapath.build import headers
from datapath.build.compile import compile_source, probe_compiler
from datapath.build.objectfile import ObjectFile
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.object.spec import CollectionSpec
from datapath.reload.step import Step
from datapath.reload.workspace import LoadedObject, Workspace
from lab.system.scratch import scratch

POLICY_ID, CALLS_ID = 1, 2
"""The numbers of the program arrays in the names of sections (bpf/lib/tailcall.h, as in Cilium)."""


@dataclass(frozen=True)
class CompileForLibbpf(Step):
    """Compile an endpoint's own object, with its constants compiled in."""

    object: ObjectFile
    endpoint: Endpoint

    name = "compile for libbpf"

    def describe(self) -> str:
        return f"compile {self.object.path} with the endpoint's constants, for libbpf"

    def apply(self, work: Workspace) -> None:
        template = work.template[self.object.kind]
        substitution = self.object.substitution(template)
        work.on_undo(self, self.object.discard)
        with scratch() as directory:
            made = compile_for_libbpf(work.config, self.endpoint, self.object.kind.source, directory)
            self.object.write(template, made.read_bytes())
        spec = template.image.spec.substitute(substitution, strict=False)
        work.objects[self.object.name] = LoadedObject(spec, own_maps=frozenset(substitution.names.values()))


def compile_for_libbpf(config: DatapathConfig, endpoint: Endpoint, source: str, directory: Path) -> Path:
    """Compile an endpoint's object from our own sources in the form that libbpf can load; CompileError."""
    for name, text in {
        "node_config.h": headers.node_header(config.node, config.devices),
        "netdev_config.h": headers.netdev_header(config.node),
        "ep_config.h": headers.endpoint_header(endpoint),
    }.items():
        (directory / name).write_text(text)
    return compile_source(
        config.library / source,
        directory / "for_libbpf.o",
        includes=(directory, config.library, config.library / "include"),
        defines=(*config.defines, ("FOR_LIBBPF", "1")),
        compiler=probe_compiler(config.clang),
    )


def slots_of(item: ObjectFile, work: Workspace) -> Iterator[dict[str, Any]]:
    """Yield which program of an object belongs into which slot, and the section that it has before substitution."""
    sections = {name: program.section for name, program in work.template[item.kind].image.spec.programs.items()}
    for array in work.objects[item.name].spec.maps.values():
        if array.type == MapType.PROG_ARRAY:
            for slot, program in array.contents.items():
                found = {"map": array.name, "slot": slot, "program": program, "section": sections[program]}
                yield {**found, "object": str(item.path)}


def with_slots(spec: CollectionSpec, endpoint_id: int) -> CollectionSpec:
    """Return what an object asks for, with the contents that its sections' names mean; others are returned as they are.

    The policy program belongs into the slot of the endpoint.
    """
    if any(item.contents for item in spec.maps.values()):
        return spec
    calls = next((name for name in spec.maps if is_calls_map(name)), "")
    contents: dict[str, dict[int, str]] = {}
    for program in spec.programs.values():
        if program.slot is not None:
            ident, slot = program.slot
            name, slot = {POLICY_ID: (POLICY_CALLS, endpoint_id), CALLS_ID: (calls, slot)}.get(ident, ("", 0))
            contents.setdefault(name, {})[slot] = program.name
    maps = {name: replace(item, contents=contents.get(name, {})) for name, item in spec.maps.items()}
    return replace(spec, maps=maps)
