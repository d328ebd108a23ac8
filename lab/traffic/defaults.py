"""The traffic that runs by default: which endpoints of a node, or of several, talk to which others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from lab.node.node import Node
from lab.node.topology import HEALTH, NODE, OUTSIDE
from lab.traffic.flows import Flow

RATE = 2000.0
"""Packets a second over all flows: one every 0.5 ms, a few for each of the slower steps of a reload."""


End = tuple[str, IPv4Address, IPv6Address]
"""A namespace's path, and the IPv4 and IPv6 address of the endpoint in it."""


def default_flows(node: Node) -> list[Flow]:
    """Return UDP both ways and TCP, IPv4 and IPv6, between all kinds of endpoints of a node.

    The health endpoint takes the place of the pods where there are none.
    """
    first, last = _first_and_last(node)
    pairs = [(first, last), (first, "outside"), ("outside", first), ("host", first), (first, HEALTH)]
    return _flows(ends(node), pairs)


def cluster_flows(nodes: Sequence[Node]) -> list[Flow]:
    """Return UDP both ways and TCP, IPv4 and IPv6, between the first node and each of the others, and within it.

    The health endpoint takes the place of a node's pods where there are none.
    """
    first, last = _first_and_last(nodes[0])
    pairs = [(f"1/{first}", f"1/{last}")]
    for number, node in enumerate(nodes[1:], 2):
        pod = f"{number}/{_first_and_last(node)[0]}"
        pairs += [(f"1/{first}", pod), (pod, f"1/{first}"), ("1/host", pod), (pod, "1/host")]
        pairs += [("1/host", f"{number}/host"), (pod, "1/health"), (f"{number}/outside", pod)]
    return _flows({f"{n}/{e}": end for n, node in enumerate(nodes, 1) for e, end in ends(node).items()}, pairs)


def ends(node: Node) -> dict[str, End]:
    """Return where traffic can begin or end on a node, by name: a namespace's path, and its addresses."""
    spec = node.spec
    return {
        "host": (str(node.netns(NODE)), spec.router4, spec.router6),
        "outside": (str(node.netns(OUTSIDE)), spec.outside4.ip, spec.outside6.ip),
        **{p.name: (str(node.netns(p.name)), p.ipv4, p.ipv6) for p in (node.facts.health, *node.pods)},
    }


def _first_and_last(node: Node) -> tuple[str, str]:
    names = [pod.name for pod in node.pods] or [HEALTH]
    return names[0], names[-1]


def _flows(known: Mapping[str, End], pairs: Iterable[tuple[str, str]]) -> list[Flow]:
    flows = []
    for source, target in dict.fromkeys(pairs):
        if source == target:
            continue
        for version in (1, 2):
            path = Flow(
                name=f"{source} -> {target} udp v{'46'[version - 1]}",
                source_ns=known[source][0],
                source_ip=str(known[source][version]),
                target_ns=known[target][0],
                target_ip=str(known[target][version]),
            )
            flows += [path, replace(path, name=path.name.replace("udp", "tcp"), protocol="tcp", port=7008)]
    return flows
