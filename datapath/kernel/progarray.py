"""Program arrays: a slot is written with a descriptor and read as a program's id."""

from __future__ import annotations

import errno
import os
import struct

from datapath.errors import BpfError
from datapath.kernel import bpf

_SLOT = struct.Struct("=I")


def program_at(fd: int, slot: int) -> int | None:
    """Return the id of the program in a slot; None if it is empty, or beyond the end of the array."""
    value = bpf.map_lookup(fd, _SLOT.pack(slot), _SLOT.size)
    return None if value is None else int(_SLOT.unpack(value)[0])


def open_program_at(fd: int, slot: int) -> int | None:
    """Open the program in a slot; None if it is empty. One that is replaced meanwhile is looked up again."""
    while (ident := program_at(fd, slot)) is not None:
        try:
            return bpf.prog_fd_by_id(ident)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
    return None


def put(fd: int, slot: int, program_fd: int) -> None:
    """Put a program into a slot; E2BIG beyond the end of the array."""
    bpf.map_update(fd, _SLOT.pack(slot), _SLOT.pack(program_fd))


def clear(fd: int, slot: int) -> bool:
    """Empty a slot; False if it was empty, or is beyond the end of the array."""
    try:
        return bpf.map_delete(fd, _SLOT.pack(slot))
    except BpfError as error:
        if error.errno != errno.E2BIG:
            raise
        return False


def programs(fd: int) -> dict[int, int]:
    """Return slot -> program id of all slots that are filled."""
    return bpf.map_slots(fd, bpf.map_info(fd).max_entries)


def copy(old_fd: int, new_fd: int) -> int:
    """Put the programs of one array into the same slots of another; return how many slots that one lacks."""
    room = bpf.map_info(new_fd).max_entries
    filled = programs(old_fd)
    for slot in filled:
        program = open_program_at(old_fd, slot) if slot < room else None
        if program is not None:
            try:
                put(new_fd, slot, program)
            finally:
                os.close(program)
    return sum(slot >= room for slot in filled)
