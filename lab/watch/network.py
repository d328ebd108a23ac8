"""The network of one namespace as the kernel tells it: links, addresses, routes of all tables, rules, neighbours.

Messages of the kernel are kept as they came, without what changes by itself, and read only where they differ.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datapath.kernel.netlink import RTM_GETLINK, NetlinkSocket, attributes, pack_attribute, pack_message, text
from datapath.kernel.netns import enter

_RTM_GETADDR, _RTM_GETROUTE, _RTM_GETNEIGH, _RTM_GETRULE = 22, 26, 30, 34
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_AF_SPEC, _IFLA_EXT_MASK, _IFLA_XDP = 1, 3, 4, 10, 26, 29, 43
_IFLA_QDISC, _IFLA_TXQLEN, _IFLA_GSO_MAX_SIZE, _IFLA_GRO_MAX_SIZE = 6, 13, 41, 58
_RTEXT_FILTER_SKIP_STATS = 8
_IFLA_XDP_PROG_ID, _INET_CONF, _INET6_CONF = 4, 1, 2
_IFA_CACHEINFO, _RTA_CACHEINFO, _RTM_F_CLONED = 6, 12, 0x200
_IFADDRMSG_FLAGS, _IFA_ADDRESS, _IFA_FLAGS, _IFA_F_TENTATIVE = 2, 1, 8, 0x40
_RTMSG_TABLE, _RT_TABLE_LOCAL = 20, 255
_RTMSG_PROTOCOL, _RTPROT_KERNEL, _RTA_DST = 21, 2, 1
_FLAGS_OF_KEPT, _RTNH_F_DEAD, _RTNH_F_LINKDOWN = 8, 0x1, 0x10
_RTMSG_FLAGS, _NDMSG_STATE = 24, 24  # offsets in the messages, their headers included
_NUD_PERMANENT, _NDA_DST, _NDA_LLADDR = 0x80, 1, 2

FLAGS = {0x1: "up", 0x80: "noarp", 0x100: "promisc", 0x200: "allmulti"}
"""Flags of a link that somebody sets (IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI)."""
IPV4_CONF = {
    **{1: "forwarding", 3: "proxy_arp", 4: "accept_redirects", 6: "send_redirects", 8: "rp_filter"},
    **{18: "arp_announce", 19: "arp_ignore", 23: "accept_local", 26: "route_localnet"},
}
"""Names of settings by their place in IFLA_INET_CONF (IPV4_DEVCONF_*, which count from 1)."""
IPV6_CONF = {
    **{0: "forwarding", 1: "hop_limit", 3: "accept_ra", 4: "accept_redirects", 5: "autoconf"},
    **{22: "proxy_ndp", 26: "disable_ipv6", 27: "accept_dad"},
}
"""The same in IFLA_INET6_CONF (DEVCONF_*)."""
_IPV6_MTU = 2  # follows the MTU of the link

_SETTINGS = (
    *("ipv4/ip_forward", "ipv4/fib_multipath_use_neigh"),
    *(f"ipv4/conf/{group}/{name}" for group in ("all", "default") for name in IPV4_CONF.values()),
    *(f"ipv6/conf/{group}/{name}" for group in ("all", "default") for name in IPV6_CONF.values()),
)
"""Settings of a whole namespace, below /proc/sys/net."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link; `mtu` in bytes, `xdp` the ids of its XDP programs, `conf4` and `conf6` the sysctls of the interface.

    `qdisc` is the kind of the one at its root, `queue` how many packets that may keep; `gso` and `gro` are the largest
    packets in bytes that are left whole, 0 where the kernel does not tell.
    """

    ifindex: int
    flags: int
    mtu: int
    mac: str
    master: int
    xdp: tuple[int, ...]
    qdisc: str
    queue: int
    gso: int
    gro: int
    conf4: tuple[int, ...]
    conf6: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """The network of a namespace. `neighbours` are the permanent ones; `settings` are sysctls of the namespace.

    Addresses, routes, rules and neighbours are messages of the kernel.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    addresses: frozenset[bytes] = frozenset()
    routes: frozenset[bytes] = frozenset()
    rules: frozenset[bytes] = frozenset()
    neighbours: frozenset[bytes] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)


def read_network(netns: Path, *, settings: bool = True) -> Network:
    """Read the network of a namespace; without `settings`, its links have theirs all the same."""
    with NetlinkSocket(netns) as netlink:
        addresses = frozenset(
            _address(answer)
            for answer in netlink.dump("list addresses", pack_message(_RTM_GETADDR, bytes(8)))
            if not _is_link_local(dict(attributes(answer, 24)).get(_IFA_ADDRESS))
        )
        rules = frozenset(answer[16:] for answer in netlink.dump("list rules", pack_message(_RTM_GETRULE, bytes(12))))
        routes = frozenset(
            _route(answer)
            for answer in netlink.dump("list routes", pack_message(_RTM_GETROUTE, bytes(12)))
            if not struct.unpack_from("=I", answer, _RTMSG_FLAGS)[0] & _RTM_F_CLONED and not _is_the_links(answer)
        )
        neighbours = frozenset(
            _neighbour(answer)
            for answer in netlink.dump("list neighbours", pack_message(_RTM_GETNEIGH, bytes(12)))
            if struct.unpack_from("=H", answer, _NDMSG_STATE)[0] & _NUD_PERMANENT
        )
        links = _links(netlink)
    return Network(links, addresses, routes, rules, neighbours, _settings(netns) if settings else {})


