"""Pairs of pods between which traffic is measured, with the programs of a build or without programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import enter
from datapath.kernel.routes import Route, upsert
from lab.agent.agent import Agent
from lab.agent.cluster import Cluster, cluster_specs
from lab.bench.load import Ends
from lab.node import links
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec, PodFacts
from lab.system import tools
from lab.system.sockets import Address

PLAIN, TWO = "no programs", "two nodes"
RULES = 10_000
"""Rules of the receiver's policy in the variant with many; each allows another identity, one of them the sender's."""

_FOREIGN = 1 << 16
"""The first of the identities that no endpoint has."""


@dataclass(frozen=True, slots=True)
class Build:
    """Programs of our own sources or of `library`, with further macros. `name` is empty for our own build."""

    name: str = ""
    library: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()

    @property
    def prefix(self) -> str:
        return f"{self.name}: " if self.name else ""


@dataclass(frozen=True, slots=True)
class Pair:
    """The sender, which is the first pod of a node, and the receiver, the last pod of the same node or of another."""

    name: str
    source_node: Node
    target_node: Node

    @property
    def source(self) -> PodFacts:
        return self.source_node.pods[0]

    @property
    def target(self) -> PodFacts:
        return self.target_node.pods[-1]

    def ends(self, version: int) -> Ends:
        return Ends(_address(self.source_node, self.source, version), _address(self.target_node, self.target, version))


def _address(node: Node, pod: PodFacts, version: int) -> Address:
    return Address(str(node.netns(pod.name)), str(pod.ipv4 if version == 4 else pod.ipv6), 0)


def pair_without_programs(stack: ExitStack, name: str = "bench-plain") -> Pair:
    """Return two pods of one node without programs."""
    node = stack.enter_context(Node(NodeSpec(name, pods=2, endpoint_routes=True)))
    _route_pods(node)
    return Pair(PLAIN, node, node)


def _route_pods(node: Node) -> None:
    """Install routes to the pods of a node, and the router's address on each of their devices."""
    with NetlinkSocket(node.netns(NODE)) as netlink:
        for pod in node.pods:
            for address in (pod.ipv4, pod.ipv6):
                upsert(netlink, Route(address, pod.ifindex))
            netlink.request("add the router's address", links.add_address(pod.ifindex, node.spec.router6, 128))


def tunnel_pair_without_programs(stack: ExitStack, name: str = "bench-plain") -> Pair:
    """Return pods of two nodes without programs; the routes between them set the tunnel's destination."""
    specs = cluster_specs(name, 2, pods=1, tunnel=True, endpoint_routes=True)
    source_node, target_node = (stack.enter_context(Node(spec)) for spec in specs)
    for node, peer in ((source_node, target_node), (target_node, source_node)):
        _route_pods(node)
        tunnel, far = node.facts.vxlan.name, f"{peer.spec.node4.ip}"
        with enter(node.netns(NODE)):
            for network in (peer.spec.pod_cidr4, peer.spec.pod_cidr6):
                tools.run(["ip", "route", "replace", f"{network}", "encap", "ip", "id", "1", "dst", far, "dev", tunnel])
            for address in (peer.pods[0].ipv4, peer.pods[0].ipv6):
                tools.run(["ip", "neigh", "replace", f"{address}", "lladdr", peer.facts.vxlan.mac, "dev", tunnel])
    return Pair(f"{TWO}, {PLAIN}", source_node, target_node)


def one_node(stack: ExitStack, build: Build, number: int) -> Iterator[Pair]:
    """Yield two pods of one node for each mode of a build."""
    for mode, routes, rules in (
        ("endpoint routes off", False, 0),
        ("endpoint routes on", True, 0),
        (f"endpoint routes off, {RULES:,} rules", False, RULES),
    ):
        spec = NodeSpec(f"bench-{number}-{int(routes)}-{rules}", pods=2, endpoint_routes=routes)
        node = stack.enter_context(Node(spec))
        agent = stack.enter_context(Agent(node, library=build.library, defines=build.defines))
        agent.start()
        pair = Pair(f"{build.prefix}{mode}", node, node)
        if rules:
            identities = [pair.source.identity, *range(_FOREIGN, _FOREIGN + rules - 1)]
            ingress = [{"fromIdentities": identities}]
            agent.apply_policies({"name": "bench", "endpoint": pair.target.name, "ingress": ingress})
        yield pair


def two_nodes(stack: ExitStack, build: Build, number: int) -> Pair:
    """Return pods of two nodes that are connected by the tunnel."""
    specs = cluster_specs(f"bench-{number}", 2, pods=1, tunnel=True)
    cluster = stack.enter_context(Cluster(specs, library=build.library, defines=build.defines))
    cluster.start()
    return Pair(f"{build.prefix}{TWO}", *cluster.nodes)
