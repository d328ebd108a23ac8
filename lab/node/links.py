"""Netlink messages for the node's links, addresses, routes: encoded once by pyroute2, patched for each pod.

Every value that can be chosen is chosen beforehand (interface indices, MACs, the peer's namespace), so nothing has to
be asked back. Names, flags and route attributes are those of Cilium's agent and of its CNI plugin.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

from datapath.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_NEWLINK, MessageTemplate
from lab.node import netkit
from lab.node.messages import encode, ifaddrmsg, ifinfmsg, rtmsg
from lab.node.topology import PEER_IFINDEX, TXQUEUELEN, DeviceFacts, NodeFacts, NodeSpec, PodFacts, VlanDevice, has_macs

RTM_DELLINK, RTM_SETLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE = 17, 19, 20, 24, 25
IFF_UP, IFF_NOARP = 0x1, 0x80
IFA_F_NODAD = 0x02
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
AF_INET, AF_INET6 = 2, 10
LO_IFINDEX = 1
_UNDERLAY = "underlay"
"""The bridge that the nodes of a cluster share."""

# Markers of the holes: values that occur nowhere else in a message.
_IFINDEX, _FD = 0x51627301, 0x51627302
_MAC, _PEER_MAC = "52:63:74:85:96:03", "52:63:74:85:96:04"
_IFNAME = "zzzzzzzzzzzzzzz"
_ADDRESS = {4: ("83.100.117.5", "83.100.117.6"), 6: ("5364:7586::5", "5364:7586::6")}


def set_link_up(ifindex: int) -> bytes:
    """Return the message that brings a link up."""
    return _encode_link(RTM_SETLINK, 0, {"index": ifindex, "flags": IFF_UP, "change": IFF_UP}, ())


def delete_link(ifindex: int) -> bytes:
    """Return the message that deletes a link, and with it the other end of a veth."""
    return _encode_link(RTM_DELLINK, 0, {"index": ifindex}, ())


def add_address(ifindex: int, address: IPv4Address | IPv6Address, prefixlen: int) -> bytes:
    """Return the message that gives a link an address of scope global; IPv6 without duplicate address detection."""
    template = _address_template(address.version, ifindex, prefixlen)
    packed = address.packed
    return template.fill({"local": packed, "address": packed})


@lru_cache(maxsize=256)
def route(
    kind: int,
    destination: IPv4Network | IPv6Network,
    oif: int,
    *,
    gateway: IPv4Address | IPv6Address | None = None,
    source: IPv4Address | IPv6Address | None = None,
    protocol: int = RTPROT_BOOT,
    mtu: int | None = None,
) -> bytes:
    """Return the message that adds (RTM_NEWROUTE, replacing its like) or removes (RTM_DELROUTE) a route of table main.

    A route without gateway has scope link (IPv6 knows no scopes).
    """
    v4 = destination.version == 4
    attrs: list[tuple[str, Any]] = [("RTA_OIF", oif)]
    if destination.prefixlen:
        attrs.append(("RTA_DST", str(destination.network_address)))
    if gateway is not None:
        attrs.append(("RTA_GATEWAY", str(gateway)))
    if source is not None:
        attrs.append(("RTA_PREFSRC", str(source)))
    if mtu is not None:
        attrs.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", mtu)]}))
    fields = {
        "family": AF_INET if v4 else AF_INET6,
        "dst_len": destination.prefixlen,
        "table": RT_TABLE_MAIN,
        "proto": protocol,
        "scope": RT_SCOPE_LINK if v4 and gateway is None else RT_SCOPE_UNIVERSE,
        "type": RTN_UNICAST,
    }
    flags = NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWROUTE else 0
    return encode(rtmsg, kind, flags, fields, attrs)


def set_link_mtu(ifindex: int, mtu: int) -> bytes:
    """Return the message that changes the MTU of a link, in bytes; its index and addresses stay."""
    return _encode_link(RTM_SETLINK, 0, {"index": ifindex}, [("IFLA_MTU", mtu)])


def node_routes(spec: NodeSpec, cilium_host: int, kind: int = RTM_NEWROUTE) -> list[bytes]:
    """Return the messages that add or remove the local node route: the pods of this node by cilium_host.

    IPv6 goes without a gateway: the kernel takes no gateway that is a local address.
    """
    nexthop = route(kind, IPv4Network(spec.router4), cilium_host)
    pods4 = route(kind, spec.pod_cidr4, cilium_host, gateway=spec.router4, source=spec.router4, protocol=RTPROT_KERNEL)
    pods6 = route(kind, spec.pod_cidr6, cilium_host, source=spec.router6, protocol=RTPROT_KERNEL)
    if kind == RTM_NEWROUTE:
        return [nexthop, pods4, pods6]
    # The routes to the pods of other nodes need it as well.
    return [pods6, pods4] if spec.cluster and spec.tunnel else [pods6, pods4, nexthop]


def remote_routes(spec: NodeSpec, facts: NodeFacts, peer: NodeSpec, kind: int = RTM_NEWROUTE) -> list[bytes]:
    """Return the messages that add or remove the routes to the pods of another node.

    With a tunnel by cilium_host, whose program encapsulates, with the MTU that is left for the inner packet; without,
    by the other node's address on the shared underlay (option auto-direct-node-routes).
    """
    if not spec.tunnel:
        out = facts.uplink.ifindex
        return [
            route(kind, peer.pod_cidr4, out, gateway=peer.node4.ip, protocol=RTPROT_KERNEL),
            route(kind, peer.pod_cidr6, out, gateway=peer.node6.ip, protocol=RTPROT_KERNEL),
        ]
    host, mtu = facts.cilium_host.ifindex, spec.route_mtu
    r4, r6 = spec.router4, spec.router6
    messages = [
        route(kind, peer.pod_cidr4, host, gateway=r4, source=r4, protocol=RTPROT_KERNEL, mtu=mtu),
        route(kind, peer.pod_cidr6, host, source=r6, protocol=RTPROT_KERNEL, mtu=mtu),
    ]
    return [route(kind, IPv4Network(r4), host), *messages] if kind == RTM_NEWROUTE else messages


def veth(spec: NodeSpec, device: DeviceFacts, peer_name: str, netns_fd: int, peer_ifindex: int = PEER_IFINDEX) -> bytes:
    """Return the message that makes a veth: up at this end, the other one down, in the namespace of `netns_fd`."""
    return _pair(spec, device, peer_name, netns_fd, peer_ifindex, "veth")


def _pair(spec: NodeSpec, device: DeviceFacts, peer_name: str, netns_fd: int, peer_ifindex: int, mode: str) -> bytes:
    macs = {"mac": _mac(device.mac), "peer_mac": _mac(device.peer_mac or "")}
    return _pair_template(peer_name, peer_ifindex, spec.mtu, len(device.name), mode).fill(
        {
            "ifindex": struct.pack("=i", device.ifindex),
            "ifname": device.name.encode(),
            "netns": struct.pack("=I", netns_fd),
            **(macs if has_macs(mode) else {}),
        }
    )


def pod_devices(spec: NodeSpec, pod: PodFacts, netns_fd: int) -> bytes:
    """Return the message that makes a pod's pair of devices."""
    device = DeviceFacts(pod.ifname, pod.ifindex, pod.node_mac, pod.mac)
    return _pair(spec, device, pod.inner_ifname, netns_fd, PEER_IFINDEX, spec.datapath_mode)


