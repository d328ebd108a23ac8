"""The arrays of policy programs of a node, when there is more than one because a reload has replaced it.

A program that delivers a packet to a local endpoint jumps through the array that its own load has opened. When a reload
replaces the array, because its size has changed say, the programs of all other endpoints go on with the old one until
they are reloaded themselves. What holds meanwhile:

1. A new array has the programs of the old one in all its slots before it is pinned, and so before it is used.
2. Whoever fills or empties a slot does it in every pinned array: in the current one, and in those that were moved aside
   or retired. So all of them have the same program in a slot, whichever way a packet comes.
3. An array is pinned as long as a program may jump through it (retired.py): the kernel empties a program array that
   loses its last pin or descriptor, although attached programs use it. The reload that finds it unused removes the pin.

All of this is kept by the pins and by the lock on the maps; no process has to live for it. Slots are filled under the
shared lock, arrays replaced, recovered and let go under the exclusive one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from datapath.base.mapnames import POLICY_ARRAYS
from datapath.kernel import progarray
from datapath.kernel.map import Map, open_pin
from datapath.reload import retired


def pinned(directory: Path) -> dict[str, list[Path]]:
    """Return the pins of all arrays by their name, as retired.pinned() does."""
    return retired.pinned(directory, POLICY_ARRAYS)


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


def _opened(paths: Iterable[Path]) -> Iterator[Map]:
    """Open one after the other, each until the next one is asked for."""
    for path in paths:
        with open_pin(path) as array:
            yield array
