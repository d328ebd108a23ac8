"""What the kernel runs: the programs and maps that can be reached from an attached program, through its tail calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.uapi import ProgInfo

LARGEST_CALLS_MAP = 256
"""Program arrays beyond this size belong to the whole node (cilium_call_policy), not to one object: not followed."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Ids of programs and maps, the starting programs included. `calls` are those of `maps` that are calls maps."""

    programs: frozenset[int]
    maps: frozenset[int]
    calls: frozenset[int]


@contextmanager
def program_by_id(ident: int) -> Iterator[int]:
    """Open a program for the time of a block."""
    fd = bpf.prog_fd_by_id(ident)
    try:
        yield fd
    finally:
        os.close(fd)


def program_name(program_id: int) -> str:
    """Return the name of a program, as much of it as the kernel keeps; BpfError with ENOENT if it is not loaded."""
    with program_by_id(program_id) as fd:
        return bpf.prog_info(fd).name


def program_maps(program_id: int) -> tuple[int, ...]:
    """Return the ids of the maps that a program uses; BpfError with ENOENT if it is not loaded any more."""
    with program_by_id(program_id) as fd:
        return bpf.prog_info(fd).map_ids


def all_programs() -> dict[int, ProgInfo]:
    """Return every program of the machine by id; those that are freed meanwhile are left out."""
    found = {}
    ident = bpf.prog_next_id(0)
    while ident is not None:
        try:
            with program_by_id(ident) as fd:
                found[ident] = bpf.prog_info(fd)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
        ident = bpf.prog_next_id(ident)
    return found


def slots(map_id: int) -> dict[int, int] | None:
    """Return slot -> program id of a calls map; None for any other map, or one that is gone."""
    try:
        fd = bpf.map_fd_by_id(map_id)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    try:
        return read_slots(fd)
    finally:
        os.close(fd)


def read_slots(fd: int) -> dict[int, int] | None:
    """Return slot -> program id of an open calls map; None for any other map."""
    info = bpf.map_info(fd)
    if info.type != MapType.PROG_ARRAY or info.max_entries > LARGEST_CALLS_MAP:
        return None
    return bpf.map_slots(fd, info.max_entries)


def reach(
    program_ids: Iterable[int],
    maps_of: Callable[[int], tuple[int, ...]] = program_maps,
    slots_of: Callable[[int], dict[int, int] | None] = slots,
) -> Reach:
    """Follow the calls maps of the given programs; programs that are gone are passed over.

    `maps_of` returns the ids of the maps that a program uses; BpfError with ENOENT for one that is gone. `slots_of`
    returns what `slots` does.
    """
    programs: set[int] = set()
    maps: set[int] = set()
    calls: set[int] = set()
    todo = list(program_ids)
    while todo:
        ident = todo.pop()
        if ident in programs:
            continue
        try:
            used = maps_of(ident)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        programs.add(ident)
        for map_id in set(used) - maps:
            maps.add(map_id)
            filled = slots_of(map_id)
            if filled is not None:
                calls.add(map_id)
                todo += filled.values()
    return Reach(frozenset(programs), frozenset(maps), frozenset(calls))


class Known:
    """What never changes of programs and maps, for whoever follows calls maps again and again.

    The kernel gives an id once; nothing is held open.
    """

    def __init__(self) -> None:
        self._maps: dict[int, tuple[int, ...]] = {}
        self._others: set[int] = set()

    def reach(self, program_ids: Iterable[int]) -> Reach:
        """Do what `reach` does. Programs that were known are not passed over if they are gone by now."""
        return reach(program_ids, self._maps_of, self._slots_of)

    def _maps_of(self, program_id: int) -> tuple[int, ...]:
        if program_id not in self._maps:
            self._maps[program_id] = program_maps(program_id)
        return self._maps[program_id]

    def _slots_of(self, map_id: int) -> dict[int, int] | None:
        if map_id in self._others:
            return None
        if (found := slots(map_id)) is None:
            self._others.add(map_id)
        return found
