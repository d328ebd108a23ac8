"""The present state of a node, read from the kernel: links, addresses, programs per hook, routes."""

from __future__ import annotations

import errno
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import Any

from datapath.errors import BpfError
from datapath.kernel.hooks import Direction, all_filters
from datapath.kernel.inventory import program_name
from datapath.kernel.netlink import NLM_F_DUMP, RTM_GETLINK, NetlinkSocket
from datapath.kernel.xdp import all_attached
from lab.node.facts import pod_json
from lab.node.links import AF_INET, AF_INET6, IFF_NOARP, IFF_UP, RT_SCOPE_LINK, RT_TABLE_MAIN, RTPROT_KERNEL
from lab.node.messages import MessageClass, decode, encode, ifaddrmsg, ifinfmsg, rtmsg
from lab.node.node import Node
from lab.node.tcxhooks import pinned_links, tcx_programs
from lab.node.topology import NODE, OUTSIDE

RTM_GETADDR, RTM_GETROUTE = 22, 26
_RTM_F_CLONED = 0x200


@dataclass(frozen=True, slots=True)
class LinkView:
    """An interface; `ingress` and `egress` are the programs at its hooks in their order, tcx before clsact.

    `xdp` are its XDP programs, each with its mode.
    """

    name: str
    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    noarp: bool
    addresses: tuple[str, ...]
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    xdp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node at one moment: its links and routes, and the links of the world outside."""

    node: Node
    links: tuple[LinkView, ...]
    routes: tuple[str, ...]
    outside: tuple[LinkView, ...]

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
            "interfaces": [asdict(link) for link in self.links],
            "routes": list(self.routes),
            "health": pod_json(self.node.facts.health),
            "pods": [pod_json(pod) for pod in self.node.pods],
            "outside": [asdict(link) for link in self.outside],
        }


def look(node: Node) -> NodeView:
    """Read a node's interfaces, programs and routes from the kernel."""
    with NetlinkSocket(node.netns(OUTSIDE)) as socket:
        outside = _links(socket)
    pins = pinned_links(node)
    with NetlinkSocket(node.netns(NODE)) as socket:
        at_xdp = _at_xdp(socket)
        links = tuple(
            replace(
                link,
                ingress=_programs(node, socket, link, Direction.INGRESS, pins),
                egress=_programs(node, socket, link, Direction.EGRESS, pins),
                xdp=at_xdp.get(link.name, ()),
            )
            for link in _links(socket)
        )
        return NodeView(node, links, _routes(socket, {link.ifindex: link.name for link in links}), outside)


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


def _links(socket: NetlinkSocket) -> tuple[LinkView, ...]:
    addresses: defaultdict[int, list[str]] = defaultdict(list)
    for message in _dump(socket, "list addresses", ifaddrmsg, RTM_GETADDR):
        address = ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
        if not address.is_link_local:
            addresses[message["index"]].append(f"{address}/{message['prefixlen']}")
    found = []
    for message in _dump(socket, "list links", ifinfmsg, RTM_GETLINK):
        info = message.get_attr("IFLA_LINKINFO")
        link = LinkView(
            name=message.get_attr("IFLA_IFNAME"),
            ifindex=message["index"],
            kind=info.get_attr("IFLA_INFO_KIND") if info else "loopback",
            mac=message.get_attr("IFLA_ADDRESS"),
            mtu=message.get_attr("IFLA_MTU"),
            up=bool(message["flags"] & IFF_UP),
            noarp=bool(message["flags"] & IFF_NOARP),
            addresses=tuple(addresses[message["index"]]),
        )
        if link.kind != "loopback":
            found.append(link)
    return tuple(sorted(found, key=lambda link: link.ifindex))


def _routes(socket: NetlinkSocket, names: dict[int, str]) -> tuple[str, ...]:
    """Return the routes of the main table in the words of `ip route`, those to link-local addresses left out."""
    lines = []
    messages = [m for family in (AF_INET, AF_INET6) for m in _dump(socket, "list routes", rtmsg, RTM_GETROUTE, family)]
    for message in messages:
        destination = message.get_attr("RTA_DST") or "default"
        local = destination.startswith(("fe80:", "ff00:"))
        if message["table"] != RT_TABLE_MAIN or message["flags"] & _RTM_F_CLONED or local:
            continue
        lines.append(_route(message, destination, names))
    return tuple(lines)


def _route(message: Any, destination: str, names: dict[int, str]) -> str:
    full = message["dst_len"] == (32 if message["family"] == AF_INET else 128)
    words = [destination if destination == "default" or full else f"{destination}/{message['dst_len']}"]
    for word, attribute in (("via", "RTA_GATEWAY"), ("dev", "RTA_OIF"), ("src", "RTA_PREFSRC")):
        value = message.get_attr(attribute)
        if value is not None:
            words += [word, names.get(value, str(value)) if word == "dev" else value]
    if message["proto"] == RTPROT_KERNEL:
        words += ["proto", "kernel"]
    if message["scope"] == RT_SCOPE_LINK:
        words += ["scope", "link"]
    metrics = message.get_attr("RTA_METRICS")
    if metrics is not None and metrics.get_attr("RTAX_MTU") is not None:
        words += ["mtu", str(metrics.get_attr("RTAX_MTU"))]
    return " ".join(words)


def _dump(socket: NetlinkSocket, what: str, kind: MessageClass, number: int, family: int = 0) -> list[Any]:
    return decode(kind, socket.dump(what, encode(kind, number, NLM_F_DUMP, {"family": family}, ())))
