"""A node as run.json has it: what was looked at, without what is another on each node of the same kind.

So nodes of many scenarios have one shape. The names of pods' interfaces, which are random, are written `{pod-1}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # A page is made where no kernel is asked.
    from lab.node.network import LinkView, RouteView
    from lab.node.node import Node
    from lab.node.topology import PodFacts
    from lab.node.view import NodeView

VERSION = 1
"""Counted up when the meaning of a key changes."""

Json = Mapping[str, Any]

_OWN = ("mac", "noarp")
"""Of an interface: random, or of no use to whoever reads a report."""
_HOOKS = ("ingress", "egress", "xdp")


def shape_of(view: NodeView, *, attach: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the shape of a node, and the names of its pods' interfaces by pod; `attach` is how programs are attached.

    See docs/run-json.md.
    """
    node, spec = view.node, view.node.spec
    shape = {
        "version": VERSION,
        "datapath_mode": spec.datapath_mode,
        "attach": attach,
        "endpoint_routes": spec.endpoint_routes,
        "tunnel": spec.tunnel,
        "tunnel_port": spec.tunnel_port,
        "xdp": spec.xdp,
        "devices": list(spec.devices),
        "mtu": spec.mtu,
        "route_mtu": spec.route_mtu,
        "interfaces": [_interface(link) for link in view.links],
        "routes": [_route(route) for route in sorted(view.routes, key=_place)],
        "endpoints": [_endpoint(pod, view) for pod in (node.facts.health, *node.pods)],
        "outside": [_interface(link, hooks=False) for link in view.outside],
        "others": [_other(peer) for peer in node.peers],
    }
    names = {pod.name: pod.ifname for pod in node.pods}
    return _replaced(shape, {ifname: _hole(pod) for pod, ifname in names.items()}), names


def with_names(shape: Json, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a shape with the names of a node's interfaces in it."""
    return _replaced(shape, {_hole(pod): ifname for pod, ifname in names.items()})


def _hole(pod: str) -> str:
    return f"{{{pod}}}"


def _replaced(shape: Json, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy in which these parts of texts are replaced by others."""
    if not texts:
        return dict(shape)
    pattern = re.compile("|".join(map(re.escape, texts)))

    def copied(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: texts[found[0]], value)
        if isinstance(value, dict):
            return {name: copied(item) for name, item in value.items()}
        return [copied(item) for item in value] if isinstance(value, list | tuple) else value

    return {name: copied(value) for name, value in shape.items()}


def _interface(link: LinkView, *, hooks: bool = True) -> dict[str, Any]:
    left_out = _OWN if hooks else (*_OWN, *_HOOKS)
    return {name: value for name, value in asdict(link).items() if name not in left_out}


def _route(route: RouteView) -> dict[str, Any]:
    return {"destination": route.destination, "via": route.via, "dev": route.dev, "text": route.words}


def _place(route: RouteView) -> tuple[int, int, int, str]:
    """Return a place in a list that does not depend on the order in which routes were made."""
    family = 6 if ":" in route.words else 4
    if route.destination == "default":
        return family, 0, 0, route.words
    network = ip_network(route.destination)
    return network.version, int(network.network_address), network.prefixlen, route.words


def _endpoint(pod: PodFacts, view: NodeView) -> dict[str, Any]:
    """Return a pod; `inside` is the other end of its pair, None if that is gone."""
    inside = [link for link in view.inside.get(pod.name, ()) if link.peer and link.peer.name == pod.ifname]
    return {
        "name": pod.name,
        "ifname": pod.ifname,
        "endpoint_id": pod.endpoint_id,
        "identity": pod.identity,
        "labels": sorted(pod.labels),
        "inside": _interface(inside[0], hooks=False) if inside else None,
    }


def _other(peer: Node) -> dict[str, Any]:
    """Return another node of the cluster as this one knows it; `port` is its port of the bridge between them."""
    spec = peer.spec
    return {
        "number": spec.node_index + 1,
        "port": spec.uplink_peer[0],
        "addresses": [str(spec.node4.ip), str(spec.node6.ip)],
        "pods": [str(spec.pod_cidr4), str(spec.pod_cidr6)],
    }
