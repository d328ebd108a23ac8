"""The garbage collector of connections: it deletes those whose lifetime is over (pkg/maps/ctmap, doGC4 and GCFilter).

Cilium's agent runs its own at intervals; nothing in a lab depends on a process being alive, so this one runs when it is
called. The maps work without it: the datapath takes an entry whose time is over for none, and writes over it. What it
frees is room, which an LRU map would take from the connection that was silent longest, and a plain one not at all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from datapath.base.mapnames import CT_MAPS
from datapath.kernel.map import Map
from datapath.reload.connections import lifetime_of, seconds
from lab.abi import tables
from lab.abi.conntrack import CT_TUPLE4
from lab.node.maps import open_if_pinned


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found in one map: entries read, and how many of them it deleted."""

    map: str
    scanned: int
    deleted: int

    @property
    def alive(self) -> int:
        return self.scanned - self.deleted


def collect(pins: Path, *, of: Collection[IPv4Address | IPv6Address] = ()) -> tuple[Collected, ...]:
    """Delete the connections whose lifetime is over, in all maps pinned in `pins`; those that are missing are left out.

    With `of` it deletes the connections from and to these addresses instead, however long they would live.
    """
    found = []
    for name in CT_MAPS:
        opened = open_if_pinned(pins / name)
        if opened is None:
            continue
        with opened:
            found.append(_collect_map(opened, frozenset(address.packed for address in of)))
    return tuple(found)


def _collect_map(table: Map, of: frozenset[bytes]) -> Collected:
    scanned = deleted = 0
    tables.CONNECTIONS.of(table)  # what is read of keys and values lies at the same place in all known layouts
    now = seconds()
    width = 4 if table.info.key_size == CT_TUPLE4.size else 16
    for key, value in table.items():
        scanned += 1
        if of:
            deleted += not of.isdisjoint((key[:width], key[width : 2 * width])) and table.delete(key)
        elif lifetime_of(value) < now:
            deleted += _delete_if_over(table, key)
    return Collected(table.name, scanned, deleted)


def _delete_if_over(table: Map, key: bytes) -> bool:
    """Delete an entry unless a packet has begun the connection anew since it was read.

    A packet between this look and the deletion, microseconds, still loses its entry: its connection is a new one to the
    next packet. bpf(2) has no deletion on a condition; Cilium's collector does not look again at all.
    """
    value = table.lookup(key)
    return value is not None and lifetime_of(value) < seconds() and table.delete(key)
