"""Invariant 4: the programs that run are those of the object files that lie in the node's state directory.

The kernel keeps a digest of the instructions of each program, its tag; that of an object file's program can be computed
from the file alone. So what a loader reports plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha1, sha256

from datapath.base.mapnames import is_calls_map
from datapath.kernel.hooks import Direction, filter_name
from datapath.load.programs import data_words
from datapath.object.spec import CollectionSpec, ProgramSpec
from lab.agent.agent import Agent
from lab.watch.checks.hooks import wanted_programs
from lab.watch.checks.objects import InterfaceObject
from lab.watch.snapshot import KERNEL_NAME, Snapshot
from lab.watch.violation import Violation

_TAG = 8
"""Bytes of a tag (BPF_TAG_SIZE)."""


def check_published(agent: Agent, now: Snapshot, objects: Sequence[InterfaceObject]) -> Iterator[Violation]:
    """Yield the programs at hooks and in calls maps that are not those of their interface's object file."""
    wanted = wanted_programs(agent)
    for each in objects:
        if each.spec is not None:
            for where, ident, name in _running(each.ifname, each.spec, now, wanted):
                if not _is(now.infos[ident].tag, each.spec, each.spec.programs[name]):
                    path = each.path.relative_to(agent.config.state)
                    yield Violation(4, f"{where}: program {ident} is not {name} as it is in {path}")


def tags(spec: CollectionSpec, program: ProgramSpec) -> tuple[str, str]:
    """Return the tag that the kernel gives a program, in hex, by SHA-1 (as kernels did until 6.17) and by SHA-256.

    References to maps do not count: the kernel clears both words of each (bpf_prog_calc_tag).
    """
    insns = bytearray(program.insns)
    words, data = memoryview(insns).cast("I"), data_words(spec.data)
    for index, offset in program.constant_refs:
        words[2 * index + 1] = data[offset >> 2]
    for index, _ in program.map_refs:
        words[2 * index + 1] = words[2 * index + 3] = 0
    return sha1(insns, usedforsecurity=False).digest()[:_TAG].hex(), sha256(insns).digest()[:_TAG].hex()


def _is(tag: str, spec: CollectionSpec, program: ProgramSpec) -> bool:
    return tag in tags(spec, program)


def _running(
    ifname: str, spec: CollectionSpec, now: Snapshot, wanted: dict[tuple[str, Direction], str]
) -> Iterator[tuple[str, int, str]]:
    """Yield where a program of the object runs, its id, and the name that it must have and has."""
    for (there, direction), name in wanted.items():
        for found in now.filters.get((there, direction), ()) if there == ifname and name in spec.programs else ():
            if (
                found.name.startswith(filter_name(name, there))
                and now.infos[found.program_id].name == name[:KERNEL_NAME]
            ):
                yield f"{there} {direction}", found.program_id, name
    for calls in filter(is_calls_map, spec.maps):
        for slot, ident in now.slots.get(calls, {}).items():
            program = spec.maps[calls].contents.get(slot, "")
            # What has another name, or is of no object, is told where slots are checked.
            if program in spec.programs and now.infos[ident].name == program[:KERNEL_NAME]:
                yield f"{calls} slot {slot}", ident, program
