"""A packet as the tunnel device hands it up: with a tunnel key, which BPF_PROG_TEST_RUN alone cannot give it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datapath.base.bpftypes import MapType, ProgType
from datapath.kernel.uapi import TestRun
from datapath.load.collection import Collection
from datapath.load.programs import Program
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from tests.bpf.loaded import Datapath

_NEXT = "cilium_calls_tunnel"
_KEY_SIZE = 8  # the head of struct bpf_tunnel_key: identity, address of the other node


def insn(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("<BBhi", op, dst | src << 4, off, imm)


def _with_key(identity: int) -> CollectionSpec:
    """Return a program that sets the key and calls whatever stands in slot 0."""
    code = [
        insn(0xBF, 6, 1),  # r6 = ctx
        insn(0x62, 10, off=-8, imm=identity),
        insn(0x62, 10, off=-4, imm=0x0A000001),
        insn(0xBF, 2, 10),
        insn(0x07, 2, imm=-8),
        insn(0xB7, 3, imm=_KEY_SIZE),
        insn(0xB7, 4),
        insn(0x85, imm=21),  # skb_set_tunnel_key
        insn(0xBF, 1, 6),
        insn(0x18, 2, 1),  # r2 = the map, in two words
        bytes(8),
        insn(0xB7, 3),
        insn(0x85, imm=12),  # tail_call
        insn(0xB7, 0, imm=-1),
        insn(0x95),
    ]
    program = ProgramSpec("with_key", "with-key", ProgType.SCHED_CLS, b"".join(code), map_refs=((9, _NEXT),))
    maps = {_NEXT: MapSpec(_NEXT, MapType.PROG_ARRAY, 4, 4, 1)}
    return CollectionSpec("with_key", maps, {program.name: program}, {}, b"", "GPL")


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """The overlay's programs; `entry` is cil_from_overlay for packets with a certain identity."""

    datapath: Datapath
    entry: Program

    def run(self, frame: bytes) -> TestRun:
        return self.datapath.run(self.entry, frame)


@contextmanager
def tunnelled(datapath: Datapath, identity: int) -> Iterator[Tunnelled]:
    """Let packets come out of the tunnel with an identity as their VNI."""
    with Collection.load(_with_key(identity), pin_dir=None) as wrapper:
        entry = datapath.collection.programs["cil_from_overlay"]
        wrapper.maps[_NEXT].update(bytes(4), entry.fd.to_bytes(4, "little"))
        yield Tunnelled(datapath, wrapper.programs["with_key"])
