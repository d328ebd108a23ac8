"""The routes of an endpoint in endpoint-routes mode: one /32 and one /128 on its own device.

As at the reference commit: table main, no gateway, no source, scope link (IPv4), no explicit protocol, which the
netlink library of Cilium turns into RTPROT_BOOT.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from datapath.endpoint import Endpoint
from datapath.errors import NetlinkError
from datapath.kernel.netlink import NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkSocket, attributes

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
_RTA_DST, _RTA_OIF = 1, 4
_RTM_F_FIB_MATCH = 0x2000
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags


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


def endpoint_routes(endpoint: Endpoint, ifindex: int) -> tuple[Route, ...]:
    """Return the routes of an endpoint in endpoint-routes mode, IPv4 first."""
    return tuple(Route(address, ifindex) for address in (endpoint.ipv4, endpoint.ipv6) if address is not None)


def upsert(netlink: NetlinkSocket, route: Route) -> None:
    """Install a route; one to the same address through another interface is replaced."""
    netlink.request(f"install route {route}", _message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route))


def remove(netlink: NetlinkSocket, route: Route) -> None:
    """Remove a route; one that is not there is no error."""
    try:
        netlink.request(f"remove route {route}", _message(RTM_DELROUTE, 0, route))
    except NetlinkError as error:
        if error.errno not in (errno.ESRCH, errno.ENODEV):
            raise


def current(netlink: NetlinkSocket, address: IPv4Address | IPv6Address) -> Installed | None:
    """Return the host route of the main table to exactly this address, None if there is none."""
    try:
        answer = netlink.get(f"look up route {address}", _lookup(address))
    except NetlinkError as error:
        # No route at all; what prohibits or blackholes is no host route of ours either.
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(answer, 16)
    if table != RT_TABLE_MAIN or length != address.max_prefixlen or kind != RTN_UNICAST:
        return None
    ifindex = next((int.from_bytes(v, "little") for k, v in attributes(answer, 28) if k == _RTA_OIF), 0)
    return Installed(address, ifindex, answer)


def restore(netlink: NetlinkSocket, installed: Installed) -> None:
    """Put back a route that `current` returned."""
    length = len(installed.message)
    header = struct.pack("=IHHII", length, RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE, 0, 0)
    # The answer to a lookup says how it was found; a request may not (RTM_F_FIB_MATCH and the like).
    body = bytearray(installed.message[16:])
    struct.pack_into("=I", body, 8, 0)
    netlink.request(f"restore route {installed.address}", header + bytes(body))


def _lookup(address: IPv4Address | IPv6Address) -> bytes:
    """Ask for the table entry that a packet to `address` would take, not for the resulting path."""
    body = _RTMSG.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    body += struct.pack("=HH", 4 + len(address.packed), _RTA_DST) + address.packed
    return struct.pack("=IHHII", 16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, 0, 0) + body


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _message(kind: int, flags: int, route: Route) -> bytes:
    scope = RT_SCOPE_LINK if route.address.version == 4 else RT_SCOPE_UNIVERSE
    address = route.address.packed
    body = _RTMSG.pack(
        _family(route.address), len(address) * 8, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0
    ) + struct.pack(f"=HH{len(address)}sHHI", 4 + len(address), _RTA_DST, address, 8, _RTA_OIF, route.ifindex)
    return struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body
