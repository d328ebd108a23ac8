"""XDP programs of the native devices: the prefilter over reloads, changes of the mode, programs of others, rollback."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import pytest

from reloadlab import (
    METRIC_INGRESS,
    Cancelled,
    FrameSocket,
    Gate,
    NetlinkSocket,
    ProgType,
    ReloadlabError,
    Scenario,
    Step,
    Workspace,
    XdpAttachMode,
    XdpMode,
    XdpTaken,
    attach_xdp,
    detach_xdp,
    prog_load,
    take_snapshot,
    xdp_takes_frags,
)
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, datagram, eth, ipv4, ipv6

DENIED = ("198.51.100.0/25", "203.0.113.7/32", "2001:db8:bad::/48", "2001:db8::7/128")
SOURCES4 = [IPv4Address("198.51.100.9"), IPv4Address("203.0.113.7")]
SOURCES6 = [IPv6Address("2001:db8:bad::9"), IPv6Address("2001:db8::7")]
OVERHEAD = 28
"""Bytes of the headers of IPv4 and UDP."""
INTERVAL = 0.002
"""Seconds between two rounds of denied packets, of which each has one of every source."""
POLICY_DENIED_BY_DENYLIST, XDP_PASS = 181, 2
CIDR_MAPS = frozenset(f"cilium_cidr_v{version}_{kind}" for version in (4, 6) for kind in ("dyn", "fix"))
MODES: tuple[tuple[XdpMode | None, str | None], ...] = (
    *(("generic", "generic"), ("best-effort", "native")),
    *((None, None), ("native", "native")),
)
"""Modes that are asked for, and what the device then has."""
MOMENT = "had no XDP program for a moment"
OWN_STEPS = pytest.mark.own_loader("XDP programs are attached by our own pipeline")
pytestmark = [pytest.mark.own_sources, OWN_STEPS]
FRAGS = pytest.mark.skipif(
    os.geteuid() == 0 and not xdp_takes_frags(), reason="no XDP programs for frames in several pieces: Linux 5.18"
)


class Injected(ReloadlabError):
    """A fault that a gate raises."""


def inject(step: Step, work: Workspace) -> None:
    raise Injected(f"injected after {step.name}")


@dataclass
class Flood:
    """Frames of denied sources from outside to a pod; `sent` counts them."""

    scenario: Scenario
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, outside: FrameSocket) -> None:
        frames = list(self._frames())
        while not self._stop.wait(INTERVAL):
            for frame in frames:
                outside.send(frame)
                self.sent += 1

    def stop(self) -> None:
        self._stop.set()

    def _frames(self) -> Iterator[bytes]:
        uplink, pod = self.scenario.node.facts.uplink, self.scenario.node.pod("pod-1")
        assert uplink.peer_mac is not None
        for source4 in SOURCES4:
            # One as large as they come: with a large MTU a native program is given it in pieces.
            room = self.scenario.node.spec.mtu - OVERHEAD if source4 == SOURCES4[0] else 0
            message = datagram(source4, pod.ipv4, b"denied".ljust(room), sport=40000, dport=53)
            yield eth(uplink.mac, uplink.peer_mac, ETH_P_IP, ipv4(source4, pod.ipv4, message))
        for source6 in SOURCES6:
            message = datagram(source6, pod.ipv6, b"denied", sport=40000, dport=53)
            yield eth(uplink.mac, uplink.peer_mac, ETH_P_IPV6, ipv6(source6, pod.ipv6, message))


@contextmanager
def flood(scenario: Scenario) -> Iterator[Flood]:
    """Deny some prefixes and send packets from them: each must be counted as denied, and so none has gone on."""
    scenario.agent.deny(*DENIED)
    scenario.expect(changed=CIDR_MAPS)
    made = Flood(scenario)
    with FrameSocket(scenario.node.netns("outside"), "eth0") as outside:
        thread = threading.Thread(target=made.run, args=(outside,))
        thread.start()
        try:
            yield made
        finally:
            made.stop()
            thread.join()
    assert made.sent > 0
    scenario.expect(drops={(POLICY_DENIED_BY_DENYLIST, METRIC_INGRESS): made.sent})


@contextmanager
def foreign_program() -> Iterator[int]:
    """Hold the program of somebody else, which lets every packet pass, for the time of a block."""
    passing = struct.pack("=BBhiBBhi", 0xB7, 0, 0, XDP_PASS, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
    fd = prog_load(ProgType.XDP, passing, "GPL", name="acme_xdp")
    assert fd >= 0
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(scenario: Scenario) -> str | None:
    """Return the mode of the device's program; None without one."""
    found = take_snapshot(scenario.node).xdp.get("eth0", ())
    assert len(found) <= 1
    return str(found[0].mode) if found else None


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("native", marks=pytest.mark.node(pods=1, devices=("eth0",), xdp="native")),
        pytest.param(
            "native",
            marks=[pytest.mark.node(pods=1, devices=("eth0",), xdp="native", mtu=9000), FRAGS],
            id="native with an MTU of 9000",
        ),
        pytest.param("generic", marks=pytest.mark.node(pods=1, devices=("eth0",), xdp="generic")),
    ],
)
def test_denied_prefix_never_arrives(scenario: Scenario, mode: str) -> None:
    """Over reloads of XDP and of the host, and while the maps of the prefixes are replaced by larger ones."""
    with flood(scenario) as denied:
        scenario.reload("xdp", "host", "xdp")
        scenario.define(CIDR4_HMAP_ELEMS="1000", CIDR4_LMAP_ELEMS="1000")
        scenario.expect(migrated=CIDR_MAPS)
        scenario.reload("xdp")
        assert mode_of(scenario) == mode
    assert denied.sent > 100


