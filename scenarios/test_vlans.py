"""Tagged frames, and a VLAN device on the uplink: traffic over it and beside it, while the filter of frames changes.

A kernel without CONFIG_VLAN_8021Q has no such device: there the scenarios with one are skipped.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from reloadlab import (
    METRIC_INGRESS,
    NODE,
    OUTSIDE,
    ClusterScenario,
    Flow,
    FrameSocket,
    Gate,
    Node,
    ReloadlabError,
    Scenario,
    Step,
    Workspace,
    default_flows,
    packet_counters,
    slowness,
)
from scenarios.frames import eth

VLAN_ID, OTHER = 100, 200
VLAN = f"eth0.{VLAN_ID}"
WITH, WITHOUT = ("eth0", VLAN), ("eth0",)
FILTERED = 182, METRIC_INGRESS
"""DROP_VLAN_FILTERED of bpf/lib/drop.h, at the ingress of the uplink."""
ETH_P_EXPERIMENT = 0x88B5
"""Of no protocol that is known here (IEEE 802, Local Experimental EtherType 1)."""
PATIENCE = 1.0
"""Seconds that a drop may take to be counted, on an ordinary machine."""
ROUNDS = 10


def beside_the_vlan(node: Node) -> list[Flow]:
    """Return the default flows without those over the VLAN, whose filter does not let them pass all the time."""
    return [flow for flow in default_flows(node) if VLAN not in flow.name]


def attached(**options: Any) -> pytest.MarkDecorator:
    """Run a scenario on a node with the VLAN by tc, and by what the kernel has: by tcx from Linux 6.6 on."""
    ways = [
        pytest.param(way, marks=pytest.mark.node(pods=1, devices=WITH, agent={"attach": way}, **options))
        for way in ("tc", "auto")
    ]
    return pytest.mark.parametrize("attach", ways)


class TaggedFrames:
    """Sends tagged frames to the node's uplink, and tells what becomes of them. `drops` is how many were dropped."""

    def __init__(self, scenario: Scenario) -> None:
        self.node = scenario.node
        self.drops = 0
        self._numbers: Iterator[int] = itertools.count()
        # A frame that passes ends at its device, as nobody takes the EtherType.
        scenario.expect(kernel_drops={"UNHANDLED_PROTO"})

    def arrive(self) -> bool:
        """Tell whether a frame of the VLAN arrives at its device; it must not be counted as dropped then."""
        before, payload = self._counted(), self._payload()
        with FrameSocket(self.node.netns(NODE), VLAN) as device:
            self._send(VLAN_ID, payload)
            found = device.receive(lambda frame: payload in frame) is not None
        return found and self._counted() == before

    def are_dropped(self, vlan: int = VLAN_ID) -> bool:
        """Tell whether a frame of a VLAN is dropped, and counted once."""
        before, deadline = self._counted(), time.monotonic() + PATIENCE * slowness()
        self._send(vlan, self._payload())
        while not (moved := self._counted() - before) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.drops += moved
        return moved == 1

    def passes(self, vlan: int) -> bool:
        """Tell whether a frame of a VLAN that has no device is not dropped, when one sent behind it has arrived."""
        uplink, before, behind = self.node.facts.uplink, self._counted(), self._payload()
        with FrameSocket(self.node.netns(NODE), uplink.name) as inside:
            self._send(vlan, self._payload())
            self._send(None, behind)
            arrived = inside.receive(lambda frame: behind in frame) is not None
        moved = self._counted() - before
        self.drops += moved
        return arrived and moved == 0

    def _payload(self) -> bytes:
        return f"<tagged frame {next(self._numbers):06}>".encode().ljust(50, b"\0")

    def _send(self, vlan: int | None, payload: bytes) -> None:
        uplink = self.node.facts.uplink
        assert uplink.peer_mac is not None
        frame = eth(uplink.mac, uplink.peer_mac, ETH_P_EXPERIMENT, payload)
        with FrameSocket(self.node.netns(OUTSIDE), uplink.name) as outside:
            tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
            outside.send(frame[:12] + tag + frame[12:])

    def _counted(self) -> int:
        return packet_counters(self.node).get(FILTERED, 0)


@pytest.mark.node(pods=1, devices=WITHOUT)
def test_frames_are_dropped_unless_a_macro_lets_them_pass(scenario: Scenario) -> None:
    """Those of every VLAN, for the node has none; and by a macro, as with vlan-bpf-bypass 0, none of them."""
    frames, agent = TaggedFrames(scenario), scenario.agent
    defines = agent.config.defines
    for passing in (False, True, False):
        agent.configure(defines=(*defines, ("VLAN_FILTER(ifindex,vlan_id)", "return true;")) if passing else defines)
        scenario.reload("host")
        for vlan in (1, OTHER, 4094):
            assert frames.passes(vlan) if passing else frames.are_dropped(vlan), vlan
    scenario.expect(drops={FILTERED: frames.drops})


@attached()
def test_traffic_over_the_vlan_goes_on(scenario: Scenario, attach: str) -> None:
    """And beside it: the node has programs at both devices, and the lower one sees the VLAN's frames first."""
    for _ in range(ROUNDS):
        scenario.reload("host")
    scenario.reload()


@pytest.mark.cluster(pods=1, devices=WITH)
def test_nodes_talk_over_the_vlan(cluster: ClusterScenario) -> None:
    """Whichever of them is reloaded."""
    cluster.reload("1/host", "2/host")


@attached(flows=beside_the_vlan)
def test_filter_follows_the_devices(scenario: Scenario, attach: str) -> None:
    """Frames of the VLAN pass while its device is a native device, and those of another VLAN never do."""
    frames = TaggedFrames(scenario)
    for devices in (WITHOUT, WITH, WITHOUT, WITH):
        scenario.agent.configure(devices=devices)
        scenario.reload("host")
        assert frames.arrive() if VLAN in devices else frames.are_dropped(), devices
        assert frames.are_dropped(OTHER), devices
    scenario.expect(drops={FILTERED: frames.drops})


class Injected(ReloadlabError):
    """The fault of this file."""


def fail(step: Step, work: Workspace) -> None:
    raise Injected(f"after {step.name} {step.target}")


@pytest.mark.parametrize(("before", "after"), [(WITH, WITHOUT), (WITHOUT, WITH)], ids=["taken away", "added"])
@pytest.mark.node(pods=1, devices=WITH, flows=beside_the_vlan)
def test_fault_while_the_device_is(scenario: Scenario, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """After a reload that fails behind any of its steps the former filter holds."""
    frames = TaggedFrames(scenario)
    scenario.agent.configure(devices=before)
    scenario.reload("host")
    scenario.agent.configure(devices=after)
    for number, step in enumerate(scenario.agent.plan("host").steps[:-1], 1):
        scenario.reload_fails("host", Injected, gate=Gate(fail, after="*", nth=number))
        assert frames.arrive() if VLAN in before else frames.are_dropped(), step
    scenario.agent.configure(devices=before)
    scenario.reload("host")
    scenario.expect(drops={FILTERED: frames.drops})
