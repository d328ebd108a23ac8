"""The links and routes of one namespace, read from the kernel for people to look at.

Netlink messages are read by their offsets: pyroute2 would take a hundred times as long, at the end of every scenario.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import ip_address

from datapath.kernel.netlink import (
    IFLA_ADDRESS,
    IFLA_IFNAME,
    RTM_GETLINK,
    NetlinkSocket,
    attributes,
    pack_attribute,
    pack_message,
    text,
)
from lab.node.links import IFF_NOARP, IFF_UP, RT_SCOPE_LINK, RT_TABLE_MAIN, RTPROT_KERNEL
from lab.node.netkit import KIND as NETKIT

_RTM_GETADDR, _RTM_GETROUTE = 22, 26
_IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 4, 5, 10, 18, 29, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_VLAN_ID, _IFLA_VXLAN_PORT = 1, 2, 1, 15
_RTEXT_FILTER_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTAX_MTU = 1, 4, 5, 7, 8, 2
_RTM_F_CLONED = 0x200
_PAIRS = ("veth", NETKIT)


@dataclass(frozen=True, slots=True)
class End:
    """The other end of a pair of devices: its namespace, by its name in the lab, and its name there."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class LinkView:
    """An interface; `ingress` and `egress` are the programs at its hooks in their order, tcx before clsact.

    `xdp` are its XDP programs, each with its mode. `peer` is the other end of a pair, None where no namespace of the
    lab has it. `parent` is the device that it is on, as a VLAN is, which has the number `vlan`; `master` is the bridge
    of a port. `port` is the UDP port of a tunnel.
    """

    name: str
    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    noarp: bool
    addresses: tuple[str, ...]
    peer: End | None = None
    parent: str | None = None
    master: str | None = None
    vlan: int | None = None
    port: int | None = None
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    xdp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteView:
    """A route; `words` are those of `ip route`. `via` is None without a gateway, `dev` without an interface."""

    destination: str
    via: str | None
    dev: str | None
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True)
class Found:
    """A link as its namespace tells it: `other` is the index of what it is tied to, in another namespace if `away`."""

    link: LinkView
    other: int
    away: bool

    @property
    def is_pair(self) -> bool:
        return self.link.kind in _PAIRS


def read_links(netlink: NetlinkSocket) -> tuple[Found, ...]:
    """Return the links of a namespace by index, without loopback; peers are not known yet."""
    addresses = _addresses(netlink)
    mask = pack_attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    answers = netlink.dump("list links", pack_message(RTM_GETLINK, bytes(16) + mask))
    said = {struct.unpack_from("=i", answer, 20)[0]: dict(attributes(answer, 32)) for answer in answers}
    names = {ifindex: text(values[IFLA_IFNAME]) for ifindex, values in said.items()}
    found = []
    for answer in answers:
        ifindex, flags = struct.unpack_from("=iI", answer, 20)
        values = said[ifindex]
        if _IFLA_LINKINFO not in values:  # loopback
            continue
        info = dict(attributes(values[_IFLA_LINKINFO]))
        kind, options = text(info[_IFLA_INFO_KIND]), dict(attributes(info.get(_IFLA_INFO_DATA, b"")))
        other, away = _number(values, _IFLA_LINK) or 0, _IFLA_LINK_NETNSID in values
        link = LinkView(
            name=names[ifindex],
            ifindex=ifindex,
            kind=kind,
            mac=bytes(values.get(IFLA_ADDRESS, b"")).hex(":"),
            mtu=_number(values, _IFLA_MTU) or 0,
            up=bool(flags & IFF_UP),
            noarp=bool(flags & IFF_NOARP),
            addresses=tuple(addresses[ifindex]),
            parent=names.get(other) if not away and kind not in _PAIRS else None,
            master=names.get(_number(values, _IFLA_MASTER) or 0),
            vlan=_number(options, _IFLA_VLAN_ID) if kind == "vlan" else None,
            port=int.from_bytes(options[_IFLA_VXLAN_PORT], "big") if kind == "vxlan" else None,
        )
        found.append(Found(link, other, away))
    return tuple(sorted(found, key=lambda each: each.link.ifindex))


def read_routes(netlink: NetlinkSocket, names: dict[int, str]) -> tuple[RouteView, ...]:
    """Return the routes of the main table, those to link-local addresses left out."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=B11x", family)
        for answer in netlink.dump("list routes", pack_message(_RTM_GETROUTE, body)):
            (flags,) = struct.unpack_from("=I", answer, 24)
            if answer[20] == RT_TABLE_MAIN and not flags & _RTM_F_CLONED:
                route = _route(answer, names)
                if not route.destination.startswith(("fe80:", "ff00:")):
                    found.append(route)
    return tuple(found)


def _route(answer: bytes, names: dict[int, str]) -> RouteView:
    family, length = answer[16], answer[17]
    values = dict(attributes(answer, 28))
    destination = _destination(values, length, 32 if family == socket.AF_INET else 128)
    via = _address(values, _RTA_GATEWAY)
    oif, source = _number(values, _RTA_OIF), _address(values, _RTA_PREFSRC)
    dev = None if oif is None else names.get(oif, str(oif))
    words = [destination]
    for word, value in (("via", via), ("dev", dev), ("src", source)):
        words += [word, value] if value is not None else []
    words += ["proto", "kernel"] if answer[21] == RTPROT_KERNEL else []
    words += ["scope", "link"] if answer[22] == RT_SCOPE_LINK else []
    mtu = _number(dict(attributes(values.get(_RTA_METRICS, b""))), _RTAX_MTU)
    words += ["mtu", str(mtu)] if mtu is not None else []
    return RouteView(destination, via, dev, " ".join(words))


def _destination(values: dict[int, memoryview], length: int, full: int) -> str:
    address = _address(values, _RTA_DST)
    if address is None:
        return "default"
    return address if length == full else f"{address}/{length}"


def _addresses(netlink: NetlinkSocket) -> defaultdict[int, list[str]]:
    """Return the addresses by interface, without those that the kernel makes itself on each link."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for answer in netlink.dump("list addresses", pack_message(_RTM_GETADDR, bytes(8))):
        (ifindex,) = struct.unpack_from("=I", answer, 20)
        values = dict(attributes(answer, 24))
        address = ip_address(bytes(values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))))
        if not address.is_link_local:
            found[ifindex].append(f"{address}/{answer[17]}")
    return found


def _address(values: dict[int, memoryview], number: int) -> str | None:
    return str(ip_address(bytes(values[number]))) if number in values else None


def _number(values: dict[int, memoryview], number: int) -> int | None:
    return int.from_bytes(values[number], "little") if number in values else None
