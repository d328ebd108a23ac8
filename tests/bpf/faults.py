"""Helpers of the kernel that fail: a program whose call is replaced by the error, so that it runs what it does then."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

from datapath.load.programs import load_programs
from datapath.object.spec import INSN_SIZE, ProgramSpec
from tests.bpf.loaded import Datapath

_INSN = struct.Struct("<BBhi")
_CALL, _MOV_IMM, _MOV64_IMM = 0x85, 0xB4, 0xB7


class Helper(IntEnum):
    """enum bpf_func_id, as far as a program looks at what a helper returns."""

    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    SKB_STORE_BYTES = 9
    L3_CSUM_REPLACE = 10
    SKB_GET_TUNNEL_KEY = 20
    SKB_SET_TUNNEL_KEY = 21
    SKB_LOAD_BYTES = 26
    SKB_CHANGE_TAIL = 38


def without(program: ProgramSpec, helper: Helper, *, size: int | None = None, map_: str | None = None) -> ProgramSpec:
    """Return the program with calls of a helper replaced by its failure: NULL from a lookup, else -EFAULT.

    All of them, or those about so many bytes (the fourth argument), or the one that follows the last load of a map.
    """
    insns = [_INSN.unpack_from(program.insns, at * INSN_SIZE) for at in range(program.instructions)]
    calls = [at for at, insn in enumerate(insns) if insn == (_CALL, 0, 0, helper)]
    if size is not None:
        calls = [at for at in calls if _fourth(insns[:at]) == size]
    if map_ is not None:
        loaded = max(at for at, name in program.map_refs if name == map_)
        calls = [at for at in calls if at > loaded][:1]
    assert calls, f"{program.name} has no such call of {helper.name}"
    result = 0 if helper == Helper.MAP_LOOKUP_ELEM else -errno.EFAULT
    code = bytearray(program.insns)
    for at in calls:
        _INSN.pack_into(code, at * INSN_SIZE, _MOV64_IMM, 0, 0, result)
    return replace(program, insns=bytes(code))


def _fourth(before: list[tuple[int, ...]]) -> int | None:
    """Return what is put into r4 last, if it is a constant."""
    return next((imm for op, regs, _, imm in reversed(before) if regs == 4 and op in (_MOV_IMM, _MOV64_IMM)), None)


@contextmanager
def failing(
    datapath: Datapath, name: str, helper: Helper, *, size: int | None = None, map_: str | None = None
) -> Iterator[None]:
    """Let a tail program of a loaded object be one whose helper fails; see `without`."""
    spec = datapath.collection.spec
    program = without(spec.programs[name], helper, size=size, map_=map_)
    assert program.slot is not None
    slot = program.slot[1].to_bytes(4, "little")
    broken = load_programs(replace(spec, programs={name: program}), datapath.collection.maps)[name]
    try:
        datapath.calls.update(slot, broken.fd.to_bytes(4, "little"))
        yield
    finally:
        datapath.calls.update(slot, datapath.collection.programs[name].fd.to_bytes(4, "little"))
        broken.close()


@contextmanager
def missing(datapath: Datapath, slot: int) -> Iterator[None]:
    """Let a slot of the calls map be empty."""
    name = next(p.name for p in datapath.collection.spec.programs.values() if p.slot == (2, slot))
    datapath.empty(slot)
    try:
        yield
    finally:
        program = datapath.collection.programs[name]
        datapath.calls.update(slot.to_bytes(4, "little"), program.fd.to_bytes(4, "little"))
