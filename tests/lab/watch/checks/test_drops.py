"""Drops in a scenario: whose packets died, where, and that each is counted."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf import LIBRARY
from datapath.base.mapnames import calls_map
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from lab.node.node import Node
from lab.node.topology import NODE, OUTSIDE, NodeSpec
from lab.scenario.details import details
from lab.scenario.scenario import Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.system.netns import enter
from lab.traffic.defaults import ends
from lab.traffic.flows import Flow
from lab.traffic.report import TrafficReport
from lab.watch import kernel_drops
from lab.watch.attribution import Ownership
from lab.watch.checks.drops import check_kernel, check_uncounted
from lab.watch.drop_events import DropEvent
from lab.watch.drops import Dropped, Namespace
from lab.watch.kernel_drops import KernelDrop
from lab.watch.packet import TCP, UDP, Packet
from lab.watch.violation import Violation
from tests.lab.labs import unique_name
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged

ODD_SIZE = 777
"""Bytes of payload that no flow has."""


def to_the_outside(node: Node) -> Sequence[Flow]:
    """UDP from a pod to the outside, which the node's kernel forwards."""
    known = ends(node)
    (pod, *pod_ips), (outside, *outside_ips) = known["pod-1"], known[OUTSIDE]
    pairs = enumerate(zip(pod_ips, outside_ips, strict=True))
    return [Flow(f"out v{4 + 2 * n}", pod, str(a), outside, str(b)) for n, (a, b) in pairs]


def violations(scenario: Scenario, invariant: int) -> list[Violation]:
    with pytest.raises(InvariantsViolated) as caught:
        scenario.finish()
    return [violation for violation in caught.value.violations if violation.invariant == invariant]


@pytest.fixture
def scenario() -> Iterator[Scenario]:
    with Scenario(NodeSpec(unique_name("drops"), pods=2), flows=to_the_outside, rate=200) as scenario:
        yield scenario
        scenario.abandon()


def test_a_clean_reload_has_no_drops() -> None:
    with Scenario(NodeSpec(unique_name("drops"), pods=2)) as scenario:
        scenario.reload()
        scenario.finish()
        assert scenario.gaps == []


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_packet_that_the_kernel_drops_is_named_with_its_flow(scenario: Scenario, family: str) -> None:
    target = scenario.traffic.flows[family == "v6"].target_ip
    netns = str(scenario.node.netns(NODE))
    ip(netns, "route", "add", "blackhole", target)
    burst = scenario.traffic.burst(f"out {family}", 5, timeout=0.2)
    ip(netns, "route", "delete", "blackhole", target)
    assert burst.answered == 0
    (found,) = violations(scenario, 12)
    assert re.match(rf"out {family}: \d+ packets? dropped by the kernel: [A-Z_]+ at \w+\+0x", found.what)
    assert f" on {scenario.node.pod('pod-1').ifname} in node" in found.what
    assert len(found.at) >= 5


def test_reasons_that_a_scenario_declares_are_no_violation(scenario: Scenario) -> None:
    target, netns = scenario.traffic.flows[0].target_ip, str(scenario.node.netns(NODE))
    ip(netns, "route", "add", "blackhole", target)
    scenario.traffic.burst("out v4", 5, timeout=0.2)
    ip(netns, "route", "delete", "blackhole", target)
    dropped = {drop.reason for drop in scenario.drops.read().kernel if drop.ifname}
    assert dropped
    scenario.expect(kernel_drops=dropped)
    assert violations(scenario, 12) == []


