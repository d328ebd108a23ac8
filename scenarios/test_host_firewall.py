"""The host's own policy on the wire: what reaches the host, and what it sends, from and to pods, nodes and outside.

Programs are built with ENABLE_HOST_FIREWALL; the policy is that of the endpoint "host". All chapters hold for every
node of the cluster at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from reloadlab import (
    HOST,
    METRIC_INGRESS,
    NODE,
    OUTSIDE,
    REMOTE_NODE_ID,
    Address,
    Cluster,
    ClusterScenario,
    Counters,
    Flow,
    Gate,
    NoMasquerading,
    PolicyKey,
    Probe,
    Result,
    Scenario,
    Step,
    Workspace,
    cluster_flows,
    ends,
    exchange,
    is_ours,
    masquerading,
    packet_counters,
    rule_counters,
)
from scenarios.steps import steps_of
from scenarios.tables import (
    ANYTHING,
    JUMBO_PING,
    PING,
    PODS,
    POLICY,
    Case,
    Chapter,
    allowed,
    chapter,
    refused,
    tcp,
    udp,
)
from scenarios.test_policy_wire import MIXED, TCP, TRACKED, UDP, WEB_AND_DNS, label, ports
from scenarios.test_policy_wire import OUTSIDE as OUTSIDE_CIDR
from scenarios.wire import BESIDE, Wire

WEB, DNS = tcp(80), udp(53)
USUAL = (PING, WEB, DNS)
DENIED_BY_DEFAULT = (POLICY, METRIC_INGRESS)


def host_chapter(name: str, rules: dict[str, Any], *cases: Sequence[Case]) -> Chapter:
    return chapter(name, rules, *cases, subject=HOST)


INGRESS = [
    host_chapter(
        "no policy",
        {},
        allowed("client", ANYTHING, *USUAL, JUMBO_PING, udp(53, "fragments"), target="host"),
        allowed("client", ANYTHING, *USUAL, target="node", near=True),
        allowed("outside", ANYTHING, *USUAL, udp(53, "fragments"), target="node"),
        allowed("outside", ANYTHING, *USUAL, target="host"),
        allowed("host", ANYTHING, *USUAL, target="host", near=False),
    ),
    host_chapter(
        "a port for all, all for one",
        {"ingress": [{"toPorts": ports("80/TCP")}, {"fromEndpoints": label("client")}]},
        allowed("client", ("client", 0, 0), PING, DNS, target="host"),
        allowed("client", ("any", TCP, 80), WEB, target="host"),
        allowed("stranger", ("any", TCP, 80), WEB, target="host"),
        refused("stranger", PING, DNS, target="host"),
        refused("stranger", PING, DNS, target="node", near=True),
        allowed("outside", ("any", TCP, 80), WEB, target="node"),
        refused("outside", PING, DNS, target="node"),
        refused("outside", PING, DNS, target="host"),
        allowed("host", ("any", TCP, 80), WEB, target="host", near=False),
        refused("host", PING, DNS, target="host", near=False),
        # What passes the host is not its own; whom it asks may answer.
        allowed("outside", ANYTHING, *USUAL, target="client"),
        allowed("client", ANYTHING, *USUAL, target="server"),
        allowed("host", ANYTHING, *USUAL, target="stranger"),
        allowed("node", ANYTHING, *USUAL, target="outside"),
    ),
    host_chapter(
        "all but",
        {
            "ingress": [{"fromEntities": ["all"]}],
            "ingressDeny": [{"fromEndpoints": label("stranger")}, {"fromEntities": ["world"]}],
        },
        allowed("client", ANYTHING, *USUAL, target="host"),
        refused("stranger", *USUAL, rule=("stranger", 0, 0), target="host"),
        refused("outside", *USUAL, rule=("world", 0, 0), target="node"),
        allowed("host", ANYTHING, *USUAL, target="host", near=False),
    ),
    host_chapter(
        "other nodes",
        {"ingress": [{"fromEntities": ["remote-node"]}]},
        allowed("host", ("remote-node", 0, 0), *USUAL, target="host", near=False),
        refused("client", PING, target="host"),
        refused("outside", PING, target="node"),
    ),
    host_chapter(
        "cidr",
        {"ingress": [{"fromCIDR": OUTSIDE_CIDR, "toPorts": WEB_AND_DNS}]},
        allowed("outside", ("cidr", TCP, 80), WEB, target="node"),
        allowed("outside", ("cidr", UDP, 53), DNS, target="node"),
        refused("outside", PING, target="node"),
    ),
]

EGRESS = [
    host_chapter(
        "to label and port",
        {"egress": [{"toEndpoints": label("server"), "toPorts": WEB_AND_DNS}]},
        allowed("host", ("server", TCP, 80), WEB),
        allowed("host", ("server", UDP, 53), DNS),
        refused("host", PING, tcp(81)),
        refused("host", *USUAL, target="stranger"),
        refused("host", *USUAL, target="outside"),
        refused("node", PING, target="outside"),
        refused("host", WEB, target="host", near=False),
        # Whoever asks is answered; what passes the host is not its own.
        allowed("client", ANYTHING, *USUAL, target="host"),
        allowed("outside", ANYTHING, *USUAL, target="node"),
        allowed("client", ANYTHING, *USUAL, target="outside"),
    ),
    host_chapter(
        "to the world",
        {"egress": [{"toEntities": ["world"]}]},
        allowed("host", ("world", 0, 0), *USUAL, target="outside"),
        allowed("node", ("world", 0, 0), *USUAL, target="outside"),
        refused("host", *USUAL),
    ),
    host_chapter(
        "to all but",
        {"egress": [{"toEntities": ["all"]}], "egressDeny": [{"toEndpoints": label("stranger")}]},
        allowed("host", ANYTHING, *USUAL),
        refused("host", *USUAL, rule=("stranger", 0, 0), target="stranger"),
    ),
    host_chapter(
        "to other nodes",
        {"egress": [{"toEntities": ["remote-node"]}]},
        allowed("host", ("remote-node", 0, 0), *USUAL, target="host", near=False),
        refused("host", PING),
    ),
]


def within(chapters: Sequence[Chapter]) -> list[Chapter]:
    """Return what is left of chapters where no device has programs: nothing comes from outside, or goes there."""
    return [
        replace(each, cases=tuple(case for case in each.cases if OUTSIDE not in (case.source, case.target)))
        for each in chapters
    ]


def quiet_host(cluster: Cluster) -> list[Flow]:
    """Return the usual flows but those of hosts: the counters of their rules are to be exact."""
    return [flow for flow in cluster_flows(cluster.nodes) if "host" not in flow.name]


AGENT = {"defines": (("ENABLE_HOST_FIREWALL", "1"),)}


def network(name: str, *, fragments: bool = False, **options: Any) -> Any:
    agent = {"defines": AGENT["defines"] + TRACKED["defines"]} if fragments else AGENT
    mtu = 9000 if fragments else 1500
    mark = pytest.mark.cluster(pods=PODS, mtu=mtu, flows=quiet_host, rate=BESIDE, policy=None, agent=agent, **options)
    return pytest.param("devices" in options, fragments, id=name, marks=mark)


NETWORKS = [
    network("native", devices=("eth0",)),
    network("native, mixed, fragments tracked", devices=("eth0",), each=MIXED, fragments=True),
    network("tunnel, mixed", tunnel=True, each=MIXED),
]


@pytest.mark.parametrize(("devices", "fragments"), NETWORKS)
def test_policy_of_the_host(cluster: ClusterScenario, devices: bool, fragments: bool) -> None:
    """Ping, TCP, UDP; to the packet."""
    chapters = [*INGRESS, *EGRESS]
    with Wire(cluster, fragments=fragments, firewall=True) as wire:
        wrong = wire.run(chapters if devices else within(chapters))
    assert wire.asked > 100
    assert not wrong, "\n".join(wrong)


UNSEEN_BY_PACKETS = ("compile", "write object", "load programs")
"""Steps behind which every pin, slot, hook and route is what it was before."""


@pytest.mark.parametrize(("devices", "fragments"), NETWORKS[1:])
def test_reloaded(cluster: ClusterScenario, devices: bool, fragments: bool) -> None:
    """The policy is another at each gate; the host's programs, or the pod's that call them, are replaced meanwhile."""
    chosen = (INGRESS[1], EGRESS[0], INGRESS[2], EGRESS[2])
    chapters = itertools.cycle(chosen if devices else within(chosen))
    wrong: list[str] = []
    asked: list[str] = []

    def ask(step: Step, _: object) -> None:
        if step.name not in UNSEEN_BY_PACKETS:
            asked.append(step.name)
            wrong.extend(f"{step}: {line}" for line in wire.run([next(chapters)]))

    with Wire(cluster, to=[2], fragments=fragments, firewall=True) as wire:
        cluster.reload("2/host", "2/client", gate=Gate(ask, after="*"))
    plans = [cluster.cluster.agent(2).plan(subject) for subject in ("host", "client")]
    assert len(asked) >= sum(step.name not in UNSEEN_BY_PACKETS for plan in plans for step in plan.steps)
    assert not wrong, "\n".join(wrong)


TUNNEL_ALLOWED = {"fromEntities": ["remote-node"], "toPorts": ports("8472/UDP")}


@pytest.mark.cluster(pods=PODS, tunnel=True, devices=("eth0",), flows=lambda _: [], rate=0, policy=None, agent=AGENT)
def test_the_tunnel_is_traffic_of_the_host(cluster: ClusterScenario) -> None:
    """What pods send through it passes the policy of the receiving node's host first, as a packet of the other node."""
    nodes, receiver = cluster.cluster.nodes, cluster.cluster.node(2)
    probe, rule = Probe("udp", 53, count=5), PolicyKey(REMOTE_NODE_ID, False, UDP, 8472)
    for source_port, (rules, arrived) in enumerate([([{}], 0), ([TUNNEL_ALLOWED], 5)], 30000):
        cluster.cluster.apply_policies([{"name": "tunnel", "endpoint": HOST, "ingress": rules}])
        (here, source, _), (there, target, _) = ends(nodes[0])["client"], ends(receiver)["server"]
        before = Counters(packet_counters(receiver))
        result = exchange(
            Address(here, str(source), source_port),
            Address(there, str(target), probe.port),
            probe,
            settled=lambda before=before: DENIED_BY_DEFAULT in Counters(packet_counters(receiver)).drops_since(before),  # type: ignore[misc]
        )
        assert result == Result(arrived, arrived)
        counted = [rule_counters(node, HOST).get((HOST, rule), (0, 0))[0] for node in nodes]
        assert counted == [arrived, arrived]
    cluster.expect_on(2, drops={DENIED_BY_DEFAULT: 5})
    cluster.cluster.apply_policies([])


