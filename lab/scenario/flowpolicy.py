"""The policy that holds in a scenario by default: exactly its flows pass, and everything else is denied, both ways.

A flow that is `denied` is refused by its last endpoint that has a policy: by the target if that is a pod, which takes
the packet all the way there, else by the source. Each refused packet is counted once, as a drop for this reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datapath.endpoint import HOST_ID, REMOTE_NODE_ID, WORLD_ID
from datapath.errors import ReloadlabError
from lab.node.node import Node
from lab.node.topology import PodFacts
from lab.scenario.ends import endpoint_of, host_of
from lab.traffic.flows import Flow
from lab.watch import metrics

PolicyOption = Literal["flows"] | None
"""Which policy a scenario begins with: that of its flows, or none."""

_NEIGHBOURS = {"icmps": [{"fields": [{"type": number, "family": "IPv6"} for number in (135, 136)]}]}
"""Solicitations and advertisements."""

_ECHO = {4: ("IPv4", 8), 6: ("IPv6", 128)}
"""ICMP echo requests: family and type."""


class BadPolicyOption(ReloadlabError):
    """A value of `policy` that is neither "flows" nor None."""


def check_policy(policy: str | None) -> None:
    """Raise BadPolicyOption for an unknown value."""
    if policy not in ("flows", None):
        raise BadPolicyOption(f"policy is {policy!r}, not 'flows' or None")


@dataclass(frozen=True)
class FlowPolicy:
    """`documents` has what Agent.apply_policies takes, by the node's name; `refusals` where denied flows are dropped.

    A refusal is the node's name and the direction in which the node counts the drop, by the flow's name.
    """

    documents: Mapping[str, list[dict[str, Any]]]
    refusals: Mapping[str, tuple[str, int]]


def flow_policy(nodes: Sequence[Node], flows: Sequence[Flow], *, foreign: bool = False) -> FlowPolicy:
    """Return the policy for the pods and health endpoints of all nodes that lets exactly these flows pass.

    The host has no policy of its own, and always reaches its own pods. To `foreign` sources, Cilium's, neighbour
    discovery comes from the world if endpoint routes lead it to a pod: the host asks from a link-local address, and
    what a pod's program answers has no mark.
    """
    refusals = {flow.name: refusal for flow in flows if flow.denied and (refusal := _refusal(nodes, flow)) is not None}
    return FlowPolicy({node.name: list(_policies(node, nodes, flows, foreign)) for node in nodes}, refusals)


def _policies(node: Node, nodes: Sequence[Node], flows: Sequence[Flow], foreign: bool) -> Iterator[dict[str, Any]]:
    for pod in (node.facts.health, *node.pods):
        own = {str(pod.ipv4), str(pod.ipv6)}
        # The empty rule allows nothing, and closes the direction.
        rules: dict[str, list[dict[str, Any]]] = {"ingress": [{}], "egress": [{}]}
        if foreign:
            rules["ingress"].append({"fromIdentities": [WORLD_ID], **_NEIGHBOURS})
            rules["egress"].append({"toIdentities": [WORLD_ID], **_NEIGHBOURS})
        for flow in flows:
            refusing = _refusing(nodes, flow)
            for address, peer, section, side in (
                (flow.target_ip, flow.source_ip, "ingress", "from"),
                (flow.source_ip, flow.target_ip, "egress", "to"),
            ):
                identity = _identity(node, nodes, peer)
                rule = {f"{side}Identities": [identity], **_ports(flow)}
                if address in own and refusing != (node, pod) and rule not in rules[section]:
                    rules[section].append(rule)
        yield {"name": f"flows of {pod.name}", "endpoint": pod.name, **rules}


def _refusing(nodes: Sequence[Node], flow: Flow) -> tuple[Node, PodFacts] | None:
    """Return the endpoint whose policy must stop a denied flow; None for one that may pass, or without a pod."""
    return (endpoint_of(nodes, flow.target_ip) or endpoint_of(nodes, flow.source_ip)) if flow.denied else None


def _refusal(nodes: Sequence[Node], flow: Flow) -> tuple[str, int] | None:
    """Return where a denied flow is dropped, and in which direction; None if neither end has a policy."""
    for address, direction in ((flow.target_ip, metrics.INGRESS), (flow.source_ip, metrics.EGRESS)):
        found = endpoint_of(nodes, address)
        if found is not None:
            return found[0].name, direction
    return None


def _identity(here: Node, nodes: Sequence[Node], address: str) -> int:
    """Return the identity that a node's programs see for an address."""
    found = endpoint_of(nodes, address)
    if found is not None:
        return found[1].identity
    host = host_of(nodes, address)
    if host is not None:
        return HOST_ID if host.name == here.name else REMOTE_NODE_ID
    return WORLD_ID


def _ports(flow: Flow) -> dict[str, Any]:
    if flow.protocol == "icmp":
        family, number = _ECHO[flow.version]
        return {"icmps": [{"fields": [{"type": number, "family": family}]}]}
    return {"toPorts": [{"ports": [{"port": str(flow.port), "protocol": flow.protocol.upper()}]}]}