def pod_inside(spec: NodeSpec, pod: PodFacts) -> list[bytes]:
    """Return what makes up the inside of a pod's namespace: links up, addresses, routes (narrow ones first)."""
    up, routes = _pod_constants(spec.router4, spec.router6, spec.route_mtu)
    return [
        *up,
        add_address(PEER_IFINDEX, pod.ipv4, 32),
        add_address(PEER_IFINDEX, pod.ipv6, 128),
        *routes,
    ]


def pod_mtu(spec: NodeSpec) -> list[bytes]:
    """Return what changes the MTU inside of a pod's namespace: that of its device and of its default routes."""
    defaults = _pod_constants(spec.router4, spec.router6, spec.route_mtu)[1][2:]
    return [set_link_mtu(PEER_IFINDEX, spec.mtu), *defaults]


def node_inside(spec: NodeSpec, facts: NodeFacts, outside_fd: int, health_fd: int) -> list[bytes]:
    """Return what makes up the node's namespace, the pods' veths excepted."""
    host = facts.cilium_host.ifindex
    uplink = facts.uplink.ifindex
    peer_name, peer_ifindex = spec.uplink_peer
    messages = [
        set_link_up(LO_IFINDEX),
        veth(spec, facts.uplink, peer_name, outside_fd, peer_ifindex),
        _cilium_host(spec, facts),
        set_link_up(facts.cilium_net.ifindex),
        vxlan(spec, facts.vxlan),
        pod_devices(spec, facts.health, health_fd),
        add_address(uplink, spec.node4.ip, spec.node4.network.prefixlen),
        add_address(uplink, spec.node6.ip, spec.node6.network.prefixlen),
        add_address(host, spec.router4, 32),
        add_address(host, spec.router6, 128),
        route(RTM_NEWROUTE, IPv4Network("0.0.0.0/0"), uplink, gateway=spec.outside4.ip),
        route(RTM_NEWROUTE, IPv6Network("::/0"), uplink, gateway=spec.outside6.ip),
    ]
    return messages if spec.endpoint_routes else messages + node_routes(spec, host)


