"""What packets note in maps, across the replacement of those maps: connections, NAT, affinity, fragments.

A map that became incompatible is replaced by the first reload that needs it, with its content. All other endpoints go
on with the old one until they are reloaded themselves, and so do the programs of that reload until they are attached:
nobody else sees what they note meanwhile. So each endpoint's reload carries over what its old programs have noted.
(The reference copies nothing: every connection is then a new one, and its answers meet the policy.)
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import NamedTuple

from datapath.base.mapnames import CONNECTIONS, WRITTEN_BY_PACKETS
from datapath.base.statefile import DamagedFile, read_typed, write_json
from datapath.endpoint import Endpoint, NodeConfig
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.helpers import Helper, is_known
from datapath.kernel.map import Map
from datapath.load.content import can_copy, put

NOTE = "connections"
"""The file in the directory of an endpoint that says which maps its programs use."""
_KERNEL_NAME = 15  # BPF_OBJ_NAME_LEN without the zero at the end
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; Python's time module does not name it
_POD_PREFIX6 = 96  # bpf/lib/encap.h
_ON_EVERY_LINK = (*(bytes([first]) for first in range(224, 240)), b"\xff", b"\xa9\xfe", b"\xfe\x80")
"""How multicast and link-local addresses begin, of either family."""
_TUPLE_F_IN, _PORTS_AND_FLAGS = 1, 6  # bpf/lib/conntrack.h, struct ipv4_ct_tuple and ipv6_ct_tuple
_LIFETIME, _BITS = struct.Struct("<32xI"), struct.Struct("<36xH")
_ENTRY = struct.Struct("<4QI3H2B3I")  # struct ct_entry; a build may append words
_CLOSING, _SEEN_NON_SYN = 3, 1 << 4
_CLOSE_TIMEOUT = 10  # CT_CLOSE_TIMEOUT, seconds

Owns = Callable[[bytes], bool]
"""Whether an address, packed, belongs to an endpoint."""


def lifetime_of(value: bytes) -> int:
    """Return until when an entry holds (struct ct_entry: lifetime), in seconds of the monotonic clock."""
    (lifetime,) = _LIFETIME.unpack_from(value)
    return int(lifetime)


def is_closing(value: bytes) -> bool:
    """Tell whether one side of an entry's connection, or both, have closed it."""
    (bits,) = _BITS.unpack_from(value)
    return bool(bits & _CLOSING)


def seconds() -> int:
    """Return the time of the clock that our programs read on this kernel. Cilium's own is ahead by a tick at most."""
    clock = _CLOCK_MONOTONIC_COARSE if is_known(Helper.KTIME_GET_COARSE_NS) else time.CLOCK_MONOTONIC
    return time.clock_gettime_ns(clock) // 1_000_000_000


def remember(directory: Path, maps: Iterable[Mapping[str, Map]], known: Mapping[str, int] | None) -> None:
    """Note in an endpoint's directory which maps its programs use from now on; `maps` are those of each object there.

    `known` is what `remembered` has returned, None if that was damaged.
    """
    used = {name: ident for each in maps for name, ident in _ids(each).items()}
    if used and used != known:
        write_json(directory / NOTE, used)


def owner(node: NodeConfig, endpoint: Endpoint | None) -> Owns:
    """Return a test of whether an address is the endpoint's; the host and the overlay (None) have all but the pods'.

    Multicast and link-local addresses are everybody's: a pod's programs note what its node reports to a group (MLD).
    """
    if endpoint is not None and not endpoint.is_host:
        own = frozenset(address.packed for address in (endpoint.ipv4, endpoint.ipv6) if address)
        return lambda packed: packed in own or packed.startswith(_ON_EVERY_LINK)
    routers = (node.router_ipv4.packed, node.router_ipv6.packed)
    pods = _pods_of(node.router_ipv4, node.router_ipv6, node.pod_prefix4)
    return lambda packed: packed in routers or not any(ip_address(packed) in network for network in pods)


@lru_cache(maxsize=64)
def _pods_of(router4: IPv4Address, router6: IPv6Address, prefix4: int) -> tuple[IPv4Network, IPv6Network]:
    """Return the networks of a node's pods: every reload asks for them, and few carry anything over."""
    return IPv4Network((router4, prefix4), strict=False), IPv6Network((router6, _POD_PREFIX6), strict=False)


def carry_over(before: Mapping[str, int], maps: Mapping[str, Map], owns: Owns) -> dict[str, int]:
    """Bring into `maps` what the endpoint's programs have noted in those that they used until now.

    `before` is what `remembered` returns. Of connections only its own: an endpoint whose programs use the new map
    already knows its own better, and a removed one must not leave them to its successor. Of all other entries those
    that the new map lacks. Returns how many entries did not fit, for the maps where any did not.
    """
    left_out = {name: _merge(ident, maps[name], owns) for name, ident in _replaced(before, maps)}
    return {name: count for name, count in left_out.items() if count}


def carry_back(before: Mapping[str, int], maps: Mapping[str, Map], owns: Owns) -> None:
    """Bring into the maps that the endpoint's programs used before what its new ones have noted in `maps`.

    For a reload that fails when packets have met its programs: the old ones answer for what began meanwhile. What does
    not fit there is lost.
    """
    for name, ident in _replaced(before, maps):
        old = _open(ident, name)
        if old is not None:
            with old:
                _merge(maps[name].info.id, old, owns)


