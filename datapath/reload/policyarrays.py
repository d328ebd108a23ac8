"""The arrays of policy programs of a node, when there is more than one because a reload has replaced it.

A program that delivers a packet to a local endpoint jumps through the array that its own load has opened. When a reload
replaces the array, because its size has changed say, the programs of all other endpoints go on with the old one until
they are reloaded themselves. What holds meanwhile:

1. A new array has the programs of the old one in all its slots before it is pinned, and so before it is used.
2. Whoever fills or empties a slot does it in every pinned array: in the current one, and in those that were moved aside
   or retired. So all of them have the same program in a slot, whichever way a packet comes.
3. An array is pinned as long as a program may jump through it: the kernel empties a program array that loses its last
   pin or descriptor, although attached programs use it. The reload that finds it unused removes the pin.

All of this is kept by the pins and by the lock on the maps; no process has to live for it. Slots are filled under the
shared lock, arrays replaced, recovered and let go under the exclusive one.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from datapath.base.mapnames import POLICY_ARRAYS
from datapath.kernel import hooks, progarray
from datapath.kernel.inventory import reach
from datapath.kernel.map import Map, open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import RETIRED, map_id


def pinned(directory: Path) -> dict[str, list[Path]]:
    """Return the pins of all arrays by their name, the current one first, then those that it replaces or has replaced.

    A name of which there is no array is left out.
    """
    found: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(directory)) if directory.is_dir() else ():
        base = name.partition(":")[0]
        if base in POLICY_ARRAYS:
            found.setdefault(base, []).append(directory / name)
    return found


def others(directory: Path, name: str) -> list[Path]:
    """Return the pins of the arrays that the one of this name replaces or has replaced."""
    return [path for path in pinned(directory).get(name, ()) if path.name != name]


def programs_at(directory: Path, slots: Mapping[str, Iterable[int]]) -> set[int]:
    """Return the ids of the programs in these slots, by the name of the array, of all pinned arrays."""
    arrays = pinned(directory)
    found = {
        progarray.program_at(array.fd, slot)
        for name, wanted in slots.items()
        for array in _opened(arrays.get(name, ()))
        for slot in wanted
    }
    return {program for program in found if program is not None}


def clear(directory: Path, endpoint_id: int, *, keep: Container[str] = ()) -> None:
    """Empty an endpoint's slots in all arrays, except in those named in `keep`."""
    for name, paths in pinned(directory).items():
        if name not in keep:
            for array in _opened(paths):
                progarray.clear(array.fd, endpoint_id)


def release(directory: Path, netlink: NetlinkSocket) -> list[str]:
    """Let go of the retired arrays that no program can jump through any more, and return their names.

    Only under the exclusive lock: a reload that is under way may take a program back that it has replaced.
    """
    ids = {path: map_id(path) for paths in pinned(directory).values() for path in paths}
    retired = {path: ident for path, ident in ids.items() if RETIRED in path.name}
    if not retired:
        return []
    used = _used(attached_programs(netlink), ids, frozenset(retired.values()))
    unused = sorted(path for path, ident in retired.items() if ident not in used)
    for path in unused:
        path.unlink()
    return [path.name for path in unused]


def attached_programs(netlink: NetlinkSocket) -> set[int]:
    """Return the ids of all programs at the clsact hooks of the node."""
    return {
        found.program_id
        for link in netlink.interfaces().values()
        for direction in hooks.Direction
        for found in hooks.filters(netlink, link.ifindex, direction)
        if found.program_id
    }


def has_retired(directory: Path) -> bool:
    """Tell whether there are retired arrays."""
    return any(RETIRED in path.name for paths in pinned(directory).values() for path in paths)


def _used(attached: set[int], arrays: Mapping[Path, int], asked: frozenset[int]) -> frozenset[int]:
    """Return the ids of the maps that packets can meet, through the tail calls and policy programs of `arrays` too.

    To read the slots of an array takes a while: that is left out as soon as all of `asked` are found.
    """
    found = reach(attached)
    unread = {ident: path for path, ident in arrays.items()}
    while not asked <= found.maps and (reached := unread.keys() & found.maps):
        programs = {
            program
            for ident in reached
            for array in _opened([unread.pop(ident)])
            for program in progarray.programs(array.fd).values()
        }
        found = reach(found.programs | programs)
    return found.maps


def _opened(paths: Iterable[Path]) -> Iterator[Map]:
    """Open one after the other, each until the next one is asked for."""
    for path in paths:
        with open_pin(path) as array:
            yield array
