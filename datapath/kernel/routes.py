"""The routes of an endpoint in endpoint-routes mode: one /32 and one /128 on its own device.

As at the reference commit: table main, no gateway, no source, scope link (IPv4), no explicit protocol, which the
netlink library of Cilium turns into RTPROT_BOOT. Other versions of Cilium write another protocol: what makes a route an
endpoint's is its destination, its device and its table.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from datapath.endpoint import Endpoint
from datapath.errors import NetlinkError, ReloadlabError
from datapath.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NetlinkSocket,
    attributes,
    pack_attribute,
    pack_message,
    unless,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 1, 4, 5, 9, 15, 18, 30
_RTM_F_CLONED, _RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x200, 0x1000, 0x2000
_RTNH_F_ONLINK = 4
_NLM_F_DUMP_FILTERED = 0x20
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH)
_FORBIDDEN = (errno.EACCES, errno.EINVAL)  # prohibit, blackhole
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTNEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface
_FLAGS_OF_HOP = 2


@dataclass(frozen=True, slots=True)
class Route:
    """A host route: `address` is reached directly through the interface `ifindex`."""

    address: IPv4Address | IPv6Address
    ifindex: int

    def __str__(self) -> str:
        return f"{self.address}/{self.address.max_prefixlen}"


@dataclass(frozen=True, slots=True)
class Installed:
    """A host route as the kernel has it, whoever installed it; `message` is the kernel's own description."""

    address: IPv4Address | IPv6Address
    ifindex: int
    message: bytes


class RouteStays(ReloadlabError):
    """A route that was removed, and is there again: somebody else installs it."""

    def __init__(self, route: Route) -> None:
        super().__init__(f"the route to {route} was removed and is there again: stop what installs it")
        self.route = route


def endpoint_routes(endpoint: Endpoint, ifindex: int) -> tuple[Route, ...]:
    """Return the routes of an endpoint in endpoint-routes mode, IPv4 first."""
    return tuple(Route(address, ifindex) for address in (endpoint.ipv4, endpoint.ipv6) if address is not None)


def upsert(netlink: NetlinkSocket, route: Route) -> None:
    """Install a route; one to the same address through another interface is replaced."""
    netlink.request(f"install route {route}", _message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route))


def remove(netlink: NetlinkSocket, route: Route) -> None:
    """Remove a route as `upsert` installs it; a missing one is no error."""
    _delete(netlink, f"remove route {route}", _message(RTM_DELROUTE, 0, route))


def remove_all(netlink: NetlinkSocket, route: Route, note: Callable[[Installed], object]) -> None:
    """Remove every route to the host through the interface, whoever installed it: a packet must not find one.

    `note` gets each of them before it goes, for `add_again`. RouteStays if one is there afterwards.
    """
    found = through(netlink, route)
    for installed in found:
        note(installed)
        _delete(netlink, f"remove route {route}", _request(RTM_DELROUTE, 0, installed))
    if found and through(netlink, route):
        raise RouteStays(route)


def through(netlink: NetlinkSocket, route: Route) -> tuple[Installed, ...]:
    """Return the routes of the main table to this host through this interface, whatever else they say.

    One of several paths is enough. A look-up would not do: it tells one route, and that of one TOS.
    """
    try:
        answers = netlink.dump(f"list routes to {route}", _listing(route))
    except NetlinkError as error:
        # Without the interface, or the table, there is none.
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return ()
        raise
    return tuple(Installed(route.address, route.ifindex, answer) for answer in answers if _leads(answer, route))


def current(netlink: NetlinkSocket, address: IPv4Address | IPv6Address) -> Installed | None:
    """Return the host route of the main table to exactly this address, None if there is none."""
    try:
        answer = netlink.get(f"look up route {address}", _lookup(address))
    except NetlinkError as error:
        # No route at all; what prohibits or blackholes is no host route of ours either.
        if error.errno in (*_NO_ROUTE, *_FORBIDDEN):
            return None
        raise
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(answer, 16)
    if table != RT_TABLE_MAIN or length != address.max_prefixlen or kind != RTN_UNICAST:
        return None
    return Installed(address, next(iter(_interfaces(answer)), 0), answer)


def way(netlink: NetlinkSocket, address: IPv4Address | IPv6Address) -> tuple[int, int] | None:
    """Return the table and the interface by which a packet of the namespace itself leaves for an address.

    Rules before the main table are followed as the kernel follows them. None if there is no route.
    """
    try:
        answer = netlink.get(f"look up route {address}", _lookup(address))
    except NetlinkError as error:
        if error.errno in (*_NO_ROUTE, *_FORBIDDEN):
            return None
        raise
    said = dict(attributes(answer, 28))
    table = int.from_bytes(said[_RTA_TABLE], "little") if _RTA_TABLE in said else answer[20]
    return table, next(iter(_interfaces(answer)), 0)


def direct(messages: Iterable[bytes], addresses: Container[bytes]) -> dict[bytes, set[int]]:
    """Return the host routes of the main table to packed addresses, by address: the interfaces that they lead to.

    `messages` are routes as the kernel tells them, without the header of the message.
    """
    found: dict[bytes, set[int]] = {}
    for message in messages:
        family, length, _, _, table, *_ = _RTMSG.unpack_from(message)
        # Most routes are others: what they lead to is not read.
        if table != RT_TABLE_MAIN or length != (32 if family == socket.AF_INET else 128):
            continue
        route = main_route(message)
        if route is not None and route[0][0] in addresses:
            found.setdefault(route[0][0], set()).update(route[1])
    return found


