"""What a load of a variable's symbol means: the variable's word (Cilium's constants) or its address (C's variables).

Both are `rX = SYMBOL ll` with a relocation. Cilium's sources take the symbol for the value, which its loader writes
into the instruction; what the compiler makes of a variable dereferences the register, or hands it to a helper as a
pointer.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from datapath.object.spec import INSN_SIZE

CALL, PSEUDO_CALL = 0x85, 1
LD_IMM64 = 0x18

_LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = 1, 2, 3, 4, 5, 6, 7
_MOV, _ADD, _SUB = 0xB0, 0x00, 0x10
_JA, _EXIT = 0x00, 0x90
_FROM_REGISTER = 0x08
_DOUBLE_WORD = 0x18
_FRAME = 10
_ARGUMENTS = frozenset(range(1, 6))
_MOST_STEPS = 4000
_MOST_CALLS = 8

_POINTER_ARGUMENTS = {
    1: (2,),  # map_lookup_elem
    2: (2, 3),  # map_update_elem
    3: (2,),  # map_delete_elem
    4: (1, 3),  # probe_read
    6: (1,),  # trace_printk
    9: (3,),  # skb_store_bytes
    16: (1,),  # get_current_comm
    20: (2,),  # skb_get_tunnel_key
    21: (2,),  # skb_set_tunnel_key
    25: (4,),  # perf_event_output
    26: (3,),  # skb_load_bytes
    28: (1, 3),  # csum_diff
    29: (2,),  # skb_get_tunnel_opt
    30: (2,),  # skb_set_tunnel_opt
    68: (3,),  # skb_load_bytes_relative
    69: (2,),  # fib_lookup
    84: (2,),  # sk_lookup_tcp
    85: (2,),  # sk_lookup_udp
    87: (2,),  # map_push_elem
    88: (2,),  # map_pop_elem
    89: (2,),  # map_peek_elem
    93: (1,),  # spin_lock
    94: (1,),  # spin_unlock
    99: (2,),  # skc_lookup_tcp
    100: (2, 4),  # tcp_check_syncookie
    105: (1, 4),  # strtol
    106: (1, 4),  # strtoul
    110: (2, 4),  # tcp_gen_syncookie
    112: (1, 3),  # probe_read_user
    113: (1, 3),  # probe_read_kernel
    114: (1, 3),  # probe_read_user_str
    115: (1, 3),  # probe_read_kernel_str
    130: (2,),  # ringbuf_output
    152: (2,),  # redirect_neigh
    163: (3,),  # check_mtu
    164: (3,),  # for_each_map_elem
    165: (1, 3, 4),  # snprintf
    169: (1,),  # timer_init
    170: (1,),  # timer_set_callback
    171: (1,),  # timer_start
    172: (1,),  # timer_cancel
    177: (1, 3),  # trace_vprintk
    181: (3,),  # loop
    182: (1, 3),  # strncmp
}
"""Arguments that are pointers to memory, by helper (include/uapi/linux/bpf.h: enum bpf_func_id)."""


class Use(enum.Enum):
    """How a register is used that holds what was loaded."""

    WORD = "word"
    ADDRESS = "address"
    UNKNOWN = "unknown"
    """Only handed on: to a helper that takes a number, through memory, as the result."""


@dataclass(slots=True)
class Region:
    """The code of a function, and the functions that it calls, by the index of the instruction."""

    code: bytes
    calls: Mapping[int, Region] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class _State:
    """A place in the code, and the registers and stack slots that hold what was loaded."""

    at: int
    registers: frozenset[int]
    slots: frozenset[int] = frozenset()

    def moved(self, register: int, *, holds: bool) -> _State:
        """Return the state after an instruction that writes a register."""
        kept = self.registers | {register} if holds else self.registers - {register}
        return _State(self.at + 1, kept, self.slots)

    def next(self, distance: int = 1) -> _State:
        return _State(self.at + distance, self.registers, self.slots)


def use_of_load(region: Region, index: int) -> Use:
    """Follow the register that the 16-byte load at an instruction writes, until its use tells what it holds."""
    return _follow(region, _State(index + 2, frozenset((region.code[index * INSN_SIZE + 1] & 0xF,))), 0)


def _follow(region: Region, start: _State, depth: int) -> Use:
    code = region.code
    todo = [start]
    seen: set[_State] = set()
    while todo and len(seen) < _MOST_STEPS:
        state = todo.pop()
        if state in seen or not (state.registers or state.slots) or not 0 <= state.at < len(code) // INSN_SIZE:
            continue
        seen.add(state)
        called = region.calls.get(state.at)
        arguments = state.registers & _ARGUMENTS
        if called is not None and arguments and depth < _MOST_CALLS:
            use = _follow(called, _State(0, arguments), depth + 1)
            if use is not Use.UNKNOWN:
                return use
        found = _step(code, state)
        if isinstance(found, Use):
            return found
        todo += found
    return Use.UNKNOWN


def _step(code: bytes, state: _State) -> Use | list[_State]:
    start = state.at * INSN_SIZE
    op, target, source = code[start], code[start + 1] & 0xF, code[start + 1] >> 4
    offset = int.from_bytes(code[start + 2 : start + 4], "little", signed=True)
    kind = op & 7
    if kind == _LDX:
        if source in state.registers:
            return Use.ADDRESS
        spilled = source == _FRAME and op & _DOUBLE_WORD == _DOUBLE_WORD and offset in state.slots
        return [state.moved(target, holds=spilled)]
    if kind in (_ST, _STX):
        return _store(state, op, target, source, offset)
    if kind in (_ALU, _ALU64):
        return _compute(state, op, target, source)
    if kind in (_JMP, _JMP32):
        return _jump(code, state, op, target, source, offset)
    # BPF_LD: a 16-byte load writes a register; the old packet loads write r0 and clobber the arguments.
    return [replace(state.moved(target, holds=False), at=state.at + 2)] if op == LD_IMM64 else [_after_call(state)]


def _store(state: _State, op: int, target: int, source: int, offset: int) -> Use | list[_State]:
    if target in state.registers:
        return Use.ADDRESS
    if op & 7 == _STX and source in state.registers:
        if op & _DOUBLE_WORD != _DOUBLE_WORD:
            return Use.WORD
        if target == _FRAME:
            return [_State(state.at + 1, state.registers, state.slots | {offset})]
        return [state.next()]
    if target == _FRAME and offset in state.slots:
        return [_State(state.at + 1, state.registers, state.slots - {offset})]
    return [state.next()]


def _compute(state: _State, op: int, target: int, source: int) -> Use | list[_State]:
    operation, wide, register = op & 0xF0, op & 7 == _ALU64, bool(op & _FROM_REGISTER)
    given = register and source in state.registers
    if operation == _MOV:
        return Use.WORD if given and not wide else [state.moved(target, holds=given)]
    if target not in state.registers and not given:
        return [state.next()]
    if wide and operation in (_ADD, _SUB):
        return [state.moved(target, holds=True)]
    return Use.WORD


def _jump(code: bytes, state: _State, op: int, target: int, source: int, offset: int) -> Use | list[_State]:
    operation = op & 0xF0
    if op == CALL:
        return _call(code, state, source)
    if operation == _EXIT:
        return []
    if operation == _JA:
        start = state.at * INSN_SIZE
        far = int.from_bytes(code[start + 4 : start + 8], "little", signed=True)
        return [state.next(1 + (far if op & 7 == _JMP32 else offset))]
    if target in state.registers or (op & _FROM_REGISTER and source in state.registers):
        return Use.WORD
    return [state.next(), state.next(1 + offset)]


def _call(code: bytes, state: _State, source: int) -> Use | list[_State]:
    helper = int.from_bytes(code[state.at * INSN_SIZE + 4 : state.at * INSN_SIZE + 8], "little")
    if source == 0 and state.registers.intersection(_POINTER_ARGUMENTS.get(helper, ())):
        return Use.ADDRESS
    return [_after_call(state)]


def _after_call(state: _State) -> _State:
    return _State(state.at + 1, state.registers - _ARGUMENTS - {0}, state.slots)
