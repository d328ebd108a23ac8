"""Tail calls as clang writes them: a slot that is a constant, one of two by a jump, or one that a register holds."""

from __future__ import annotations

import struct

from datapath.object.spec import ProgramSpec
from datapath.object.tailcalls import TailCall, tail_calls

ARRAY = struct.pack("<BBhi", 0x18, 0x12, 0, 0) + bytes(8)
"""r2 = array ll, two instructions."""
CALL = struct.pack("<BBhi", 0x85, 0, 0, 12)
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def slot(number: int) -> bytes:
    return struct.pack("<BBhi", 0xB7, 3, 0, number)


def jump_if(offset: int) -> bytes:
    return struct.pack("<BBhi", 0x15, 6, offset, 0)


def found(insns: bytes, *refs: tuple[int, str]) -> list[TailCall]:
    return list(tail_calls(ProgramSpec("p", "tc", 3, insns, map_refs=refs)))


def test_a_constant_slot_is_read() -> None:
    assert found(ARRAY + slot(7) + CALL + EXIT, (0, "calls")) == [TailCall("calls", 7)]


def test_both_ways_to_one_call_are_followed() -> None:
    """clang merges two tail calls into one whose slot was set on either side of a branch."""
    insns = slot(7) + jump_if(1) + slot(10) + ARRAY + CALL + EXIT
    assert sorted(call.slot or 0 for call in found(insns, (3, "calls"))) == [7, 10]


def test_a_slot_that_only_the_running_program_knows_is_none() -> None:
    load = struct.pack("<BBhi", 0x61, 0x63, 8, 0)  # r3 = *(u32 *)(r6 + 8)
    assert found(load + ARRAY + CALL, (1, "policy")) == [TailCall("policy", None)]


def test_other_calls_and_other_registers_are_none_of_them() -> None:
    lookup = struct.pack("<BBhi", 0x85, 0, 0, 1)
    assert found(ARRAY + slot(7) + lookup + EXIT, (0, "calls")) == []
    second = slot(3) + struct.pack("<BBhi", 0xB7, 4, 0, 9) + ARRAY + CALL
    assert found(second, (2, "calls")) == [TailCall("calls", 3)]
