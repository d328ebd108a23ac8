"""The cost of the programs on a packet's path alone: the kernel runs them (BPF_PROG_TEST_RUN).

The packet was captured on this path, so its connection is known; tail calls are made as for any packet.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError
from datapath.kernel import tcx
from datapath.kernel.bpf import prog_test_run
from datapath.kernel.hooks import Direction, filters
from datapath.kernel.inventory import program_by_id
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import enter
from lab.bench.load import TTL, UdpLoad
from lab.bench.pairs import Pair
from lab.node.topology import NODE

RUNS = TTL - 5
"""Runs on one packet in one call: each of them takes one hop."""

REPEAT = 20
TC_ACT_OK, TC_ACT_REDIRECT = 0, 7
_CONTEXT = struct.Struct("=8xI24xII")
"""The beginning of struct __sk_buff: mark, ingress_ifindex, ifindex."""


class VerdictChanged(ReloadlabError):
    """A program returned another verdict for the captured packet than before; str() names it."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A program at a hook, the packet and the context that arrive there, and the program's verdict."""

    fd: int
    frame: bytes
    context: bytes
    verdict: int


@dataclass(frozen=True, slots=True)
class PathPrograms:
    """The programs at both hooks of a packet's path, in their order."""

    name: str
    netns: Path
    hops: tuple[Hop, ...]

    def run(self) -> float:
        """Return the seconds that the programs take: the best of REPEAT calls with RUNS runs each."""
        with enter(self.netns):
            return sum(min(self._run(hop) for _ in range(REPEAT)) for hop in self.hops) / 1e9

    def _run(self, hop: Hop) -> int:
        run = prog_test_run(hop.fd, hop.frame, repeat=RUNS, context=hop.context)
        if run.retval != hop.verdict:
            raise VerdictChanged(f"{self.name}: after {RUNS} runs the verdict is {run.retval} instead of {hop.verdict}")
        return run.duration_ns


def capture_path(stack: ExitStack, pair: Pair, version: int) -> PathPrograms:
    """Capture a packet as it leaves the sender, run the programs of its path on it once, and return them."""
    netns = pair.source_node.netns(NODE)
    with UdpLoad(pair.ends(version)) as load:
        frame = load.capture(netns, pair.source.ifname)
    mark, hops = 0, []
    hooks = ((pair.source.ifindex, Direction.INGRESS), (pair.target.ifindex, Direction.EGRESS))
    with enter(netns), NetlinkSocket() as netlink:
        for ifindex, direction in hooks:
            links = tcx.programs(netns, ifindex, direction)
            at_hook = [(found.entry.program_id, found.name) for found in links]
            at_hook += [(found.program_id, found.name) for found in filters(netlink, ifindex, direction)]
            for ident, name in at_hook:
                fd = stack.enter_context(program_by_id(ident))
                context = _CONTEXT.pack(mark, pair.source.ifindex, ifindex)
                run = prog_test_run(fd, frame, context=context)
                if run.retval not in (TC_ACT_OK, TC_ACT_REDIRECT):
                    raise VerdictChanged(f"{pair.name}: {name} drops a packet that it forwarded before")
                hops.append(Hop(fd, frame, context, run.retval))
                frame, (mark, *_) = run.data, _CONTEXT.unpack_from(run.context)
    return PathPrograms(pair.name, netns, tuple(hops))
