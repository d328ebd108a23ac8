"""node.json: the spec and the facts of a node as JSON, and back."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from lab.node.topology import DeviceFacts, NodeFacts, NodeSpec, PodFacts, PodSpec

VERSION = 1
"""Counted up when the meaning of a field changes."""


def encode(spec: NodeSpec, facts: NodeFacts) -> dict[str, Any]:
    """Return spec and facts as a JSON object: addresses and MACs as text, sets as sorted lists."""
    return {
        "version": VERSION,
        "spec": _plain(asdict(spec)) | {"pods": [_plain(asdict(pod)) for pod in spec.pod_specs]},
        "facts": _plain(asdict(facts)),
    }


def decode(data: dict[str, Any]) -> tuple[NodeSpec, NodeFacts]:
    """Return what `encode` was given; the pods of the spec are always spelled out."""
    spec = dict(data["spec"])
    pods = tuple(PodSpec(p["name"], p["identity"], frozenset(p["labels"])) for p in spec.pop("pods"))
    facts = data["facts"]
    return (
        NodeSpec(**(spec | {"pods": pods, "devices": tuple(spec["devices"])})),
        NodeFacts(
            cilium_host=DeviceFacts(**facts["cilium_host"]),
            cilium_net=DeviceFacts(**facts["cilium_net"]),
            vxlan=DeviceFacts(**facts["vxlan"]),
            uplink=DeviceFacts(**facts["uplink"]),
            health=_pod(facts["health"]),
            pods=tuple(_pod(pod) for pod in facts["pods"]),
        ),
    )


def pod_json(pod: PodFacts) -> dict[str, Any]:
    """Return one pod as a JSON object."""
    return dict(_plain(asdict(pod)))


def _pod(data: dict[str, Any]) -> PodFacts:
    values = data | {
        "ipv4": IPv4Address(data["ipv4"]),
        "ipv6": IPv6Address(data["ipv6"]),
        "labels": frozenset(data["labels"]),
    }
    return PodFacts(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    return value