def _replaced(before: Mapping[str, int], maps: Mapping[str, Map]) -> list[tuple[str, int]]:
    """Return the names of maps of which the programs have another one now, and the ids that these had before."""
    used = _ids(maps) if before else {}
    return [(name, ident) for name, ident in before.items() if name in used and ident != used[name]]


def merged(one: bytes, other: bytes, now: int) -> bytes:
    """Return the state of a connection of which two maps know different parts (struct ct_entry).

    Flags that either has seen are seen. A connection that is closed in one lives as long as that one says, one whose
    ends were seen in different maps as long as a closed one; any other as long as either says. One that has begun
    anew, with a SYN, is another connection than the closed one.
    """
    first, second = (_State(*_ENTRY.unpack_from(value)) for value in (one, other))
    for fresh, old, value in ((first, second, one), (second, first, other)):
        if old.is_dead and not fresh.bits & (_CLOSING | _SEEN_NON_SYN):
            return value
    newer, older = (first, second) if first.packets >= second.packets else (second, first)
    received, sent = max(first[0:2], second[0:2]), max(first[2:4], second[2:4])
    state = newer._replace(
        rx_packets=received[0],
        rx_bytes=received[1],
        tx_packets=sent[0],
        tx_bytes=sent[1],
        bits=newer.bits | older.bits,
        tx_flags_seen=newer.tx_flags_seen | older.tx_flags_seen,
        rx_flags_seen=newer.rx_flags_seen | older.rx_flags_seen,
        last_tx_report=max(newer.last_tx_report, older.last_tx_report),
        last_rx_report=max(newer.last_rx_report, older.last_rx_report),
    )
    lifetimes = [each.lifetime for each in (first, second) if each.is_dead or not state.is_dead]
    lifetime = max(lifetimes) if lifetimes else min(first.lifetime, second.lifetime, now + _CLOSE_TIMEOUT)
    rest = (one if newer is first else other)[_ENTRY.size :]
    return _ENTRY.pack(*state._replace(lifetime=lifetime)) + rest


class _State(NamedTuple):
    """struct ct_entry; `bits` are rx_closing, tx_closing, nat46, lb_loopback, seen_non_syn and those that follow."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    lifetime: int
    bits: int
    rev_nat_index: int
    ifindex: int
    tx_flags_seen: int
    rx_flags_seen: int
    src_sec_id: int
    last_tx_report: int
    last_rx_report: int

    @property
    def is_dead(self) -> bool:
        return self.bits & _CLOSING == _CLOSING

    @property
    def packets(self) -> int:
        return self.rx_packets + self.tx_packets


def tables_in_use(state: Path) -> Iterator[Map]:
    """Open the maps of connections that programs of endpoints use, by the notes below `state`, one after another.

    Each is closed when the next one is asked for. A note that says nothing is left out: no reload reads it either.
    """
    used: set[tuple[str, int]] = set()
    for note in (state / NOTE, *state.glob(f"*/{NOTE}")):
        with suppress(DamagedFile):
            used.update(remembered(note.parent).items())
    for name, ident in sorted(used):
        opened = _open(ident, name) if name.startswith(CONNECTIONS) else None
        if opened is not None:
            with opened:
                yield opened


def _open(ident: int, name: str) -> Map | None:
    """Open the map of that id; None if it is gone, and the id perhaps another map's: ids begin anew with every boot."""
    try:
        opened = Map.of(bpf.map_fd_by_id(ident), name)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    if opened.info.name != name[:_KERNEL_NAME]:
        opened.close()
        return None
    return opened


def _merge(ident: int, new: Map, owns: Owns) -> int:
    """Carry over from the map of that id, unless it is gone; return how many entries did not fit."""
    opened = _open(ident, new.name)
    if opened is None:
        return 0
    with opened as old:
        if not can_copy(old, new):
            return 0
        if not new.name.startswith(CONNECTIONS):
            return sum(not put(new, key, value, flags=bpf.BPF_NOEXIST) for key, value in old.items())
        now = seconds()
        own = ((k, v) for k, v in old.items() if lifetime_of(v) >= now and owns(_own_address(k)))
        return sum(not _merge_connection(new, key, value, now) for key, value in own)


def _merge_connection(new: Map, key: bytes, value: bytes, now: int) -> bool:
    there = new.lookup(key)
    if there is None or lifetime_of(there) < now:
        return put(new, key, value)
    both = merged(there, value, now)
    return both == there or put(new, key, both)


def _own_address(key: bytes) -> bytes:
    """Return the address of the side that an entry belongs to: who sent the first packet of one that is going out."""
    width = (len(key) - _PORTS_AND_FLAGS) // 2
    return key[width : 2 * width] if key[-1] & _TUPLE_F_IN else key[:width]


def _ids(maps: Mapping[str, Map]) -> dict[str, int]:
    return {name: item.info.id for name, item in maps.items() if name.startswith(WRITTEN_BY_PACKETS)}


def remembered(directory: Path) -> dict[str, int]:
    """Return the ids of the maps that an endpoint's programs use; DamagedFile if the note says nothing."""
    path = directory / NOTE
    try:
        found = read_typed(dict[str, int], path)
    except FileNotFoundError:
        return {}
    for name, ident in found.items():
        if not 0 < ident < 1 << 32:
            raise DamagedFile(path, f"{name}: {ident} is no id of a map")
    return found
