"""An entry program behind another one that gives its packets what BPF_PROG_TEST_RUN alone cannot give them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from datapath.base.bpftypes import MapType, ProgType
from datapath.kernel.uapi import TestRun
from datapath.load.collection import Collection
from datapath.load.programs import Program
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec
from tests.bpf.loaded import Datapath

_NAME, _NEXT = "wrapper", "cilium_calls_wrapper"


def insn(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("<BBhi", op, dst | src << 4, off, imm)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The programs of a datapath; `entry` is the one that packets meet."""

    datapath: Datapath
    entry: Program

    def run(self, frame: bytes) -> TestRun:
        return self.datapath.run(self.entry, frame)


@contextmanager
def wrapped(datapath: Datapath, program: str, prepare: Sequence[bytes]) -> Iterator[Wrapped]:
    """Have instructions run before an entry program: they find the packet in r1 and r6, and must keep r6."""
    with Collection.load(_calling(prepare), pin_dir=None) as wrapper:
        entry = datapath.collection.programs[program]
        wrapper.maps[_NEXT].update(bytes(4), entry.fd.to_bytes(4, "little"))
        yield Wrapped(datapath, wrapper.programs[_NAME])


def _calling(prepare: Sequence[bytes]) -> CollectionSpec:
    """Return a program that does this, then calls whatever stands in slot 0."""
    before = [insn(0xBF, 6, 1), *prepare, insn(0xBF, 1, 6)]  # r6 = ctx; r1 = r6
    code = [
        *before,
        insn(0x18, 2, 1),  # r2 = the map, in two words
        bytes(8),
        insn(0xB7, 3),
        insn(0x85, imm=12),  # tail_call
        insn(0xB7, 0, imm=-1),
        insn(0x95),
    ]
    program = ProgramSpec(_NAME, _NAME, ProgType.SCHED_CLS, b"".join(code), map_refs=((len(before), _NEXT),))
    maps = {_NEXT: MapSpec(_NEXT, MapType.PROG_ARRAY, 4, 4, 1)}
    return CollectionSpec(_NAME, maps, {program.name: program}, {}, b"", "GPL")
