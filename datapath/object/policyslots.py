"""Policy programs in the slots of their endpoints, where no section says it.

Until 1.16 the section of a policy program is `<map id>/<slot>`. Since then its name says what it is, and the loader
knows the slot (pkg/datapath/loader: resolveAndInsertCalls): the endpoint's id, which is in the names of its own maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from datapath.base.mapnames import EGRESS_POLICY_CALLS, POLICY_CALLS, endpoint_of

if TYPE_CHECKING:
    from datapath.object.spec import MapSpec, ProgramSpec

_PROGRAMS = {
    POLICY_CALLS: ("handle_policy", "handle_lxc_traffic"),
    EGRESS_POLICY_CALLS: ("handle_policy_egress",),
}


def place_policies(maps: Mapping[str, MapSpec], programs: Mapping[str, ProgramSpec]) -> dict[str, MapSpec]:
    """Return the maps with the policy programs that no section places in the slots of the endpoint."""
    placed = dict(maps)
    endpoint = next((found for name in maps if (found := endpoint_of(name)) is not None), None)
    for array, names in _PROGRAMS.items():
        program = next((name for name in names if name in programs and programs[name].slot is None), None)
        if array in maps and maps[array].id == 0 and program is not None and endpoint is not None:
            placed[array] = replace(maps[array], contents={endpoint: program})
    return placed
