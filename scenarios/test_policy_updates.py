"""Policies that change while packets are under way: what is allowed before and after is never dropped in between."""

from __future__ import annotations

import pytest

from reloadlab import Cluster, ClusterScenario, Flow, Scenario, Traffic, slowness
from scenarios.pinned import pinned
from scenarios.test_two_nodes import NETWORKS

ROUNDS = 20

EVERYBODY = {"fromEntities": ["all"]}
SPELLED_OUT = {"fromEntities": ["cluster", "world"], "fromCIDR": ["172.20.0.0/16", "fd00:172:20::/48"]}


def open_to(*rules: object) -> list[dict[str, object]]:
    """Return a policy for every pod with these rules for what comes in."""
    return [{"name": "open", "endpointSelector": {}, "ingress": list(rules)}]


POLICIES = [open_to(EVERYBODY), open_to(SPELLED_OUT), []]
"""All of them let everything pass, each by other entries."""


@pytest.mark.parametrize("network", [pytest.param("node"), pytest.param("endpoint-routes")])
@pytest.mark.node(pods=3, policy=None)
def test_one_node(scenario: Scenario, network: str) -> None:
    """From one policy to the next, with reloads in between, which see whatever state the maps are in."""
    if network == "endpoint-routes":
        scenario.set_endpoint_routes(True)
    scenario.expect(changed=frozenset({pinned(scenario.agent, "cilium_ipcache")}))
    for number in range(ROUNDS):
        scenario.agent.apply_policies(POLICIES[number % len(POLICIES)])
        scenario.reload(scenario.agent.subjects[number % len(scenario.agent.subjects)])
    scenario.agent.apply_policies([])


@pytest.mark.cluster(pods=2, tunnel=True, each={2: {"endpoint_routes": True}}, policy=None)
def test_two_nodes(cluster: ClusterScenario) -> None:
    """Both nodes, one after the other: between the two they have different policies."""
    for number in range(ROUNDS):
        cluster.cluster.apply_policies(POLICIES[number % len(POLICIES)])
        cluster.reload(f"{number % 2 + 1}/pod-1")
    cluster.cluster.apply_policies([])


DENIED, BURST = (181, 1), 50
"""Denied by a rule, on the way in; packets of each flow."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.cluster(policy=None)
def test_denied_on_the_other_node(cluster: ClusterScenario, network: str) -> None:
    """One pod is kept out by its labels, wherever it lives; all others are let in by a wider rule; to the packet."""
    document = open_to(EVERYBODY)[0] | {"ingressDeny": [{"fromEndpoints": [{"matchLabels": {"name": "pod-2"}}]}]}
    cluster.cluster.apply_policies(document)
    names = ("cilium_policy_00101", "cilium_policy_00102", "cilium_ipcache")
    cluster.expect(changed=frozenset(pinned(cluster.cluster.agent(1), name) for name in names))
    cluster.expect_on(2, drops={DENIED: 2 * BURST})
    with Traffic(_flows(cluster.cluster), rate=0, warm_up=False) as traffic:
        for flow in traffic.flows:
            burst = traffic.burst(flow.name, BURST, timeout=0.3 * slowness())
            assert (burst.sent, burst.answered) == (BURST, 0)
            cluster.reload("1/pod-2", "2/pod-1", "2/host")
    assert cluster.silence() == []
    cluster.cluster.apply_policies([])


def _flows(cluster: Cluster) -> list[Flow]:
    """Return UDP from a pod of the first node to one of the second that nothing else talks to this way."""
    sender, receiver = cluster.pod("1/pod-2"), cluster.pod("2/pod-1")
    ends = str(cluster.node(1).netns("pod-2")), str(cluster.node(2).netns("pod-1"))
    return [
        Flow("v4", ends[0], str(sender.ipv4), ends[1], str(receiver.ipv4), port=7017),
        Flow("v6", ends[0], str(sender.ipv6), ends[1], str(receiver.ipv6), port=7017),
    ]
