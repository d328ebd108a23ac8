"""What differs between two networks of one namespace, in the words of ip(8)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from datapath.kernel.netlink import attributes
from lab.watch.network import FLAGS, IPV4_CONF, IPV6_CONF, Link, Network

_IFA_LOCAL, _IFA_ADDRESS = 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
_RT_TABLE_MAIN, _RTAX_MTU, _AF_INET = 254, 2, 2
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_TYPES = ("", "", "local ", "broadcast ", "anycast ", "multicast ", "blackhole ", "unreachable ", "prohibit ")
"""The types of routes (RTN_*) as ip(8) writes them."""
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 1, 2, 3, 6, 10, 15
_NDA_DST, _NDA_LLADDR = 1, 2
_IPV6_MTU = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that only one of two networks has: `what` it is, and what has become of it, `how`.

    `ifname` is the interface that it belongs to, "" for none, `destination` that of a route with its length.
    `main` says whether the route is in the main table.
    """

    what: str
    how: str
    ifname: str = ""
    destination: str = ""
    main: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.how}"


def differences(before: Network, now: Network) -> Iterator[Difference]:
    """Yield what differs between two networks; what is another now is both gone and new."""
    for name in (*before.links, *(name for name in now.links if name not in before.links)):
        yield from _link(name, before.links.get(name), now.links.get(name))
    for key in sorted(before.settings.keys() | now.settings.keys()):
        was, has = before.settings.get(key), now.settings.get(key)
        if was != has:
            yield Difference(key.replace("/", "."), f"changed from {was} to {has}")
    old, new = (names(network) for network in (before, now))
    yield from _messages(before.addresses, now.addresses, _address, old, new)
    yield from _messages(before.routes, now.routes, _route, old, new)
    yield from _messages(before.rules, now.rules, _rule, old, new)
    yield from _messages(before.neighbours, now.neighbours, _neighbour, old, new)


def names(network: Network) -> dict[int, str]:
    """Return the names of the interfaces by their index."""
    return {link.ifindex: name for name, link in network.links.items()}


def _link(name: str, old: Link | None, new: Link | None) -> Iterator[Difference]:
    if old is None or new is None:
        yield Difference(f"interface {name}", "is gone" if new is None else "is new", name)
        return
    values = {"index": (old.ifindex, new.ifindex), "MTU": (old.mtu, new.mtu), "MAC": (old.mac, new.mac)}
    values |= {"master": (old.master, new.master), "XDP programs": (old.xdp, new.xdp)}
    values |= {"qdisc": (old.qdisc, new.qdisc), "length of the queue": (old.queue, new.queue)}
    values |= {"largest GSO packet": (old.gso, new.gso), "largest GRO packet": (old.gro, new.gro)}
    values |= {flag: (bool(old.flags & bit), bool(new.flags & bit)) for bit, flag in FLAGS.items()}
    known6 = {place - (place > _IPV6_MTU): text for place, text in IPV6_CONF.items()}
    for family, known, was, has in (
        ("ipv4", {place - 1: text for place, text in IPV4_CONF.items()}, old.conf4, new.conf4),
        ("ipv6", known6, old.conf6, new.conf6),
    ):
        for place, pair in enumerate(zip(was, has, strict=False)):
            values[f"{family} {known.get(place, f'setting {place}')}"] = pair
    for what, (was_value, has_value) in values.items():
        if was_value != has_value:
            yield Difference(f"interface {name}: {what}", f"changed from {was_value} to {has_value}", name)


Describe = Callable[[bytes, Mapping[int, str]], Difference]


def _messages(
    before: frozenset[bytes],
    now: frozenset[bytes],
    describe: Describe,
    old: Mapping[int, str],
    new: Mapping[int, str],
) -> Iterator[Difference]:
    if before == now:
        return
    for gone in sorted(before - now):
        yield replace(describe(gone, old), how="is gone")
    for added in sorted(now - before):
        yield replace(describe(added, new), how="is new")


def _address(message: bytes, ifnames: Mapping[int, str]) -> Difference:
    _, length, _, _, ifindex = struct.unpack_from("=BBBBI", message)
    said = dict(attributes(message, 8))
    address = _ip(said.get(_IFA_LOCAL, said.get(_IFA_ADDRESS, b"")))
    ifname = ifnames.get(ifindex, str(ifindex))
    return Difference(f"address {address}/{length} dev {ifname}", "", ifname)


def _route(message: bytes, ifnames: Mapping[int, str]) -> Difference:
    _, length, _, tos, table, protocol, scope, kind, _ = _RTMSG.unpack_from(message)
    said = dict(attributes(message, 12))
    table = _number(said.get(_RTA_TABLE, b"")) or table
    destination = f"{_ip(said[_RTA_DST])}/{length}" if _RTA_DST in said else "default"
    ifindex = _number(said.get(_RTA_OIF, b""))
    ifname = ifnames.get(ifindex, str(ifindex)) if ifindex else ""
    mtu = dict(attributes(said.get(_RTA_METRICS, b""))).get(_RTAX_MTU)
    words = [
        f"route {_TYPES[kind] if kind < len(_TYPES) else ''}{destination}",
        f"via {_ip(said[_RTA_GATEWAY])}" if _RTA_GATEWAY in said else "",
        f"dev {ifname}" if ifname else "",
        f"src {_ip(said[_RTA_PREFSRC])}" if _RTA_PREFSRC in said else "",
        f"metric {_number(said[_RTA_PRIORITY])}" if _RTA_PRIORITY in said else "",
        f"tos {tos}" if tos else "",
        f"mtu {_number(mtu)}" if mtu is not None else "",
        f"table {table} proto {protocol} scope {scope}",
    ]
    return Difference(" ".join(filter(None, words)), "", ifname, destination, main=table == _RT_TABLE_MAIN)


def _rule(message: bytes, _: Mapping[int, str]) -> Difference:
    family, destination, source, _, table = struct.unpack_from("=BBBBB", message)
    said = dict(attributes(message, 12))
    words = [
        f"rule {_number(said.get(_FRA_PRIORITY, b''))} of IPv{4 if family == _AF_INET else 6}:",
        f"from {_ip(said[_FRA_SRC])}/{source}" if _FRA_SRC in said else "from all",
        f"to {_ip(said[_FRA_DST])}/{destination}" if _FRA_DST in said else "",
        f"fwmark {_number(said[_FRA_FWMARK]):#x}" if _FRA_FWMARK in said else "",
        f"iif {bytes(said[_FRA_IIFNAME]).rstrip(bytes(1)).decode()}" if _FRA_IIFNAME in said else "",
        f"lookup {_number(said.get(_FRA_TABLE, b'')) or table}",
    ]
    return Difference(" ".join(filter(None, words)), "")


def _neighbour(message: bytes, ifnames: Mapping[int, str]) -> Difference:
    (ifindex,) = struct.unpack_from("=i", message, 4)
    said = dict(attributes(message, 12))
    ifname = ifnames.get(ifindex, str(ifindex))
    mac = bytes(said.get(_NDA_LLADDR, b"")).hex(":")
    return Difference(f"permanent neighbour {_ip(said.get(_NDA_DST, b''))} lladdr {mac} dev {ifname}", "", ifname)


def _ip(value: bytes | memoryview) -> str:
    return str(ip_address(bytes(value))) if len(value) in (4, 16) else bytes(value).hex()


def _number(value: bytes | memoryview) -> int:
    return int.from_bytes(value, "little")