def outside_inside(spec: NodeSpec) -> list[bytes]:
    """Return what makes up the world outside: it knows the pods by the node."""
    return [
        set_link_up(LO_IFINDEX),
        set_link_up(PEER_IFINDEX),
        add_address(PEER_IFINDEX, spec.outside4.ip, spec.outside4.network.prefixlen),
        add_address(PEER_IFINDEX, spec.outside6.ip, spec.outside6.network.prefixlen),
        *_routes_to_pods(spec),
    ]


def underlay_inside(spec: NodeSpec) -> list[bytes]:
    """Return what makes up the underlay of a cluster before its first node: a bridge, the outside's address on it."""
    # Solicitations go to multicast groups, which a bridge that snoops may hold back.
    bridge = [("IFLA_IFNAME", _UNDERLAY), _link_info("bridge", [("IFLA_BR_MCAST_SNOOPING", 0)])]
    return [
        _encode_link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, {"index": PEER_IFINDEX}, bridge),
        *outside_inside(spec)[:4],
    ]


def underlay_port(spec: NodeSpec) -> list[bytes]:
    """Return what joins a node's uplink to the underlay: the port of the bridge, the way to the node's pods."""
    _, port = spec.uplink_peer
    change = {"index": port, "flags": IFF_UP, "change": IFF_UP}
    return [_encode_link(RTM_SETLINK, 0, change, [("IFLA_MASTER", PEER_IFINDEX)]), *_routes_to_pods(spec)]


def vlan_inside(facts: NodeFacts, vlan: VlanDevice) -> list[bytes]:
    """Return what makes up a VLAN device of the node: it has the MAC and the MTU of the uplink."""
    return _vlan(facts.uplink.ifindex, vlan.name, vlan, (vlan.node4, vlan.node6))


def vlan_outside(spec: NodeSpec, vlan: VlanDevice) -> list[bytes]:
    """Return what makes up its counterpart, on the other end of the uplink or on the bridge of the underlay."""
    name = f"{_UNDERLAY}.{vlan.id}" if spec.cluster else vlan.name
    return _vlan(PEER_IFINDEX, name, vlan, (vlan.outside4, vlan.outside6))


def _vlan(link: int, name: str, vlan: VlanDevice, addresses: Sequence[IPv4Interface | IPv6Interface]) -> list[bytes]:
    attrs = [("IFLA_IFNAME", name), ("IFLA_LINK", link), _link_info("vlan", [("IFLA_VLAN_ID", vlan.id)])]
    fields = {"index": vlan.ifindex, "flags": IFF_UP, "change": IFF_UP}
    return [
        _encode_link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, fields, attrs),
        *(add_address(vlan.ifindex, address.ip, address.network.prefixlen) for address in addresses),
    ]


def _routes_to_pods(spec: NodeSpec) -> list[bytes]:
    return [
        route(RTM_NEWROUTE, spec.pod_cidr4, PEER_IFINDEX, gateway=spec.node4.ip),
        route(RTM_NEWROUTE, spec.pod_cidr6, PEER_IFINDEX, gateway=spec.node6.ip),
    ]


def _cilium_host(spec: NodeSpec, facts: NodeFacts) -> bytes:
    """cilium_host with its peer cilium_net; the peer is brought up afterwards (ENOTCONN before it has its peer)."""
    host, net = facts.cilium_host, facts.cilium_net
    template = _cilium_host_template(spec.mtu, host.name, host.ifindex, net.name, net.ifindex)
    return template.fill({"mac": _mac(host.mac), "peer_mac": _mac(net.mac)})


@lru_cache(maxsize=64)
def _cilium_host_template(mtu: int, name: str, ifindex: int, peer_name: str, peer_ifindex: int) -> MessageTemplate:
    peer = {
        "index": peer_ifindex,
        "flags": IFF_NOARP,
        "change": IFF_NOARP,
        "attrs": _link_attrs(peer_name, _PEER_MAC, mtu),
    }
    flags = IFF_UP | IFF_NOARP
    message = _encode_link(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        {"index": ifindex, "flags": flags, "change": flags},
        [*_link_attrs(name, _MAC, mtu), _link_info("veth", [("VETH_INFO_PEER", peer)])],
    )
    return MessageTemplate(message, {"mac": _mac(_MAC), "peer_mac": _mac(_PEER_MAC)})