@pytest.mark.node(pods=1, devices=("eth0",), xdp="native")
def test_mode_is_changed(scenario: Scenario) -> None:
    """There and back, off and on: what is allowed loses nothing. The kernel has one mode at a time."""
    scenario.expect(warnings=frozenset({MOMENT}))
    for mode, there in MODES:
        scenario.agent.set_xdp(mode)
        assert mode_of(scenario) == there
        assert ("xdp" in scenario.agent.subjects) == (mode is not None)


@pytest.mark.node(pods=1, devices=("eth0",), xdp="native")
def test_failure_at_each_step_leaves_everything(scenario: Scenario) -> None:
    """In place, in another mode, and when the device leaves the list: the old program stays, or is attached again."""

    def cancel(step: Step, work: Workspace) -> None:
        work.cancel.set()

    for number, _ in enumerate(scenario.agent.plan("xdp").steps[:-1], 1):
        scenario.reload_fails("xdp", Cancelled, gate=Gate(cancel, after="*", nth=number))
    for changes, step in (({"xdp": "generic"}, "attach xdp"), ({"devices": ()}, "detach xdp")):
        scenario.agent.configure(**changes)
        scenario.reload_fails("xdp", Injected, gate=Gate(inject, after=step, target="eth0"))
        scenario.agent.configure(xdp="native", devices=("eth0",))
    scenario.reload("xdp")


@pytest.mark.node(pods=1, devices=("eth0",), xdp="native")
def test_program_of_others_is_not_replaced(scenario: Scenario) -> None:
    """The reload refuses with one line and changes nothing; a device that leaves the list keeps it as well."""
    uplink = scenario.node.facts.uplink.ifindex
    with foreign_program() as fd, NetlinkSocket(scenario.node.netns("node")) as netlink:
        scenario.agent.configure(devices=())
        scenario.reload("xdp")
        assert mode_of(scenario) is None
        attach_xdp(netlink, uplink, XdpAttachMode.GENERIC, fd)
        scenario.reload("xdp")
        scenario.agent.configure(devices=("eth0",))
        error = scenario.reload_fails("xdp", XdpTaken)
        assert str(error).startswith("eth0: generic XDP has the program acme_xdp (id ")
        detach_xdp(netlink, uplink, XdpAttachMode.GENERIC, expected_fd=fd)
    scenario.reload("xdp")
