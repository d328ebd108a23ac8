from __future__ import annotations

import struct

import pytest

from datapath.object.loads import Region, Use, use_of_load

LOAD = struct.pack("<BBhi", 0x18, 1, 0, 0) + bytes(8)
EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


def insn(op: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", op, source << 4 | target, offset, value)


MOV64, MOV32, ADD64, LSH64 = 0xBF, 0xBC, 0x07, 0x67
LDX_W, STX_W, STX_DW, LDX_DW, ST_W = 0x61, 0x63, 0x7B, 0x79, 0x62

CASES = {
    "read through": (insn(LDX_W, 0, 1), Use.ADDRESS),
    "written through": (insn(STX_W, 1, 2), Use.ADDRESS),
    "written through with a constant": (insn(ST_W, 1), Use.ADDRESS),
    "added to": (insn(0xDB, 1, 2), Use.ADDRESS),
    "read through after a copy": (insn(MOV64, 6, 1) + insn(0xB7, 1) + insn(LDX_W, 0, 6), Use.ADDRESS),
    "read through with an index": (insn(ADD64, 1, 0, 0, 8) + insn(LDX_W, 0, 1), Use.ADDRESS),
    "base of an index": (insn(0x0F, 3, 1) + insn(LDX_W, 0, 3), Use.ADDRESS),
    "read through after a spill": (
        insn(STX_DW, 10, 1, -8) + insn(0xB7, 1) + insn(LDX_DW, 7, 10, -8) + insn(LDX_W, 0, 7),
        Use.ADDRESS,
    ),
    "read through on one branch": (insn(0x15, 2, 0, 1, 0) + EXIT + insn(LDX_W, 0, 1), Use.ADDRESS),
    "key of a look-up": (insn(MOV64, 2, 1) + insn(0x85, 0, 0, 0, 1), Use.ADDRESS),
    "shifted": (insn(LSH64, 1, 0, 0, 32), Use.WORD),
    "copied as a word": (insn(MOV32, 2, 1), Use.WORD),
    "stored as a word": (insn(STX_W, 10, 1, -4), Use.WORD),
    "compared": (insn(0x1D, 2, 1, 0), Use.WORD),
    "compared with a constant": (insn(0x15, 1, 0, 0, 7), Use.WORD),
    "swapped": (insn(0xDC, 1, 0, 0, 32), Use.WORD),
    "argument of a function that nobody knows": (insn(0x85, 0, 1, 0, 5), Use.UNKNOWN),
    "argument of a helper that takes a number": (insn(0x85, 0, 0, 0, 23), Use.UNKNOWN),
    "spilled and forgotten": (insn(STX_DW, 10, 1, -8) + insn(ST_W | 0x18, 10, 0, -8), Use.UNKNOWN),
    "overwritten": (insn(0xB7, 1) + insn(LDX_W, 0, 1), Use.UNKNOWN),
    "read through after a call has overwritten it": (insn(0x85, 0, 0, 0, 5) + insn(LDX_W, 0, 1), Use.UNKNOWN),
    "in a loop": (insn(ADD64, 1, 0, 0, 8) + insn(0x05, 0, 0, -2), Use.UNKNOWN),
}


@pytest.mark.parametrize(("code", "use"), CASES.values(), ids=CASES)
def test_the_use_of_the_register_tells_what_was_loaded(code: bytes, use: Use) -> None:
    assert use_of_load(Region(LOAD + code + EXIT), 0) is use


@pytest.mark.parametrize(
    ("helper", "argument"),
    [(100, 2), (100, 4), (110, 2), (110, 4), (163, 3), (164, 3)],
    ids=lambda value: str(value),
)
def test_an_argument_of_a_helper_that_takes_a_pointer_is_one(helper: int, argument: int) -> None:
    """tcp_check_syncookie, tcp_gen_syncookie, check_mtu, for_each_map_elem."""
    code = insn(MOV64, argument, 1) + insn(0x85, 0, 0, 0, helper)
    assert use_of_load(Region(LOAD + code + EXIT), 0) is Use.ADDRESS


def test_the_end_of_the_code_is_the_end() -> None:
    assert use_of_load(Region(LOAD), 0) is Use.UNKNOWN
    assert use_of_load(Region(LOAD + insn(0x05, 0, 0, 1000)), 0) is Use.UNKNOWN


@pytest.mark.parametrize(
    ("function", "use"),
    [
        (insn(LDX_W, 0, 1), Use.ADDRESS),
        (insn(LSH64, 1, 0, 0, 32), Use.WORD),
        (insn(LDX_W, 0, 2), Use.UNKNOWN),
    ],
    ids=["read through", "shifted", "another argument"],
)
def test_an_argument_is_followed_into_the_function(function: bytes, use: Use) -> None:
    callee = Region(function + EXIT)
    assert use_of_load(Region(LOAD + insn(0x85, 0, 1, 0, 1) + EXIT, {2: callee}), 0) is use


def test_a_function_that_calls_itself_ends() -> None:
    caller = Region(LOAD + insn(0x85, 0, 1, 0, -3) + EXIT)
    caller.calls = {2: Region(insn(0x85, 0, 1, 0, -1) + EXIT, {0: caller})}
    assert use_of_load(caller, 0) is Use.UNKNOWN