def _address(answer: bytes) -> bytes:
    """Return an address without its times, and whether or not others on the link are still asked for it."""
    kept = bytearray(_kept(answer, 8, _IFA_CACHEINFO, _IFA_FLAGS))
    kept[_IFADDRMSG_FLAGS] &= ~_IFA_F_TENTATIVE & 0xFF
    flags = dict(attributes(answer, 24)).get(_IFA_FLAGS)
    if flags is None:
        return bytes(kept)
    wide = int.from_bytes(flags, "little") & ~_IFA_F_TENTATIVE
    return bytes(kept) + pack_attribute(_IFA_FLAGS, struct.pack("=I", wide))


def _route(answer: bytes) -> bytes:
    """Return a route without what changes when its link gets or loses its carrier, which the kernel notes later."""
    kept = bytearray(_kept(answer, 12, _RTA_CACHEINFO))
    (flags,) = struct.unpack_from("=I", kept, _FLAGS_OF_KEPT)
    struct.pack_into("=I", kept, _FLAGS_OF_KEPT, flags & ~(_RTNH_F_DEAD | _RTNH_F_LINKDOWN))
    return bytes(kept)


def _is_the_links(answer: bytes) -> bool:
    """Tell whether a route is one that the kernel itself makes, some time after a link or an address is there.

    Such are the routes of its table `local`, which follow the addresses, and those of link-local addresses.
    """
    local = answer[_RTMSG_TABLE] == _RT_TABLE_LOCAL or _is_link_local(dict(attributes(answer, 28)).get(_RTA_DST))
    return local and answer[_RTMSG_PROTOCOL] == _RTPROT_KERNEL


def _is_link_local(address: memoryview | None) -> bool:
    """Tell whether an address is in fe80::/10: the kernel makes them itself, some time after a link is up."""
    return address is not None and len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _kept(answer: bytes, head: int, *dropped: int) -> bytes:
    """Return a message without its header and without the attributes that change by themselves."""
    said = (pack_attribute(number, value) for number, value in attributes(answer, 16 + head) if number not in dropped)
    return answer[16 : 16 + head] + b"".join(said)


def _neighbour(answer: bytes) -> bytes:
    """Return a neighbour without the times at which it was used and confirmed."""
    said = (pack_attribute(n, value) for n, value in attributes(answer, 28) if n in (_NDA_DST, _NDA_LLADDR))
    return answer[16:28] + b"".join(said)


def _links(netlink: NetlinkSocket) -> dict[str, Link]:
    # Without their counters, which are most of the answer.
    mask = pack_attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    found = {}
    for answer in netlink.dump("list links", pack_message(RTM_GETLINK, bytes(16) + mask)):
        ifindex, flags = struct.unpack_from("=iI", answer, 20)
        said = dict(attributes(answer, 32))
        conf4, conf6 = _configurations(said.get(_IFLA_AF_SPEC, memoryview(b"")))
        xdp = [int.from_bytes(v, "little") for n, v in attributes(said.get(_IFLA_XDP, b"")) if n >= _IFLA_XDP_PROG_ID]
        found[text(said[_IFLA_IFNAME])] = Link(
            ifindex=ifindex,
            flags=flags & sum(FLAGS),
            mtu=int.from_bytes(said[_IFLA_MTU], "little"),
            mac=bytes(said.get(_IFLA_ADDRESS, b"")).hex(":"),
            master=int.from_bytes(said.get(_IFLA_MASTER, b""), "little"),
            xdp=tuple(sorted({program for program in xdp if program})),
            qdisc=text(said.get(_IFLA_QDISC, memoryview(b""))),
            queue=int.from_bytes(said.get(_IFLA_TXQLEN, b""), "little"),
            gso=int.from_bytes(said.get(_IFLA_GSO_MAX_SIZE, b""), "little"),
            gro=int.from_bytes(said.get(_IFLA_GRO_MAX_SIZE, b""), "little"),
            conf4=conf4,
            conf6=conf6,
        )
    return found


def _configurations(families: memoryview) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for family, said in attributes(families):
        wanted = _INET_CONF if family == socket.AF_INET else _INET6_CONF
        if family in (socket.AF_INET, socket.AF_INET6):
            values = dict(attributes(said)).get(wanted, memoryview(b""))
            found[family] = struct.unpack(f"={len(values) // 4}i", values)
    conf6 = found.get(socket.AF_INET6, ())
    return found.get(socket.AF_INET, ()), conf6[:_IPV6_MTU] + conf6[_IPV6_MTU + 1 :]


def _settings(netns: Path) -> dict[str, str]:
    found = {}
    with enter(netns):
        for name in _SETTINGS:
            try:
                found[name] = (Path("/proc/sys/net") / name).read_text().strip()
            except FileNotFoundError:
                continue
    return found
