"""Which flows meet which endpoints: where the two ends of a flow are."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from lab.node.node import Node
from lab.node.topology import HOST, PodFacts
from lab.traffic.flows import Flow


def endpoint_of(nodes: Sequence[Node], address: str) -> tuple[Node, PodFacts] | None:
    """Return the pod or health endpoint that has this address, with its node; None if none has it."""
    wanted = ip_address(address)
    for node in nodes:
        for pod in (node.facts.health, *node.pods):
            if wanted in (pod.ipv4, pod.ipv6):
                return node, pod
    return None


def host_of(nodes: Sequence[Node], address: str) -> Node | None:
    """Return the node whose own address this is, among the pods, on the underlay or a VLAN; None if it is none's."""
    wanted = ip_address(address)
    for node in nodes:
        spec = node.spec
        if wanted in (spec.router4, spec.router6, *spec.underlay_addresses):
            return node
    return None


def meets(flow: Flow, nodes: Sequence[Node], node: Node, subject: str) -> bool:
    """Tell whether packets of a flow meet the programs of an endpoint, of the host, the overlay or XDP of a node.

    Those of a pod meet what the pod sends and gets. Those of the host meet what enters or leaves the node, and what the
    host itself sends and gets; those of the overlay what goes from one node to another, if there is a tunnel; those
    of XDP what comes from another node or the outside, as each packet or its answer does.
    """
    pods = [endpoint_of(nodes, address) for address in (flow.source_ip, flow.target_ip)]
    if subject not in (HOST, OVERLAY_SUBJECT, XDP_SUBJECT):
        return any(found is not None and (found[0].name, found[1].name) == (node.name, subject) for found in pods)
    places = [_place(nodes, address) for address in (flow.source_ip, flow.target_ip)]
    if node.name not in places:
        return False
    if subject == OVERLAY_SUBJECT:
        return node.spec.tunnel and None not in places and places[0] != places[1]
    if subject == XDP_SUBJECT:
        return bool(node.spec.devices) and places[0] != places[1]
    return not all(found is not None and found[0].name == node.name for found in pods)


def _place(nodes: Sequence[Node], address: str) -> str | None:
    """Return the name of the node on which an address is; None for the outside."""
    found = endpoint_of(nodes, address)
    host = found[0] if found is not None else host_of(nodes, address)
    return None if host is None else host.name
