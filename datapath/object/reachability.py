"""Which programs of an object a packet can reach, and the object without the others.

A packet enters at an attached program, or at one in an array that other objects jump through, and goes on by tail
calls. What cannot be told from the instructions counts as a way to everything that it may lead to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import is_calls_map
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from datapath.object.tailcalls import tail_calls


def reached(spec: CollectionSpec, entries: Iterable[str]) -> frozenset[str]:
    """Return the programs that are reached if `entries` are attached; names that the object lacks are left out."""
    shared = (name for item in _shared(spec) for name in item.contents.values())
    return _followed(spec, (*entries, *shared))


def ways(spec: CollectionSpec) -> dict[str, tuple[str, ...]]:
    """Return from where each program is reached: programs that can be attached, and arrays that other objects use."""
    placed = {name for item in spec.maps.values() if item.type == MapType.PROG_ARRAY for name in item.contents.values()}
    placed |= {program.name for program in spec.programs.values() if program.slot is not None}
    starts: dict[str, tuple[str, ...]] = {name: (name,) for name in spec.programs if name not in placed}
    starts |= {item.name: tuple(item.contents.values()) for item in _shared(spec)}
    followed = {start: _followed(spec, programs) for start, programs in starts.items()}
    return {name: tuple(start for start, found in followed.items() if name in found) for name in spec.programs}


def _shared(spec: CollectionSpec) -> list[MapSpec]:
    """Return the program arrays through which other objects may jump."""
    return [item for item in spec.maps.values() if item.type == MapType.PROG_ARRAY and not is_calls_map(item.name)]


def _followed(spec: CollectionSpec, starts: Iterable[str]) -> frozenset[str]:
    todo = [name for name in starts if name in spec.programs]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += (target for target in _targets(spec, spec.programs[name]) if target in spec.programs)
    return frozenset(found)


def pruned(spec: CollectionSpec, entries: Iterable[str]) -> CollectionSpec:
    """Return the object without the programs that are not reached, and without the maps that only those use.

    A map that is pinned stays: others may use it.
    """
    kept = reached(spec, entries)
    if len(kept) == len(spec.programs):
        return spec
    programs = {name: program for name, program in spec.programs.items() if name in kept}
    used = {name for program in programs.values() for name in program.maps}
    maps = {item.name: _emptied(item, kept) for item in spec.maps.values() if item.pinned or item.name in used}
    for outer in [item for item in maps.values() if item.type != MapType.PROG_ARRAY]:
        maps |= {name: spec.maps[name] for name in outer.contents.values() if name in spec.maps and name not in maps}
    return replace(spec, programs=programs, maps=maps)


def _targets(spec: CollectionSpec, program: ProgramSpec) -> Iterator[str]:
    for call in tail_calls(program):
        arrays = spec.maps.values() if call.map is None else [spec.maps[call.map]]
        for array in arrays:
            if array.type == MapType.PROG_ARRAY:
                found = array.contents
                yield from found.values() if call.slot is None else filter(None, [found.get(call.slot)])


def _emptied(item: MapSpec, kept: frozenset[str]) -> MapSpec:
    """Return a program array without the programs that are not kept; other maps as they are."""
    if item.type != MapType.PROG_ARRAY or kept.issuperset(item.contents.values()):
        return item
    return replace(item, contents={slot: name for slot, name in item.contents.items() if name in kept})
