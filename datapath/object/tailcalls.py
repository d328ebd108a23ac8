"""The tail calls of a program, read from its instructions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from datapath.object.spec import INSN_SIZE, ProgramSpec

_TAIL_CALL = bytes((0x85, 0, 0, 0)) + (12).to_bytes(4, "little")
"""BPF_CALL of bpf_tail_call(ctx, array, slot): the array in register 2, the slot in register 3."""
_ARRAY, _SLOT = 2, 3
_MOV_IMM, _MOV32_IMM, _LD_IMM64 = 0xB7, 0xB4, 0x18
_JA, _JA32, _CALL, _EXIT = 0x05, 0x06, 0x85, 0x95
_CLASS, _JMP, _JMP32 = 0x07, 0x05, 0x06
_STX, _MODE, _ATOMIC = 0x03, 0xE0, 0xC0
"""An atomic operation may fetch what was there, into its source."""
_LAST_ARGUMENT = 5
_WRITES = (0x00, 0x01, 0x04, 0x07)
"""Instruction classes that set their destination: BPF_LD, BPF_LDX, BPF_ALU, BPF_ALU64."""


@dataclass(frozen=True, slots=True)
class TailCall:
    """A tail call: the name of the program array, and the slot; None for what only the running program knows."""

    map: str | None
    slot: int | None


def tail_calls(program: ProgramSpec) -> Iterator[TailCall]:
    """Yield the tail calls of a program, once for each slot that one instruction may lead to."""
    maps = dict(program.map_refs)
    for arrays, slots in _calls(program.insns):
        for name in dict.fromkeys(None if array is None else maps.get(array) for array in arrays):
            yield from (TailCall(name, slot) for slot in slots)


@lru_cache(maxsize=1024)
def _calls(insns: bytes) -> tuple[tuple[tuple[int | None, ...], tuple[int | None, ...]], ...]:
    """Return the instructions that load the array of each tail call, and its slots; None for what is not seen.

    Endpoints of one template have the same instructions: their constants are written in later.
    """
    found = []
    at = insns.find(_TAIL_CALL)
    before = _predecessors(insns) if at >= 0 else {}
    while at >= 0:
        if at % INSN_SIZE == 0:
            index = at // INSN_SIZE
            writers = _writers(insns, before, index, _SLOT)
            slots = dict.fromkeys(None if writer is None else _constant(insns, writer) for writer in writers)
            found.append((tuple(_writers(insns, before, index, _ARRAY)), tuple(slots)))
        at = insns.find(_TAIL_CALL, at + 1)
    return tuple(found)


def _predecessors(insns: bytes) -> dict[int, list[int]]:
    """Return the instructions from which each instruction is reached."""
    found: dict[int, list[int]] = {}
    index, count = 0, len(insns) // INSN_SIZE
    while index < count:
        at = index * INSN_SIZE
        code = insns[at]
        following = index + (2 if code == _LD_IMM64 else 1)
        if code not in (_JA, _JA32, _EXIT):
            found.setdefault(following, []).append(index)
        if code & _CLASS in (_JMP, _JMP32) and code not in (_CALL, _EXIT):
            width = slice(at + 4, at + 8) if code == _JA32 else slice(at + 2, at + 4)
            found.setdefault(following + int.from_bytes(insns[width], "little", signed=True), []).append(index)
        index = following
    return found


def _writers(insns: bytes, before: dict[int, list[int]], index: int, register: int) -> Iterator[int | None]:
    """Yield the instructions that may have set a register last when the one at `index` is reached.

    None stands for whoever has called the function in which it was not set.
    """
    seen: set[int] = set()
    todo = [index]
    while todo:
        current = todo.pop()
        if not before.get(current):
            yield None
        for earlier in before.get(current, ()):
            if earlier in seen:
                continue
            seen.add(earlier)
            if _writes(insns, earlier, register):
                yield earlier
            else:
                todo.append(earlier)


def _writes(insns: bytes, index: int, register: int) -> bool:
    code, registers = insns[index * INSN_SIZE : index * INSN_SIZE + 2]
    if code == _CALL:
        return register <= _LAST_ARGUMENT  # nothing is left of what they held
    if code & _CLASS == _STX:
        return code & _MODE == _ATOMIC and registers >> 4 == register
    return code & _CLASS in _WRITES and registers & 0xF == register


def _constant(insns: bytes, index: int) -> int | None:
    """Return what a move writes, None for anything but a move of a constant."""
    at = index * INSN_SIZE
    return int.from_bytes(insns[at + 4 : at + 8], "little") if insns[at] in (_MOV_IMM, _MOV32_IMM) else None
