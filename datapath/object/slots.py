"""Programs in the slots of program arrays, where no section says it.

Until 1.16 the section of every such program is `<map id>/<slot>`. Since then the name of a policy program says what it
is, and the loader knows its slot (pkg/datapath/loader: resolveAndInsertCalls): the endpoint's id, which is in the names
of its own maps. In 1.19 a tail call has a tag, `tail:<map>/<slot>` (pkg/bpf: resolveTailCalls).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import EGRESS_POLICY_CALLS, POLICY_CALLS, endpoint_of, is_calls_map
from datapath.object.btf import Btf

if TYPE_CHECKING:
    from datapath.object.spec import MapSpec, ProgramSpec

_TAG = re.compile(r"tail:(\w+)/(\d+)")
_POLICIES = {
    POLICY_CALLS: ("handle_policy", "handle_lxc_traffic", "cil_lxc_policy", "cil_host_policy"),
    EGRESS_POLICY_CALLS: ("handle_policy_egress", "cil_lxc_policy_egress"),
}


def tagged_slots(types: Btf) -> dict[str, tuple[str, int]]:
    """Return the map and the slot of each function that a tag places."""
    tags = ((name, _TAG.fullmatch(tag)) for name, tag in types.declarations())
    return {name: (tag[1], int(tag[2])) for name, tag in tags if tag is not None}


def place_tagged(
    maps: Mapping[str, MapSpec], programs: Mapping[str, ProgramSpec], types: Btf | None
) -> tuple[dict[str, MapSpec], list[str]]:
    """Return the maps with the programs that tags place, and what could not be placed, one line each.

    A tag names calls maps by what all of them are called; an object has one.
    """
    placed = dict(maps)
    problems: list[str] = []
    own = next((item.name for item in maps.values() if item.type == MapType.PROG_ARRAY and is_calls_map(item.name)), "")
    for program, (array, slot) in tagged_slots(types).items() if types is not None else ():
        if program not in programs:
            continue
        name = own if array not in maps and is_calls_map(f"{array}_") else array
        where = f"program {program} (tag tail:{array}/{slot})"
        if name not in placed:
            problems.append(f"{where}: there is no such map")
        elif (holder := placed[name].contents.get(slot, program)) != program:
            problems.append(f"{where}: slot {slot} of {name} already holds {holder}")
        else:
            placed[name] = replace(placed[name], contents={**placed[name].contents, slot: program})
    return placed, problems


def place_policies(maps: Mapping[str, MapSpec], programs: Mapping[str, ProgramSpec]) -> dict[str, MapSpec]:
    """Return the maps with the policy programs that no section places in the slots of the endpoint."""
    placed = dict(maps)
    endpoint = next((found for name in maps if (found := endpoint_of(name)) is not None), None)
    for array, names in _POLICIES.items():
        program = next((name for name in names if name in programs and programs[name].slot is None), None)
        if array in maps and maps[array].id == 0 and program is not None and endpoint is not None:
            placed[array] = replace(maps[array], contents={endpoint: program})
    return placed
