"""The default traffic on a node: it passes without a finding, and sees what only some packets meet."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from datapath.base.mapnames import calls_map
from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.tools import run
from lab.traffic.defaults import DENIED_PORT, GSO, cluster_flows, default_flows, flows_of_each
from lab.traffic.flows import Flow, check_flows
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import Traffic
from tests.lab.labs import unique_name
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

ICMP6_NS_SLOT, ARP_SLOT = 4, 6
"""Of bpf/lib/tailcall.h."""


@pytest.fixture(scope="module", params=[False, True], ids=["routes-off", "routes-on"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    spec = NodeSpec(unique_name("flows"), pods=2, endpoint_routes=request.param)
    with Node(spec) as node, Agent(node) as running:
        running.start()
        yield running


@pytest.fixture(autouse=True)
def _neighbours_unknown(request: pytest.FixtureRequest) -> None:
    """Have each test begin without neighbours: one that a former test has made fail is asked for again only later."""
    if "agent" not in request.fixturenames:
        return
    node = request.getfixturevalue("agent").node
    for pod in node.pods:
        run(nsenter(node.netns(pod.name), "ip", "neigh", "flush", "dev", "eth0"))


def allowed(flows: list[Flow]) -> list[Flow]:
    """What passes on a node without policies."""
    return [flow for flow in flows if not flow.denied]


def wait_for_packets(traffic: Traffic, more: int) -> None:
    wanted = traffic.snapshot().sent + more
    deadline = time.monotonic() + 60
    while traffic.snapshot().sent < wanted:
        assert time.monotonic() < deadline, f"{more} packets were not sent within 60 s"
        time.sleep(0.05)


def told(report: TrafficReport) -> list[str]:
    return [str(finding) for finding in report.findings()]


def test_default_traffic_shows_nothing_while_everything_is_reloaded(agent: Agent) -> None:
    flows = allowed([*default_flows(agent.node), *flows_of_each(agent.node)])
    with Traffic(flows, rate=2000) as traffic:
        for subject in agent.subjects:
            agent.reload(subject)
        wait_for_packets(traffic, 1000)
        assert all(burst.complete for burst in traffic.burst_all(2, timeout=10))
        report = traffic.stop()
    assert told(report) == []
    assert all(flow.sent == flow.received for flow in report.flows)


@pytest.mark.parametrize(("slot", "version"), [(ARP_SLOT, 4), (ICMP6_NS_SLOT, 6)], ids=["arp", "icmp6-ns"])
def test_a_slot_that_only_neighbours_need_is_seen_to_be_empty(agent: Agent, slot: int, version: int) -> None:
    """Packets to known neighbours pass without it; the pod's own ask for its gateway."""
    pod = agent.node.pod("pod-1")
    try:
        with Traffic(allowed(default_flows(agent.node)), rate=2000) as traffic:
            wait_for_packets(traffic, 200)
            before = time.monotonic_ns()
            with open_pin(agent.config.globals / calls_map(pod.endpoint_id)) as calls:
                assert progarray.clear(calls.fd, slot)
            wait_for_packets(traffic, 8000)
            report = traffic.stop(drain=0.5)
    finally:
        agent.reload("pod-1")
    found = [finding for finding in report.findings() if finding.kind in ("lost", "late")]
    assert found
    assert all(finding.flow.endswith(f"v{version}") and "pod-1" in finding.flow for finding in found)
    assert all(at > before for finding in found for at in finding.at)


def test_denied_flows_pass_and_are_told_where_no_policy_stops_them(agent: Agent) -> None:
    flows = [flow for flow in default_flows(agent.node) if flow.denied]
    assert {flow.port for flow in flows} == {DENIED_PORT}
    with Traffic(flows, rate=500) as traffic:
        wait_for_packets(traffic, 50 * len(flows))
        report = traffic.stop()
    assert {finding.kind for finding in report.findings()} == {"leaked"}
    assert {finding.flow for finding in report.findings()} == {flow.name for flow in flows}


def test_default_flows_have_every_kind_in_both_versions(agent: Agent) -> None:
    flows = default_flows(agent.node)
    check_flows(flows)
    kinds = {(flow.version, flow.protocol, flow.fresh, flow.refused, flow.denied) for flow in flows}
    for version in (4, 6):
        assert {kind[1:] for kind in kinds if kind[0] == version} == {
            ("udp", False, False, False),
            ("tcp", False, False, False),
            ("udp", True, False, False),
            ("tcp", True, False, False),
            ("icmp", True, False, False),
            ("udp", False, True, False),
            ("udp", True, False, True),
        }
    assert {max(flow.sizes) for flow in flows if flow.protocol == "tcp" and not flow.fresh} == {GSO}
    assert {max(flow.sizes, default=0) for flow in flows if flow.protocol == "icmp"} == {1472, 1452}


def test_every_pod_has_flows_of_its_own(agent: Agent) -> None:
    flows = flows_of_each(agent.node)
    check_flows(flows)
    addresses = {str(address) for pod in agent.node.pods for address in (pod.ipv4, pod.ipv6)}
    assert {flow.target_ip for flow in flows} == addresses


@pytest.mark.parametrize("pods", [0, 1])
def test_a_node_with_few_pods_has_traffic_to_its_health_endpoint(pods: int) -> None:
    with Node(NodeSpec(unique_name("few"), pods=pods)) as node:
        flows = default_flows(node)
        check_flows(flows)
        assert any(flow.target_ip == str(node.facts.health.ipv4) for flow in flows)
        assert not any(flow.source_ip == flow.target_ip for flow in flows)


def test_flows_between_nodes_fit_into_the_tunnel() -> None:
    specs = [NodeSpec(unique_name("fit"), pods=1, tunnel=True, mtu=1400, node_index=index) for index in (0, 1)]
    with Node(specs[0]) as one, Node(specs[1]) as two:
        flows = cluster_flows([one, two])
        check_flows(flows)
        assert {max(flow.sizes) for flow in flows if flow.protocol == "udp" and flow.sizes} == {1322, 1302}
        assert any(flow.denied for flow in flows)
