"""Exactly a scenario's flows pass; what is denied is dropped, to the packet, in every mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from datapath.base.mapnames import policy_map
from lab.agent.cluster import Cluster, cluster_specs
from lab.agent.policyfile import parse
from lab.node.node import Node
from lab.node.topology import FIRST_ENDPOINT, HEALTH, HEALTH_ENDPOINT, NodeSpec
from lab.scenario.flowpolicy import flow_policy
from lab.scenario.scenario import ClusterScenario, Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.traffic.defaults import cluster_flows, default_flows, ends
from lab.traffic.flows import Flow
from lab.watch import metrics
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


def with_denied(flows: Sequence[Flow]) -> list[Flow]:
    """Return flows, and for each of old UDP that a pod's policy can refuse one that must be denied."""
    udp = [flow for flow in flows if flow.protocol == "udp" and "host" not in flow.name]
    udp = [flow for flow in udp if not (flow.fresh or flow.refused or flow.denied)]
    return [*flows, *(replace(flow, name=f"{flow.name} no", port=7014, denied=True) for flow in udp)]


def on_node(node: Node) -> list[Flow]:
    return with_denied(default_flows(node))


def on_cluster(cluster: Cluster) -> list[Flow]:
    return with_denied(cluster_flows(cluster.nodes))


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["off", "on"])
def test_denied_packets_are_counted_to_the_packet(endpoint_routes: bool) -> None:
    """Before, during and after reloads, and while the mode is switched, which counts them at another hook."""
    spec = NodeSpec(unique_name("denied"), pods=2, endpoint_routes=endpoint_routes)
    with Scenario(spec, flows=on_node) as scenario:
        scenario.reload()
        scenario.set_endpoint_routes(not endpoint_routes)
        scenario.finish()
    denied = scenario.phases[0].denied
    assert {name.split(" udp")[0] for name in denied} >= {"pod-1 -> pod-2", "pod-1 -> outside", "outside -> pod-1"}
    assert all(count > 0 for count in denied.values())


@pytest.mark.parametrize(
    "options",
    [{}, {"tunnel": True, "each": {2: {"endpoint_routes": True}}}, {"devices": ("eth0",)}],
    ids=["native", "tunnel-mixed", "devices"],
)
def test_several_nodes(options: dict[str, Any]) -> None:
    specs = cluster_specs(unique_name("denied")[:28], 2, pods=2, **options)
    with ClusterScenario(specs, flows=on_cluster) as scenario:
        scenario.reload("1/pod-1", "2/pod-1", "2/host")
        scenario.finish()
    denied = scenario.phases[0].denied
    assert denied
    assert all(count > 0 for count in denied.values())


def open_the_door(scenario: Scenario) -> None:
    """Let everything in to pod-1, behind the back of the scenario."""
    agent, listener = scenario.agent, scenario.agent.on_policies
    agent.on_policies = None
    agent.apply_policies([])
    agent.on_policies = listener


def test_a_packet_that_passes_although_it_is_denied_is_found() -> None:
    with Scenario(NodeSpec(unique_name("denied"), pods=2), flows=on_node) as scenario:
        open_the_door(scenario)
        scenario.reload("pod-1")
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert "passed although they are denied" in str(caught.value)


def test_other_policies_end_the_denied_flows() -> None:
    """Nobody knows what becomes of them then; those of before count all the same."""
    with Scenario(NodeSpec(unique_name("denied"), pods=1), flows=on_node) as scenario:
        scenario.expect(changed=frozenset(map(policy_map, (HEALTH_ENDPOINT, FIRST_ENDPOINT))))
        scenario.agent.apply_policies([])
        before = scenario.traffic.snapshot().denied
        assert all(burst.flow not in before for burst in scenario.traffic.burst_all(1))
        scenario.pause()
        assert scenario.phases[0].denied == before
        scenario.resume()
        scenario.finish()
    assert scenario.phases[1].denied == {}


