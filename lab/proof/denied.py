"""Packets whose fate XDP alone decides: those of denied prefixes, which the programs of the uplink drop and count.

Nothing else tells an empty XDP hook from one that has its program: what XDP lets pass, it lets pass unchanged.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address

from bpf import is_ours
from datapath.base.mapnames import CIDR_MAPS, METRICS
from datapath.errors import BpfError
from datapath.kernel import bpf, xdp
from datapath.kernel.inventory import Known
from datapath.kernel.map import Map
from datapath.kernel.netlink import NetlinkSocket
from lab.abi.reasons import POLICY_DENIED_BY_DENYLIST
from lab.node.topology import NODE, OUTSIDE, UPLINK
from lab.proof.watched import SECONDS
from lab.scenario.scenario import Scenario
from lab.system.pace import slowness
from lab.traffic.framesocket import FrameSocket
from lab.watch import metrics

_PREFIXES = ("198.51.100.0/24", "2001:db8:bad::/48")
_SOURCES: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("198.51.100.9"), 6: IPv6Address("2001:db8:bad::9")}
_TARGETS: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8:0:1::1")}
"""Of nobody: what gets through is nobody's packet, and leaves nothing behind."""
_SOMEBODY = bytes.fromhex("02ff00000001")
"""The MAC of a device that is not there: XDP sees the frame, and the stack leaves it to that device."""
_COUNTER = POLICY_DENIED_BY_DENYLIST, metrics.INGRESS
_PAUSE, _AT_ONCE = 0.001, 0.02
"""Seconds between two looks, and in which a drop is counted on an ordinary machine that is not busy."""
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_UDP = struct.pack("!4H", 40000, 9, 8, 0)


class Denied:
    """Has a node deny a prefix of each version, and sends packets from them to its uplink.

    `Denied.by(scenario)` is None if the uplink has no XDP program, or one of other C sources.
    """

    def __init__(self, scenario: Scenario) -> None:
        scenario.agent.deny(*_PREFIXES)
        scenario.expect(changed=CIDR_MAPS)
        self._scenario = scenario
        # Its end takes longer than all packets of a call.
        self._outside = scenario.keep(FrameSocket(scenario.node.netns(OUTSIDE), UPLINK))
        self._known = Known()
        self._first = self._pinned()

    @classmethod
    def by(cls, scenario: Scenario) -> Denied | None:
        """Return what sends such packets to the scenario's node; other sources do not count what XDP denies."""
        config = scenario.agent.config
        if config.xdp is None or UPLINK not in config.devices:
            return None
        if not is_ours(config.library):
            scenario.leave_out("what XDP denies: only our own C counts it")
            return None
        return cls(scenario)

    def passed(self, *, seconds: float = SECONDS) -> list[str]:
        """Send a packet of each version; return what was not dropped in time, as texts."""
        what = "a packet of IPv{} from a prefix that XDP denies was not dropped"
        with self._counters() as maps:
            return [what.format(version) for version in (4, 6) if not self._is_dropped(_frame(version), maps, seconds)]

    def expect_counted(self) -> None:
        """Declare the drops that were counted so far."""
        self._scenario.expect(drops={_COUNTER: self._pinned() - self._first})

    def _is_dropped(self, frame: bytes, maps: Sequence[Map], seconds: float) -> bool:
        """Send a frame, whose drop is nearly always counted at once; else send another one, and look behind XDP."""
        before = _counted(maps)
        self._outside.send(frame)
        if _is_counted(maps, before, _AT_ONCE * slowness()):
            return True
        deadline = time.monotonic() + seconds * slowness()
        with FrameSocket(self._scenario.node.netns(NODE), UPLINK) as behind:
            self._outside.send(frame)
            while time.monotonic() < deadline and behind.receive(frame.__eq__, timeout=_PAUSE) is None:
                if _counted(maps) > before + 1:
                    return True
        return False

    @contextmanager
    def _counters(self) -> Iterator[Sequence[Map]]:
        """Open the maps in which the programs of the uplink count, which need not be the pinned one."""
        node = self._scenario.node
        with ExitStack() as stack:
            with NetlinkSocket(node.netns(NODE)) as netlink:
                programs = [each.program_id for each in xdp.attached(netlink, node.facts.uplink.ifindex)]
            reached = map(_open, self._known.reach(programs).maps)
            yield [stack.enter_context(each) for each in reached if each is not None]

    def _pinned(self) -> int:
        return metrics.packets(self._scenario.node).get(_COUNTER, 0)


def _open(ident: int) -> Map | None:
    """Open a map of counters; None if it is another one, or gone. Nothing else is held: arrays would stay filled."""
    try:
        opened = Map.of(bpf.map_fd_by_id(ident), METRICS)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    if opened.info.name != METRICS:
        opened.close()
        return None
    return opened


def _is_counted(maps: Sequence[Map], before: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _counted(maps) == before:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _counted(maps: Sequence[Map]) -> int:
    return sum(
        value.count for each in maps for key, value in metrics.totals(each).items() if (key.reason, key.dir) == _COUNTER
    )


def _frame(version: int) -> bytes:
    source, target = _SOURCES[version].packed, _TARGETS[version].packed
    if version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(_UDP), 0, 0, 64, 17, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, len(_UDP), 17, 64)
    link = _SOMEBODY + bytes.fromhex("02ff00000002") + struct.pack("!H", _ETHERTYPES[version])
    return link + header + source + target + _UDP
