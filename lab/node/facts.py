"""node.json: the spec and the facts of a node as JSON, and back."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from datapath.base.names import check_ifname
from datapath.base.statefile import WrongContent, typed
from datapath.errors import InvalidName
from lab.node.topology import HEALTH, InvalidSpec, NodeFacts, NodeSpec, PodFacts

VERSION = 1
"""Counted up when the meaning of a field changes."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def encode(spec: NodeSpec, facts: NodeFacts) -> dict[str, Any]:
    """Return spec and facts as a JSON object: addresses and MACs as text, sets as sorted lists."""
    return {
        "version": VERSION,
        "spec": plain(asdict(spec)) | {"pods": [plain(asdict(pod)) for pod in spec.pod_specs]},
        "facts": plain(asdict(facts)),
    }


def decode(data: object) -> tuple[NodeSpec, NodeFacts]:
    """Return what `encode` was given; the pods of the spec are always spelled out.

    Raises WrongContent if it is not what `encode` of this version returns, or speaks of things that cannot be.
    """
    if isinstance(data, dict) and type(data.get("version")) is int and data["version"] != VERSION:
        raise WrongContent(f"it has version {data['version']}, this reloadlab reads version {VERSION}")
    try:
        document = typed(_Document, data)
        _check(document)
    except (InvalidName, InvalidSpec) as error:
        raise WrongContent(str(error)) from error
    return document.spec, document.facts


@dataclass(frozen=True, slots=True)
class _Document:
    version: int
    spec: NodeSpec
    facts: NodeFacts


def _check(document: _Document) -> None:
    """Refuse facts that nobody could have chosen: what follows relies on their form."""
    facts = document.facts
    if [pod.name for pod in document.spec.pod_specs] != [pod.name for pod in facts.pods]:
        raise WrongContent("spec.pods and facts.pods are not the same pods")
    if set(facts.unloaded) - {pod.name for pod in facts.pods}:
        raise WrongContent("facts.unloaded names pods that are not there")
    if facts.health.name != HEALTH:
        raise WrongContent(f"facts.health is called {facts.health.name!r}")
    macs: list[str | None] = []
    for device in (facts.cilium_host, facts.cilium_net, facts.vxlan, facts.uplink):
        _check_device(device.name, device.ifindex)
        macs += [device.mac, device.peer_mac or device.mac]
    for pod in (facts.health, *facts.pods):
        _check_device(pod.ifname, pod.ifindex)
        check_ifname(pod.inner_ifname)
        if not 0 < pod.endpoint_id < 1 << 16:
            raise WrongContent(f"{pod.name} has endpoint id {pod.endpoint_id}")
        if not 0 < pod.identity < 1 << 24:
            raise WrongContent(f"{pod.name} has identity {pod.identity}")
        macs += [pod.node_mac, pod.mac]
    for mac in macs:
        if mac is None or not _MAC.fullmatch(mac):
            raise WrongContent(f"{mac!r} is not a MAC")


def _check_device(name: str, ifindex: int) -> None:
    check_ifname(name)
    if not 0 < ifindex < 1 << 31:
        raise WrongContent(f"{name} has interface index {ifindex}")


def pod_json(pod: PodFacts) -> dict[str, Any]:
    """Return one pod as a JSON object."""
    return dict(plain(asdict(pod)))


def plain(value: Any) -> Any:
    """Return a value as JSON has it: addresses as text, sets as sorted lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    return value
