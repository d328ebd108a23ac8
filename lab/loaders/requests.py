"""What a loader is told: the node, and what is to be loaded on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datapath.build.objectfile import ObjectFile
from datapath.build.template import Kind
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.reload.plans import CILIUM_HOST, CILIUM_VXLAN
from datapath.reload.switchover import Attach
from lab.loaders import protocol
from lab.node.node import Node
from lab.node.topology import DeviceFacts
from lab.system.mounts import SYSFS_BPF

KINDS = {Kind.LXC: protocol.POD, Kind.HOST: protocol.HOST, Kind.OVERLAY: protocol.OVERLAY}


def describe_node(node: Node, config: DatapathConfig) -> dict[str, Any]:
    """Return what `hello` says of a node."""
    spec, facts = node.spec, node.facts
    tunnel = {
        "protocol": "vxlan",
        "port": spec.tunnel_port,
        "interface": facts.vxlan.name,
        "ifindex": facts.vxlan.ifindex,
        "mac": facts.vxlan.mac,
    }
    return {
        "name": node.name,
        "state": str(config.state),
        "bpffs": str(SYSFS_BPF),
        "library": str(config.library),
        "router_ipv4": str(spec.router4),
        "router_ipv6": str(spec.router6),
        "pod_cidr_ipv4": str(spec.pod_cidr4),
        "pod_cidr_ipv6": str(spec.pod_cidr6),
        "cilium_host": _device(facts.cilium_host),
        "cilium_net": _device(facts.cilium_net),
        "tunnel": tunnel if spec.tunnel else None,
        "mtu": spec.mtu,
        "filter_priority": config.filter_priority or 1,
        "attach": str(config.attach),
    }


def _device(device: DeviceFacts) -> dict[str, Any]:
    return {"name": device.name, "ifindex": device.ifindex, "mac": device.mac}


def reload_request(
    config: DatapathConfig, subject: str, objects: Sequence[ObjectFile], attaches: Sequence[Attach]
) -> dict[str, Any]:
    """Return the request to load something; the first of `objects` is its own, the others are those of devices."""
    first, others = objects[0], objects[1:]
    paths = {item.name: str(item.path) for item in objects}
    return {
        "request": "reload",
        **_target(config, subject, first),
        "generation": first.generation,
        "object": str(first.path),
        "objects": {item.device.name: str(item.path) for item in others if item.device is not None},
        "attach": [
            {
                "interface": each.target,
                "direction": str(each.direction),
                "program": each.program,
                "object": paths[each.object],
            }
            for each in attaches
        ],
    }


def unload_request(config: DatapathConfig, subject: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return the request to take a pod's programs and routes away."""
    item = ObjectFile(Kind.LXC, config.state / str(endpoint.id) / Kind.LXC.object, endpoint.generation, endpoint)
    return {"request": "unload", **_target(config, subject, item), "object": str(item.path), "objects": {}}


def _target(config: DatapathConfig, subject: str, item: ObjectFile) -> dict[str, Any]:
    """Return what is the same for all requests about one subject."""
    endpoint = item.endpoint
    ifindex = config.node.encap_ifindex if endpoint is None else endpoint.ifindex
    interface = CILIUM_VXLAN
    if endpoint is not None:
        interface = CILIUM_HOST if endpoint.is_host else endpoint.ifname
        ifindex = config.node.cilium_host_ifindex if endpoint.is_host else endpoint.ifindex
    return {
        "subject": subject,
        "kind": KINDS[item.kind],
        "interface": interface,
        "ifindex": ifindex,
        "endpoint": None if endpoint is None else _endpoint(endpoint),
        "endpoint_routes": config.node.endpoint_routes,
        "devices": list(config.devices),
        "egress_devices": config.egress_devices,
        "state_directory": str(item.path.parent),
    }


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "identity": endpoint.identity,
        "mac": endpoint.mac,
        "node_mac": endpoint.node_mac,
        "ipv4": None if endpoint.ipv4 is None else str(endpoint.ipv4),
        "ipv6": None if endpoint.ipv6 is None else str(endpoint.ipv6),
        "labels": sorted(endpoint.labels),
    }