@pytest.mark.node(pods=2, devices=("eth0",), policy=None, agent=AGENT)
def test_whom_the_host_asks_may_answer(scenario: Scenario) -> None:
    """Although nobody may begin anything with it; at every step, also of the reload that takes its device away."""
    scenario.agent.apply_policies([{"name": "nobody", "endpoint": HOST, "ingress": [{}]}])
    unanswered, gate = asking(node_and_outside(scenario))
    steps = 0
    for devices in (("eth0",), ()):
        scenario.agent.configure(devices=devices)
        steps += steps_of(scenario.agent, "host")
        scenario.reload("host", gate=gate)
    scenario.agent.apply_policies([])
    assert gate.passed >= steps
    assert not unanswered, "\n".join(unanswered)


@pytest.mark.node(pods=1, devices=("eth0",), flows=lambda _: [], rate=0, policy=None, agent=AGENT)
def test_whom_the_host_asks_may_answer_while_the_firewall_goes(scenario: Scenario) -> None:
    """A device's ingress program asks for what its egress program has noted: it is the first that stops asking."""
    scenario.agent.apply_policies([{"name": "nobody", "endpoint": HOST, "ingress": [{}]}])
    unanswered, gate = asking(node_and_outside(scenario))
    scenario.agent.configure(defines=())
    scenario.agent.reload_all(observer=gate)
    scenario.agent.apply_policies([])
    assert gate.passed >= steps_of(scenario.agent)
    assert not unanswered, "\n".join(unanswered)


