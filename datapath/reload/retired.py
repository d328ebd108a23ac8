"""Maps that a reload has replaced and that the programs of other endpoints go on to use, until they are reloaded.

Of the maps that others write for all (policy slots, endpoints, identities, tunnels) such a map must be written too, or
its programs miss what comes and goes meanwhile: no packet of theirs reaches a new pod. So it stays pinned, as
`<name>:retired-<map id>`, whoever writes such a map writes all that are pinned under its name, and the reload that
finds it unused removes the pin. A map that a killed reload has left at `<name>:pending` is one of them as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from datapath.base.mapnames import KEPT_WHILE_USED, POLICY_ARRAYS
from datapath.kernel import hooks, progarray, tcx, xdp
from datapath.kernel.inventory import reach
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import RETIRED, map_id


def pinned(directory: Path, names: tuple[str, ...] = KEPT_WHILE_USED) -> dict[str, list[Path]]:
    """Return the pins of all maps of these names, the current one first, then those that it replaces or has replaced.

    A name of which there is no map is left out.
    """
    wanted = frozenset(names)
    try:
        # First the few that it may be: a node of many pods has hundreds of other pins.
        there = [name for name in os.listdir(directory) if ":" in name or name in wanted]
    except FileNotFoundError:
        return {}
    found: dict[str, list[Path]] = {}
    for name in sorted(there):
        base = name.partition(":")[0]
        if base in wanted:
            found.setdefault(base, []).append(directory / name)
    return found


def others(directory: Path, name: str) -> list[Path]:
    """Return the pins of the maps that the one of this name replaces or has replaced."""
    return [path for path in pinned(directory, (name,)).get(name, ()) if path.name != name]


def pin_names(directory: Path) -> list[str]:
    """Return the names under which retired maps are pinned."""
    return [path.name for paths in pinned(directory).values() for path in paths if RETIRED in path.name]


def release(directory: Path, netlink: NetlinkSocket, netns: Path) -> list[str]:
    """Let go of the retired maps that no program can use any more, and return their names.

    Only under the exclusive lock: a reload that is under way may take a program back that it has replaced.
    """
    retired = {p: map_id(p) for paths in pinned(directory).values() for p in paths if RETIRED in p.name}
    if not retired:
        return []
    arrays = {path: map_id(path) for paths in pinned(directory, POLICY_ARRAYS).values() for path in paths}
    used = _used(_by_interface(netlink, netns), arrays, frozenset(retired.values()))
    unused = sorted(path for path, ident in retired.items() if ident not in used)
    for path in unused:
        path.unlink()
    return [path.name for path in unused]


def attached_programs(netlink: NetlinkSocket, netns: Path) -> set[int]:
    """Return the ids of all programs at the clsact, tcx and XDP hooks of the node, whose namespace is `netns`."""
    return set().union(*_by_interface(netlink, netns))


def _by_interface(netlink: NetlinkSocket, netns: Path) -> Iterator[set[int]]:
    """Yield the ids of the programs at the hooks of each interface, the newest first, and of those at XDP last."""
    for link in sorted(netlink.interfaces().values(), key=lambda link: link.ifindex, reverse=True):
        found: set[int] = set()
        for direction in hooks.Direction:
            found |= {f.program_id for f in hooks.filters(netlink, link.ifindex, direction) if f.program_id}
            found |= {p.entry.program_id for p in tcx.programs_if_there(netns, link.ifindex, direction)}
        yield found
    yield {each.program_id for there in xdp.all_attached(netlink).values() for each in there}


def _used(attached: Iterable[set[int]], arrays: Mapping[Path, int], asked: frozenset[int]) -> frozenset[int]:
    """Return the ids of the maps that packets can meet, through the tail calls and policy programs of `arrays` too.

    Only as many as it takes to find all of `asked`. Of many pods that are reloaded one after the other, the newest is
    the last that uses a retired map: the hooks of the others need not be read each time. To read the slots of an array
    takes longer still.
    """
    programs: set[int] = set()
    maps: set[int] = set()
    for there in attached:
        found = reach(there)
        programs |= found.programs
        maps |= found.maps
        if asked <= maps:
            return frozenset(maps)
    unread = {ident: path for path, ident in arrays.items()}
    while not asked <= maps and (reached := unread.keys() & maps):
        for ident in reached:
            with open_pin(unread.pop(ident)) as array:
                programs |= set(progarray.programs(array.fd).values())
        maps |= reach(programs).maps
    return frozenset(maps)