def test_a_drop_of_a_program_is_named_with_its_flow_and_its_line(scenario: Scenario) -> None:
    endpoint = scenario.node.pod("pod-1").endpoint_id
    with open_pin(scenario.agent.config.globals / calls_map(endpoint)) as calls:
        for slot in progarray.programs(calls.fd):
            progarray.clear(calls.fd, slot)
        burst = scenario.traffic.burst("out v4", 3, timeout=0.2)
    assert burst.answered == 0
    (found,) = violations(scenario, 6)
    assert "packets dropped as Missed tail call (140, egress) instead of 0: " in found.what
    # Those of a version whose neighbour is asked for meanwhile wait for the answer, which is dropped as well.
    assert " of out v" in found.what
    assert " (bpf_lxc.c:" in found.what
    assert len(found.at) >= 3


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Our sources, with a program that drops packets of an odd size and does not count them."""
    library = shutil.copytree(LIBRARY, tmp_path / "bpf")
    source = library / "bpf_lxc.c"
    entry = "\tbegin_chain(ctx, PROGRAM_FROM_CONTAINER);\n"
    assert entry in source.read_text()
    drop = f"\tif (ctx->len == {14 + 20 + 8 + ODD_SIZE})\n\t\treturn TC_ACT_SHOT;\n"
    source.write_text(source.read_text().replace(entry, entry + drop))
    return Path(library)


def test_a_packet_that_a_program_drops_without_counting_it_is_named(library: Path) -> None:
    spec = NodeSpec(unique_name("drops"), pods=2)
    with Scenario(spec, flows=to_the_outside, rate=200, library=library) as scenario:
        pods = scenario.node.pods
        with enter(scenario.node.netns("pod-1")):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(bytes(ODD_SIZE), (str(pods[1].ipv4), 9))
        (found,) = violations(scenario, 12)
        scenario.abandon()
    assert found.what.startswith("1 packet dropped by a program that cilium_metrics does not count: ")
    assert f"of the probe {pods[0].ipv4}:" in found.what
    assert f"(TC_INGRESS of {pods[0].ifname})" in found.what


def test_drops_that_are_counted_for_another_reason_are_named() -> None:
    """The sum is right; which of the two counters is wrong is not known."""
    flow = Flow("there", "a", "10.0.0.1", "b", "10.0.0.2", port=7)
    packet = Packet(ip_address(flow.source_ip), ip_address(flow.target_ip), UDP, bytes((9, 9, 0, 7)))
    events = tuple(DropEvent(time_ns, 140, "bpf_lxc.c", 214, 101, 5, packet) for time_ns in (1, 2, 3))
    dropped = Dropped(Ownership([flow]), {"n": events}, (), True, {}, {}, ())
    assert check_uncounted({(140, 1): 1, (140, 2): 2}, dropped, "n") == []
    (found,) = check_uncounted({(140, 2): 1, (134, 2): 2}, dropped, "n")
    what = "2 packets dropped as Missed tail call that cilium_metrics does not count so: 3 of there (bpf_lxc.c:214)"
    assert (found.invariant, found.what, found.at) == (12, what, (1, 2, 3))


@pytest.mark.parametrize("precise", [True, False])
def test_a_drop_without_a_reason_counts_where_the_kernel_frees_nothing_else_so(precise: bool) -> None:
    flow = Flow("there", "a", "10.0.0.1", "b", "10.0.0.2", port=7)
    packet = Packet(ip_address(flow.source_ip), ip_address(flow.target_ip), UDP, bytes((9, 9, 0, 7)))
    drops = tuple(KernelDrop(at, 0, 1, reason, 0, "", packet) for at, reason in ((1, "NOT_SPECIFIED"), (2, "IP_CSUM")))
    dropped = Dropped(Ownership([flow]), {}, drops, True, {}, {1: Namespace("n", "a")}, (), precise=precise)
    found = check_kernel(dropped, [TrafficReport(0, 3, 0, 0, 0, (), ())])
    reasons = ["NOT_SPECIFIED", "IP_CSUM"] if precise else ["IP_CSUM"]
    assert [reason for violation in found for reason in reasons if reason in violation.what] == reasons
    assert len(found) == len(reasons)


@pytest.mark.parametrize("reason", ["TCP_OLD_DATA", "TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK"])
def test_a_copy_that_comes_too_late_is_no_violation(reason: str) -> None:
    flow = Flow("there", "a", "10.0.0.1", "b", "10.0.0.2", "tcp", port=7)
    packet = Packet(ip_address(flow.source_ip), ip_address(flow.target_ip), TCP, bytes((9, 9, 0, 7)))
    drops = tuple(KernelDrop(at, 0, 1, why, 0, "", packet) for at, why in ((1, reason), (2, "TCP_CSUM")))
    dropped = Dropped(Ownership([flow]), {}, drops, True, {}, {1: Namespace("n", "a")}, ())
    (found,) = check_kernel(dropped, [TrafficReport(0, 3, 0, 0, 0, (), ())])
    assert "TCP_CSUM" in found.what


def test_a_drop_of_a_netkit_device_is_a_verdict_of_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives no reason for it: what counts is where it happened."""
    monkeypatch.setattr(kernel_drops, "extent", lambda _: range(0x100, 0x200))
    flow = Flow("there", "a", "10.0.0.1", "b", "10.0.0.2", port=7)
    packet = Packet(ip_address(flow.source_ip), ip_address(flow.target_ip), UDP, bytes((9, 9, 0, 7)))
    drops = kernel_drops.by_netkit([KernelDrop(at, at, 1, "NOT_SPECIFIED", 0, "", packet) for at in (0x1FF, 0x200)])
    assert [drop.reason for drop in drops] == ["NETKIT", "NOT_SPECIFIED"]
    dropped = Dropped(Ownership([flow]), {}, tuple(drops), True, {}, {1: Namespace("n", "a")}, ())
    (found,) = check_kernel(dropped, [TrafficReport(0, 0x300, 0, 0, 0, (), ())])
    assert found.at == (0x200,)


@pytest.fixture
def without_tracepoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose kernel does not tell its types."""
    kernel_drops.tracing.cache_clear()
    monkeypatch.setattr(kernel_drops, "VMLINUX", tmp_path / "vmlinux")
    yield
    kernel_drops.tracing.cache_clear()


@pytest.mark.usefixtures("without_tracepoint")
def test_without_the_tracepoint_a_counter_of_losses_is_a_violation() -> None:
    spec = NodeSpec(unique_name("drops"), pods=1)
    with Scenario(spec, flows=to_the_outside, rate=200, policy=None) as scenario:
        netns = str(scenario.node.netns(NODE))
        ip(netns, "route", "add", "unreachable", "2001:db8::/32")
        with enter(scenario.node.netns("pod-1")):
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(b"lost", ("2001:db8::1", 9))
            deadline = time.monotonic() + 5
            while not scenario.drops.read().counters and time.monotonic() < deadline:
                time.sleep(0.02)
        ip(netns, "route", "delete", "unreachable", "2001:db8::/32")
        dropped = scenario.drops.read()
        found = violations(scenario, 12)
        scenario.abandon()
    assert [what for what in (violation.what for violation in found) if what.startswith("node: the kernel counts ")]
    gap = "kernel drops are not watched, only counted: the kernel has no BTF: CONFIG_DEBUG_INFO_BTF is not set"
    assert details([scenario])["gaps"] == [gap]
    assert check_kernel(dropped, [], frozenset(("IP_INNOROUTES",))) == []
    assert check_kernel(dropped, [], frozenset(("UDP_CSUM",))) != []


@pytest.mark.usefixtures("without_tracepoint")
def test_without_the_tracepoint_a_clean_reload_passes() -> None:
    with Scenario(NodeSpec(unique_name("drops"), pods=2, endpoint_routes=True)) as scenario:
        scenario.reload()