def main_route(message: bytes) -> tuple[tuple[bytes, int], tuple[int, ...]] | None:
    """Return the destination of a route, as (packed address, prefix length), and the interfaces that it leads to.

    None for one that is not of the main table, or that only remembers an answer of it. `message` is without its header.
    """
    _, length, _, _, table, _, _, kind, flags = _RTMSG.unpack_from(message)
    if table != RT_TABLE_MAIN or kind != RTN_UNICAST or flags & _RTM_F_CLONED:
        return None
    destination = bytes(dict(attributes(message, 12)).get(_RTA_DST, b""))
    return (destination, length), tuple(_interfaces(bytes(16) + message))


def restore(netlink: NetlinkSocket, installed: Installed) -> None:
    """Put back a route that `upsert` replaced, in the place of the one that is there now."""
    message = _request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, installed)
    netlink.request(f"restore route {installed.address}", message)


def add_again(netlink: NetlinkSocket, installed: Installed) -> None:
    """Put back a route that `remove_all` gave, unless it is there still; no other takes its place."""
    message = _request(RTM_NEWROUTE, NLM_F_CREATE, installed)
    unless(errno.EEXIST, netlink, f"restore route {installed.address}", message)


def _leads(answer: bytes, route: Route) -> bool:
    _, length, _, _, table, _, _, kind, flags = _RTMSG.unpack_from(answer, 16)
    if (length, table, kind) != (route.address.max_prefixlen, RT_TABLE_MAIN, RTN_UNICAST) or flags & _RTM_F_CLONED:
        return False
    said = dict(attributes(answer, 28))
    if bytes(said.get(_RTA_DST, b"")) != route.address.packed:
        return False
    interfaces = _interfaces(answer)
    if interfaces:
        return route.ifindex in interfaces
    # With nexthop_compat_mode off the kernel names the nexthop object alone, having chosen by interface itself.
    (header_flags,) = struct.unpack_from("=H", answer, 6)
    return _RTA_NH_ID in said and bool(header_flags & _NLM_F_DUMP_FILTERED)


def _interfaces(answer: bytes) -> list[int]:
    """Return the interfaces through which a route leads, one per path."""
    found = []
    for number, value in attributes(answer, 28):
        if number == _RTA_OIF:
            found.append(int.from_bytes(value, "little"))
        elif number == _RTA_MULTIPATH:
            found += [ifindex for _, ifindex in _hops(value)]
    return found


def _hops(multipath: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield (offset, interface) of each path of RTA_MULTIPATH."""
    offset = 0
    while offset + _RTNEXTHOP.size <= len(multipath):
        length, _, _, ifindex = _RTNEXTHOP.unpack_from(multipath, offset)
        if length < _RTNEXTHOP.size:
            return
        yield offset, ifindex
        offset += (length + 3) & ~3


def _delete(netlink: NetlinkSocket, what: str, message: bytes) -> None:
    try:
        netlink.request(what, message)
    except NetlinkError as error:
        if error.errno not in (errno.ESRCH, errno.ENODEV):
            raise


def _request(kind: int, flags: int, installed: Installed) -> bytes:
    """Return a request about a route in the kernel's own words for it."""
    rtmsg = bytearray(installed.message[16:28])
    # An answer says how it was found and in what state it is; a request may not (RTM_F_FIB_MATCH, RTNH_F_DEAD).
    struct.pack_into("=I", rtmsg, 8, struct.unpack_from("=I", rtmsg, 8)[0] & _RTNH_F_ONLINK)
    said = {number: bytearray(value) for number, value in attributes(installed.message, 28)}
    paths = said.get(_RTA_MULTIPATH, bytearray())
    for offset, _ in _hops(bytes(paths)):
        paths[offset + _FLAGS_OF_HOP] &= _RTNH_F_ONLINK
    if _RTA_NH_ID in said:
        # The kernel tells what the nexthop object consists of, and does not take it back.
        said = {k: v for k, v in said.items() if k not in (_RTA_OIF, _RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH)}
    body = bytes(rtmsg) + b"".join(pack_attribute(number, bytes(value)) for number, value in said.items())
    return pack_message(kind, body, flags)


def _listing(route: Route) -> bytes:
    """Ask for the routes of the main table through one interface."""
    body = _RTMSG.pack(_family(route.address), 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    body += pack_attribute(_RTA_OIF, struct.pack("=I", route.ifindex))
    return pack_message(RTM_GETROUTE, body)


def _lookup(address: IPv4Address | IPv6Address) -> bytes:
    """Ask for the table entry that a packet to `address` would take, not for the resulting path."""
    # Without LOOKUP_TABLE every IPv4 route is said to be in the main table; for IPv6 the kernel refuses the flag.
    flags = _RTM_F_FIB_MATCH | (_RTM_F_LOOKUP_TABLE if address.version == 4 else 0)
    body = _RTMSG.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    body += pack_attribute(_RTA_DST, address.packed)
    return pack_message(RTM_GETROUTE, body)


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _message(kind: int, flags: int, route: Route) -> bytes:
    scope = RT_SCOPE_LINK if route.address.version == 4 else RT_SCOPE_UNIVERSE
    address = route.address.packed
    body = _RTMSG.pack(
        _family(route.address), len(address) * 8, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0
    )
    body += pack_attribute(_RTA_DST, address) + pack_attribute(_RTA_OIF, struct.pack("=I", route.ifindex))
    return pack_message(kind, body, flags)