@pytest.mark.cluster(pods=1, tunnel=True, flows=lambda _: [], rate=0, policy=None, agent=AGENT)
def test_pods_that_the_host_asks_may_answer_while_the_firewall_goes(cluster: ClusterScenario) -> None:
    """Those of another node, whose answers come by the tunnel to the ingress program of cilium_host."""
    agent, (own, other) = cluster.cluster.agent(1), cluster.cluster.nodes
    agent.apply_policies([{"name": "nobody", "endpoint": HOST, "ingress": [{}]}])
    host, pod = ends(own)[HOST], ends(other)["pod-1"]
    unanswered, gate = asking([(host[0], str(host[which]), pod[0], str(pod[which])) for which in (1, 2)])
    agent.configure(defines=())
    agent.reload_all(observer=gate)
    agent.apply_policies([])
    assert gate.passed >= steps_of(agent)
    assert not unanswered, "\n".join(unanswered)


def node_and_outside(scenario: Scenario) -> list[tuple[str, str, str, str]]:
    """Return the node's own addresses and those of the outside, of each family."""
    node, spec = scenario.node, scenario.node.spec
    here, there = str(node.netns(NODE)), str(node.netns(OUTSIDE))
    pairs = ((spec.node4.ip, spec.outside4.ip), (spec.node6.ip, spec.outside6.ip))
    return [(here, str(own), there, str(other)) for own, other in pairs]