def test_without_a_policy_nothing_is_denied() -> None:
    with Scenario(NodeSpec(unique_name("denied"), pods=1), flows=on_node, policy=None) as scenario:
        scenario.finish()
    assert scenario.phases[0].denied == {}


def rules(document: Sequence[dict[str, Any]], endpoint: str) -> tuple[list[Any], list[Any]]:
    (policy,) = [each for each in document if each["endpoint"] == endpoint]
    return policy["ingress"], policy["egress"]


@pytest.fixture(scope="module")
def node() -> Any:
    with Node(NodeSpec(unique_name("rules"), pods=3)) as node:
        yield node


def flow(node: Node, source: str, target: str, **changes: Any) -> Flow:
    (here, mine, _), (there, theirs, _) = (ends(node)[name] for name in (source, target))
    return replace(Flow(f"{source} -> {target}", here, str(mine), there, str(theirs)), **changes)


def port(protocol: str) -> dict[str, Any]:
    return {"toPorts": [{"ports": [{"port": "7007", "protocol": protocol}]}]}


def test_rules_name_peers_by_identity_and_nothing_else_passes(node: Node) -> None:
    flows = [flow(node, "pod-1", "pod-2"), flow(node, "host", "pod-1"), flow(node, "outside", "pod-1", protocol="tcp")]
    policy = flow_policy([node], flows)
    document = policy.documents[node.name]
    assert len(parse(document)) == 4
    one, two = node.pod("pod-1").identity, node.pod("pod-2").identity
    udp, tcp = port("UDP"), port("TCP")
    ingress, egress = rules(document, "pod-1")
    assert ingress == [{}, {"fromIdentities": [1], **udp}, {"fromIdentities": [2], **tcp}]
    assert egress == [{}, {"toIdentities": [two], **udp}]
    assert rules(document, "pod-2") == ([{}, {"fromIdentities": [one], **udp}], [{}])
    for idle in ("pod-3", HEALTH):
        assert rules(document, idle) == ([{}], [{}])


def test_foreign_sources_see_neighbour_discovery_as_traffic_of_the_world(node: Node) -> None:
    flows = [flow(node, "pod-1", "pod-2"), flow(node, "host", "pod-1")]
    document = flow_policy([node], flows, foreign=True).documents[node.name]
    assert len(parse(document)) == 4
    types = [{"type": 135, "family": "IPv6"}, {"type": 136, "family": "IPv6"}]
    ingress, egress = rules(document, "pod-1")
    assert ingress[1:] == [
        {"fromIdentities": [2], "icmps": [{"fields": types}]},
        {"fromIdentities": [1], **port("UDP")},
    ]
    assert egress[1] == {"toIdentities": [2], "icmps": [{"fields": types}]}
    # Between pods it stays as it is.
    assert rules(document, "pod-2")[0][2:] == [{"fromIdentities": [node.pod("pod-1").identity], **port("UDP")}]


def test_echo_is_allowed_by_its_type(node: Node) -> None:
    policy = flow_policy([node], [flow(node, "pod-1", "pod-2", protocol="icmp")])
    _, egress = rules(policy.documents[node.name], "pod-1")
    assert egress[1]["icmps"] == [{"fields": [{"type": 8, "family": "IPv4"}]}]


def test_a_denied_flow_is_refused_by_its_last_pod(node: Node) -> None:
    """The sender lets it go if the receiver has a policy: only so does the packet come to that."""
    flows = [
        flow(node, "pod-1", "pod-2", denied=True),
        flow(node, "outside", "pod-1", denied=True),
        flow(node, "pod-1", "outside", denied=True),
    ]
    policy = flow_policy([node], flows)
    assert policy.refusals == {
        "pod-1 -> pod-2": (node.name, metrics.INGRESS),
        "outside -> pod-1": (node.name, metrics.INGRESS),
        "pod-1 -> outside": (node.name, metrics.EGRESS),
    }
    document = policy.documents[node.name]
    two = node.pod("pod-2").identity
    assert rules(document, "pod-1") == ([{}], [{}, {"toIdentities": [two], **port("UDP")}])
    assert rules(document, "pod-2") == ([{}], [{}])
