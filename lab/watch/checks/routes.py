"""Invariant 5: the way of packets to the endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from datapath.kernel.routes import RT_TABLE_MAIN
from datapath.reload.plans import CILIUM_HOST
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, PodFacts
from lab.watch.network import Network
from lab.watch.networkdiff import differences, names
from lab.watch.snapshot import Snapshot
from lab.watch.violation import Violation


def check_routes(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield the endpoints whose routes do not match the routing mode (invariant 5).

    Both are looked at: the direct routes of the main table, and the way that a packet of the node takes after all
    rules, which may lead by another table.
    """
    node = agent.node
    for pod in (node.pod(name) for name in (HEALTH, *(pod.name for pod in node.pods))):
        for address in (pod.ipv4, pod.ipv6):
            yield from (Violation(5, f"{pod.name}: {what}") for what in _routes(agent, now, pod, address))
    yield from (Violation(5, what) for what in _node_route(agent, now))


def _routes(agent: Agent, now: Snapshot, pod: PodFacts, address: IPv4Address | IPv6Address) -> Iterator[str]:
    found = now.routes.get(str(address))
    if agent.endpoint_routes and found != pod.ifindex:
        yield f"no direct route to {address}"
        return
    if not agent.endpoint_routes and found is not None:
        yield f"direct route to {address} is left over"
        return
    table, ifindex = now.ways.get(str(address), (RT_TABLE_MAIN, 0))
    wanted = pod.ifname if agent.endpoint_routes else CILIUM_HOST
    taken = names(now.around.network).get(ifindex, "nothing")
    if taken != wanted:
        by = "" if table == RT_TABLE_MAIN else f" by table {table}"
        yield f"packets of the node to {address} go to {taken}{by} instead of {wanted}"


def _node_route(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield what is wrong with the one route to all pods, by cilium_host: with endpoint routes there is none."""
    network, spec = now.around.network, agent.node.spec
    present = {each.destination for each in differences(Network(), network) if each.main and each.ifname == CILIUM_HOST}
    for pods in (spec.pod_cidr4, spec.pod_cidr6):
        if (str(pods) in present) == agent.endpoint_routes:
            yield f"the node's route to {pods} is {'left over' if agent.endpoint_routes else 'missing'}"
