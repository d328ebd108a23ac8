"""What the programs on a packet's way cost, and nothing else: the kernel runs them itself (BPF_PROG_TEST_RUN).

The packet is one that was captured on this way, so its connection is known; the tail calls are made as for any other.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError
from datapath.kernel.bpf import prog_test_run
from datapath.kernel.hooks import Direction, filters
from datapath.kernel.inventory import program_by_id
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import enter
from lab.bench.load import TTL, UdpLoad
from lab.bench.pairs import Pair
from lab.node.topology import NODE

RUNS = TTL - 5
"""Of a packet at once: each takes one hop of it."""

REPEAT = 20
TC_ACT_OK, TC_ACT_REDIRECT = 0, 7
_CONTEXT = struct.Struct("=8xI24xII")
"""The beginning of struct __sk_buff: mark, ingress_ifindex, ifindex."""


class NoCost(ReloadlabError):
    """Programs that do not do with a captured packet what they did when it came; str() says which."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A program at a hook, and a packet with its context as they get there; `verdict` is what it did with it."""

    fd: int
    frame: bytes
    context: bytes
    verdict: int


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs at both hooks of a packet's way, one after the other."""

    name: str
    netns: Path
    hops: tuple[Hop, ...]

    def run(self) -> float:
        """Return the seconds that they take: the best of some thousand runs each."""
        with enter(self.netns):
            return sum(min(self._run(hop) for _ in range(REPEAT)) for hop in self.hops) / 1e9

    def _run(self, hop: Hop) -> int:
        run = prog_test_run(hop.fd, hop.frame, repeat=RUNS, context=hop.context)
        if run.retval != hop.verdict:
            raise NoCost(f"{self.name}: after {RUNS} runs the verdict is {run.retval} instead of {hop.verdict}")
        return run.duration_ns


def follow(stack: ExitStack, pair: Pair, version: int) -> Programs:
    """Send packets, and follow one of them through the programs of its way as it left the sender."""
    netns = pair.here.netns(NODE)
    with UdpLoad(pair.ends(version)) as load:
        frame = load.capture(netns, pair.source.ifname)
    mark, hops = 0, []
    hooks = ((pair.source.ifindex, Direction.INGRESS), (pair.target.ifindex, Direction.EGRESS))
    with enter(netns), NetlinkSocket() as netlink:
        for ifindex, direction in hooks:
            for found in filters(netlink, ifindex, direction):
                fd = stack.enter_context(program_by_id(found.program_id))
                context = _CONTEXT.pack(mark, pair.source.ifindex, ifindex)
                run = prog_test_run(fd, frame, context=context)
                if run.retval not in (TC_ACT_OK, TC_ACT_REDIRECT):
                    raise NoCost(f"{pair.name}: {found.name} does not let a packet pass that it let pass before")
                hops.append(Hop(fd, frame, context, run.retval))
                frame, (mark, *_) = run.data, _CONTEXT.unpack_from(run.context)
    return Programs(pair.name, netns, tuple(hops))
