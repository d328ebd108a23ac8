"""A packet as the tunnel device hands it up: with a tunnel key, which BPF_PROG_TEST_RUN alone cannot give it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tests.bpf.loaded import Datapath
from tests.bpf.wrapped import Wrapped, insn, wrapped

_KEY_SIZE = 8  # the head of struct bpf_tunnel_key: identity, address of the other node


def tunnelled(datapath: Datapath, identity: int) -> AbstractContextManager[Wrapped]:
    """Let packets come out of the tunnel, to cil_from_overlay, with an identity as their VNI."""
    set_key = [
        insn(0x62, 10, off=-8, imm=identity),
        insn(0x62, 10, off=-4, imm=0x0A000001),
        insn(0xBF, 2, 10),
        insn(0x07, 2, imm=-8),
        insn(0xB7, 3, imm=_KEY_SIZE),
        insn(0xB7, 4),
        insn(0x85, imm=21),  # skb_set_tunnel_key
    ]
    return wrapped(datapath, "cil_from_overlay", set_key)