def asking(pairs: Sequence[tuple[str, str, str, str]]) -> tuple[list[str], Gate]:
    """Return a gate after each step at which one end asks the other, and what was not answered, the first time.

    An end is its network namespace and its address.
    """
    ports, unanswered = itertools.count(30000), list[str]()

    def ask(step: Step, _: Workspace) -> None:
        for here, own, there, other in pairs if not unanswered else ():
            result = exchange(Address(here, own, next(ports)), Address(there, other, 53), Probe("udp", 53, count=1))
            if result != Result(1, 1):
                unanswered.append(f"{step}: {own} -> {other}: {result}")

    return unanswered, Gate(ask, after="*")


@pytest.mark.node(pods=1, devices=("eth0",), flows=lambda _: [], rate=0, policy=None, agent=AGENT)
def test_who_asks_in_the_name_of_the_host_is_answered(scenario: Scenario) -> None:
    """A pod whose packets get the host's address as they leave, although nobody may begin anything with the host."""
    scenario.agent.apply_policies([{"name": "nobody", "endpoint": HOST, "ingress": [{}]}])
    (here, *sources), (there, *targets) = ends(scenario.node)["pod-1"], ends(scenario.node)[OUTSIDE]
    pairs, ports = [*zip(sources, targets, strict=True)], itertools.count(30000)
    unanswered: list[str] = []

    def asked(source: object, target: object) -> Result:
        return exchange(
            Address(here, str(source), next(ports)), Address(there, str(target), 53), Probe("udp", 53, count=2)
        )

    def ask(step: Step, _: Workspace) -> None:
        for source, target in pairs if not unanswered else ():
            result = asked(source, target)
            if result != Result(2, 2):
                unanswered.append(f"{step}: {source} -> {target}: {result}")

    gate = Gate(ask, after="*")
    try:
        with masquerading(scenario.node.netns(NODE), "eth0"):
            # The reference commit remembers masqueraded connections of IPv4 alone; 1.14.18 does those of IPv6, too.
            if not is_ours(scenario.agent.config.library) and asked(*pairs[-1]) != Result(2, 2):
                scenario.leave_out("answers to masqueraded IPv6: the host's policy of these sources stops them")
                scenario.expect(drops={DENIED_BY_DEFAULT: 2})
                pairs.pop()
            scenario.reload("host", "pod-1", gate=gate)
    except NoMasquerading as error:
        pytest.skip(str(error))
    scenario.agent.apply_policies([])
    assert gate.passed >= steps_of(scenario.agent, "host", "pod-1")
    assert not unanswered, "\n".join(unanswered)