def vxlan(spec: NodeSpec, device: DeviceFacts) -> bytes:
    """Return the message that makes cilium_vxlan: one device for all nodes, the key comes with each packet."""
    return _vxlan_template(spec.mtu, spec.tunnel_port, device.name, device.ifindex).fill({"mac": _mac(device.mac)})


@lru_cache(maxsize=64)
def _vxlan_template(mtu: int, port: int, name: str, ifindex: int) -> MessageTemplate:
    options = [("IFLA_VXLAN_COLLECT_METADATA", 1), ("IFLA_VXLAN_LEARNING", 0), ("IFLA_VXLAN_PORT", port)]
    message = _encode_link(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        {"index": ifindex, "flags": IFF_UP, "change": IFF_UP},
        [*_link_attrs(name, _MAC, mtu), _link_info("vxlan", options)],
    )
    return MessageTemplate(message, {"mac": _mac(_MAC)})


@lru_cache(maxsize=64)
def _pair_template(peer_name: str, peer_ifindex: int, mtu: int, name_length: int, mode: str) -> MessageTemplate:
    name = _IFNAME[:name_length]
    mac, peer_mac = (_MAC, _PEER_MAC) if has_macs(mode) else (None, None)
    peer = {
        "index": peer_ifindex,
        "attrs": [*_link_attrs(peer_name, peer_mac, mtu), ("IFLA_NET_NS_FD", _FD)],
    }
    message = _encode_link(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        {"index": _IFINDEX, "flags": IFF_UP, "change": IFF_UP},
        [*_link_attrs(name, mac, mtu), _pair_info(mode, peer)],
    )
    holes = {
        "ifindex": struct.pack("=I", _IFINDEX),
        "ifname": name.encode(),
        "netns": struct.pack("=I", _FD),
        **{what: _mac(given) for what, given in (("mac", mac), ("peer_mac", peer_mac)) if given is not None},
    }
    return MessageTemplate(message, holes)


def _pair_info(mode: str, peer: dict[str, Any]) -> tuple[str, Any]:
    """Return the kind and the options of a pair of devices in a datapath mode."""
    if mode == "veth":
        return _link_info("veth", [("VETH_INFO_PEER", peer)])
    return _link_info(netkit.KIND, netkit.options(peer, netkit.L2 if has_macs(mode) else netkit.L3))


@lru_cache(maxsize=64)
def _address_template(version: int, ifindex: int, prefixlen: int) -> MessageTemplate:
    local, address = _ADDRESS[version]
    kind = IPv4Address if version == 4 else IPv6Address
    fields = {
        "family": AF_INET if version == 4 else AF_INET6,
        "prefixlen": prefixlen,
        "flags": IFA_F_NODAD if version == 6 else 0,
        "scope": RT_SCOPE_UNIVERSE,
        "index": ifindex,
    }
    attrs = [("IFA_LOCAL", local), ("IFA_ADDRESS", address)]
    message = encode(ifaddrmsg, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, fields, attrs)
    return MessageTemplate(message, {"local": kind(local).packed, "address": kind(address).packed})


@lru_cache(maxsize=64)
def _pod_constants(
    router4: IPv4Address, router6: IPv6Address, route_mtu: int
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return the messages that are the same in all pods of a node: before the addresses, and after them."""
    up = (set_link_up(LO_IFINDEX), set_link_up(PEER_IFINDEX))
    routes = (
        route(RTM_NEWROUTE, IPv4Network(router4), PEER_IFINDEX),
        route(RTM_NEWROUTE, IPv6Network(router6), PEER_IFINDEX),
        route(RTM_NEWROUTE, IPv4Network("0.0.0.0/0"), PEER_IFINDEX, gateway=router4, mtu=route_mtu),
        route(RTM_NEWROUTE, IPv6Network("::/0"), PEER_IFINDEX, gateway=router6, mtu=route_mtu),
    )
    return up, routes


def _link_attrs(name: str, mac: str | None, mtu: int) -> list[tuple[str, Any]]:
    address = [("IFLA_ADDRESS", mac)] if mac is not None else []
    return [("IFLA_IFNAME", name), *address, ("IFLA_MTU", mtu), ("IFLA_TXQLEN", TXQUEUELEN)]


def _link_info(kind: str, options: Sequence[tuple[str, Any]]) -> tuple[str, Any]:
    data = {"attrs": list(options)}
    return "IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]}


def _encode_link(kind: int, flags: int, fields: dict[str, int], attrs: Sequence[tuple[str, Any]]) -> bytes:
    return encode(ifinfmsg, kind, flags, fields, attrs)


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
