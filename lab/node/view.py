"""The present state of a node, read from the kernel: links, addresses, programs per hook, routes, the pods' ends."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from datapath.errors import BpfError
from datapath.kernel.hooks import Direction, all_filters
from datapath.kernel.inventory import program_name
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.xdp import all_attached
from lab.node.facts import pod_json
from lab.node.network import End, Found, LinkView, RouteView, read_links, read_routes
from lab.node.node import Node
from lab.node.tcxhooks import pinned_links, tcx_programs
from lab.node.topology import HEALTH, NODE, OUTSIDE


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node at one moment: its links and routes, the links of the world outside, and those inside of its pods."""

    node: Node
    links: tuple[LinkView, ...]
    routes: tuple[RouteView, ...]
    outside: tuple[LinkView, ...]
    inside: Mapping[str, tuple[LinkView, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the view as a JSON object."""
        spec = self.node.spec
        return {
            "lab": spec.name,
            "mtu": spec.mtu,
            "route_mtu": spec.route_mtu,
            "tunnel": spec.tunnel,
            "tunnel_port": spec.tunnel_port,
            "cluster": spec.cluster,
            "peers": [peer.name for peer in self.node.peers],
            "endpoint_routes": spec.endpoint_routes,
            "devices": list(spec.devices),
            "xdp": spec.xdp,
            "datapath_mode": spec.datapath_mode,
            "interfaces": [asdict(link) for link in self.links],
            "routes": [str(route) for route in self.routes],
            "health": pod_json(self.node.facts.health),
            "pods": [pod_json(pod) for pod in self.node.pods],
            "outside": [asdict(link) for link in self.outside],
            "inside": {name: [asdict(link) for link in links] for name, links in self.inside.items()},
        }


def look(node: Node) -> NodeView:
    """Read a node's interfaces, programs and routes from the kernel, and the interfaces around it."""
    names = (OUTSIDE, HEALTH, *(pod.name for pod in node.pods))
    around = {name: _read(node, name) for name in names}
    pins = pinned_links(node)
    with NetlinkSocket(node.netns(NODE)) as socket:
        at_xdp = _at_xdp(socket)
        own = read_links(socket)
        routes = read_routes(socket, {each.link.ifindex: each.link.name for each in own})
        links = tuple(
            replace(
                link,
                ingress=_programs(node, socket, link, Direction.INGRESS, pins),
                egress=_programs(node, socket, link, Direction.EGRESS, pins),
                xdp=at_xdp.get(link.name, ()),
            )
            for link in _tied(NODE, own, around)
        )
    there = {name: _tied(name, found, {NODE: own}) for name, found in around.items()}
    outside = there.pop(OUTSIDE)
    return NodeView(node, links, routes, outside, there)


def _read(node: Node, name: str) -> tuple[Found, ...]:
    with NetlinkSocket(node.netns(name)) as socket:
        return read_links(socket)


def _tied(name: str, found: tuple[Found, ...], others: Mapping[str, tuple[Found, ...]]) -> tuple[LinkView, ...]:
    """Return the links of a namespace with the other ends of pairs, which are in it or in one of the others."""
    here = {(each.link.ifindex, each.other): End(name, each.link.name) for each in found if not each.away}
    # Of two ends each names the index of the other; the kernel says of neither in which namespace that is.
    there = {
        (each.link.ifindex, each.other): End(other, each.link.name)
        for other, links in others.items()
        for each in links
        if each.away
    }
    return tuple(
        replace(each.link, peer=(there if each.away else here).get((each.other, each.link.ifindex)))
        if each.is_pair
        else each.link
        for each in found
    )


def _programs(
    node: Node, socket: NetlinkSocket, link: LinkView, direction: Direction, pins: dict[int, str]
) -> tuple[str, ...]:
    by_link = tcx_programs(node, link.name, link.ifindex, direction, pins)
    return tuple(str(found) for found in (*by_link, *all_filters(socket, link.ifindex, direction)))


def _at_xdp(socket: NetlinkSocket) -> dict[str, tuple[str, ...]]:
    """Return the programs that run at XDP, each with its mode, by the names of the interfaces."""
    while True:
        try:
            return {
                name: tuple(f"{program_name(each.program_id)} ({each.mode})" for each in found)
                for name, found in all_attached(socket).items()
            }
        except BpfError as error:
            if error.errno != errno.ENOENT:  # a program that was replaced between the two calls
                raise
