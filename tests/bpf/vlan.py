"""A packet with a VLAN tag that the kernel has taken off already, which BPF_PROG_TEST_RUN alone cannot give it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tests.bpf.loaded import Datapath
from tests.bpf.wrapped import Wrapped, insn, wrapped

_ETH_P_8021Q = 0x8100


def tagged(datapath: Datapath, program: str, tci: int) -> AbstractContextManager[Wrapped]:
    """Let packets meet an entry program with a tag: priority and VLAN."""
    push = [
        insn(0xB7, 2, imm=int.from_bytes(_ETH_P_8021Q.to_bytes(2, "big"), "little")),
        insn(0xB7, 3, imm=tci),
        insn(0x85, imm=18),  # skb_vlan_push
    ]
    return wrapped(datapath, program, push)
