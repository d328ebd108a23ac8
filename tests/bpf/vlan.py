"""A packet with a VLAN tag that the kernel has taken off already, which BPF_PROG_TEST_RUN alone cannot give it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datapath.base.bpftypes import MapType, ProgType
from datapath.kernel.uapi import TestRun
from datapath.load.collection import Collection
from datapath.load.programs import Program
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from tests.bpf.loaded import Datapath
from tests.bpf.tunnel import insn

_NEXT = "cilium_calls_vlan"
_ETH_P_8021Q = 0x8100


def _with_tag(tci: int) -> CollectionSpec:
    """Return a program that pushes a tag and calls whatever stands in slot 0."""
    code = [
        insn(0xBF, 6, 1),  # r6 = ctx
        insn(0xB7, 2, imm=int.from_bytes(_ETH_P_8021Q.to_bytes(2, "big"), "little")),
        insn(0xB7, 3, imm=tci),
        insn(0x85, imm=18),  # skb_vlan_push
        insn(0xBF, 1, 6),
        insn(0x18, 2, 1),  # r2 = the map, in two words
        bytes(8),
        insn(0xB7, 3),
        insn(0x85, imm=12),  # tail_call
        insn(0xB7, 0, imm=-1),
        insn(0x95),
    ]
    program = ProgramSpec("with_tag", "with-tag", ProgType.SCHED_CLS, b"".join(code), map_refs=((5, _NEXT),))
    maps = {_NEXT: MapSpec(_NEXT, MapType.PROG_ARRAY, 4, 4, 1)}
    return CollectionSpec("with_tag", maps, {program.name: program}, {}, b"", "GPL")


@dataclass(frozen=True, slots=True)
class Tagged:
    """`entry` is a program of the datapath for packets with a certain tag."""

    datapath: Datapath
    entry: Program

    def run(self, frame: bytes) -> TestRun:
        return self.datapath.run(self.entry, frame)


@contextmanager
def tagged(datapath: Datapath, program: str, tci: int) -> Iterator[Tagged]:
    """Let packets meet an entry program with a tag: priority and VLAN."""
    with Collection.load(_with_tag(tci), pin_dir=None) as wrapper:
        entry = datapath.collection.programs[program]
        wrapper.maps[_NEXT].update(bytes(4), entry.fd.to_bytes(4, "little"))
        yield Tagged(datapath, wrapper.programs["with_tag"])
