"""Connections across the replacement of the maps that keep them.

A map that became incompatible is replaced by the first reload that needs it, with its content. All other endpoints go
on with the old one until they are reloaded themselves, and so do the programs of that reload until they are attached:
what they note meanwhile, nobody else sees. So each endpoint's reload carries over what its old programs have noted.
(The reference copies nothing: every connection is a new one then, and its answers meet the policy.)
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

from datapath.endpoint import Endpoint, NodeConfig
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.load.content import can_copy, put
from datapath.load.maps import Map
from datapath.statefile import read_typed, write_json

CONNECTIONS = "cilium_ct"
"""What the names of the maps of connections begin with."""

_FILE = "connections"
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; Python's time module does not name it
_POD_PREFIX6 = 96  # bpf/lib/encap.h
_TUPLE_F_IN, _PORTS_AND_FLAGS = 1, 6  # bpf/lib/conntrack.h, struct ipv4_ct_tuple and ipv6_ct_tuple
_PACKETS = struct.Struct("<Q8xQ")
_LIFETIME = struct.Struct("<32xI")

Owns = Callable[[bytes], bool]
"""Whether an address, packed, belongs to an endpoint."""


def lifetime_of(value: bytes) -> int:
    """Return until when an entry holds (struct ct_entry: lifetime), in seconds of the monotonic clock."""
    (lifetime,) = _LIFETIME.unpack_from(value)
    return int(lifetime)


def seconds() -> int:
    """Return the time of bpf_ktime_get_coarse_ns(): the datapath's, or Cilium's own by a tick at most behind it."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE) // 1_000_000_000


def remember(directory: Path, maps: Mapping[str, Map]) -> None:
    """Note in an endpoint's directory which maps of connections its programs use from now on."""
    used = _ids(maps)
    if used and used != _remembered(directory):
        write_json(directory / _FILE, used)


def owner(node: NodeConfig, endpoint: Endpoint | None) -> Owns:
    """Return a test of whether an address is an endpoint's; what is no pod's is the host's and the overlay's (None)."""
    if endpoint is not None and not endpoint.is_host:
        return frozenset(address.packed for address in (endpoint.ipv4, endpoint.ipv6) if address).__contains__
    routers = (node.router_ipv4.packed, node.router_ipv6.packed)
    pods = (
        ip_network((node.router_ipv4, node.pod_prefix4), strict=False),
        ip_network((node.router_ipv6, _POD_PREFIX6), strict=False),
    )
    return lambda packed: packed in routers or not any(ip_address(packed) in network for network in pods)


def carry_over(directory: Path, maps: Mapping[str, Map], owns: Owns) -> dict[str, int]:
    """Bring into `maps` what the endpoint's programs have noted of its own connections in those they used until now.

    Those of others are left alone: an endpoint whose programs use the new map already knows its own better, and one
    that is gone must not leave them to its successor. Returns how many did not fit, by map, where any did not.
    """
    used = _ids(maps)
    if not used:
        return {}
    left_out = {
        name: _merge(ident, maps[name], owns)
        for name, ident in _remembered(directory).items()
        if name in used and ident != used[name]
    }
    return {name: count for name, count in left_out.items() if count}


def _merge(ident: int, new: Map, owns: Owns) -> int:
    """Copy what is alive from the map of that id, unless it is gone; return how many entries did not fit.

    Of two states of a connection the one that has seen more packets is the later.
    """
    try:
        fd = bpf.map_fd_by_id(ident)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0
    left_out = 0
    with Map(fd, new.name, bpf.map_info(fd)) as old:
        # Ids begin anew with every boot of the machine.
        if old.info.name != new.info.name or not can_copy(old, new):
            return 0
        now = seconds()
        for key, value in old.items():
            if lifetime_of(value) < now or not owns(_own_address(key)):
                continue
            there = new.lookup(key)
            if there is None or _packets(there) < _packets(value):
                left_out += not put(new, key, value)
    return left_out


def _own_address(key: bytes) -> bytes:
    """Return the address of the side that an entry belongs to: who sent the first packet of one that is going out."""
    width = (len(key) - _PORTS_AND_FLAGS) // 2
    return key[width : 2 * width] if key[-1] & _TUPLE_F_IN else key[:width]


def _packets(value: bytes) -> int:
    received, sent = _PACKETS.unpack_from(value)
    return int(received + sent)


def _ids(maps: Mapping[str, Map]) -> dict[str, int]:
    return {name: item.info.id for name, item in maps.items() if name.startswith(CONNECTIONS)}


def _remembered(directory: Path) -> dict[str, int]:
    try:
        return read_typed(dict[str, int], directory / _FILE)
    except FileNotFoundError:
        return {}
