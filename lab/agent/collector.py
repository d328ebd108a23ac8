"""The garbage collector of connections: it deletes those whose lifetime is over (pkg/maps/ctmap, doGC4 and GCFilter).

Cilium's agent runs its own at intervals; nothing in a lab depends on a process being alive, so this one runs when it is
called. The maps work without it: the datapath takes an entry whose time is over for none, and writes over it. What it
frees is room, which an LRU map would take from the connection that was silent longest, and a plain one not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from pathlib import Path

from datapath.base.mapnames import CT_ANY4, CT_ANY6, CT_MAPS
from datapath.endpoint import DatapathConfig
from datapath.kernel.map import Map
from datapath.reload.connections import lifetime_of, seconds, tables_in_use
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


def collect(pins: Path) -> tuple[Collected, ...]:
    """Delete the connections whose lifetime is over, in all maps pinned in `pins`; missing ones are left out."""
    return tuple(_collect_map(table) for table in _pinned(pins))


def forget(config: DatapathConfig, addresses: Collection[IPv4Address | IPv6Address]) -> int:
    """Delete the connections from and to these addresses, however long they would live; return how many there were.

    They go from all maps that programs use: a map that another endpoint's reload has replaced is not pinned any more.
    """
    of, seen, deleted = frozenset(address.packed for address in addresses), set[int](), 0
    for table in chain(_pinned(config.globals), tables_in_use(config.state)):
        if table.info.id not in seen:
            seen.add(table.info.id)
            deleted += _forget_in(table, of)
    return deleted


def keys(pins: Path) -> frozenset[bytes]:
    """Return the keys of all connections, of the maps pinned in `pins`."""
    return frozenset(key for table in _pinned(pins) for key in table.keys())  # noqa: SIM118 - a map of the kernel


def forget_silent(pins: Path, for_seconds: float, *, keep: Collection[bytes] = ()) -> int:
    """Delete the connections without an end of their own (UDP, ICMP) that were silent so long; return how many.

    That is told from the one that was heard last, which there must be: the lifetime is a macro of the C. Keys in `keep`
    stay.
    """
    return sum(
        _forget_silent_in(table, for_seconds, keep) for table in _pinned(pins) if table.name in (CT_ANY4, CT_ANY6)
    )


def _pinned(pins: Path) -> Iterator[Map]:
    """Open the pinned maps of connections, each until the next one is asked for."""
    for name in CT_MAPS:
        opened = open_if_pinned(pins / name)
        if opened is not None:
            with opened:
                yield opened


def _forget_in(table: Map, of: frozenset[bytes]) -> int:
    tables.CONNECTIONS.of(table)  # keys are the same in all known layouts
    width = 4 if table.info.key_size == CT_TUPLE4.size else 16
    return sum(
        table.delete(key) for key in list(table.keys()) if not of.isdisjoint((key[:width], key[width : 2 * width]))
    )


def _forget_silent_in(table: Map, for_seconds: float, keep: Collection[bytes]) -> int:
    tables.CONNECTIONS.of(table)  # what is read of values lies at the same place in all known layouts
    found = {key: lifetime_of(value) for key, value in table.items()}
    # Both are whole seconds.
    oldest = max(found.values(), default=0) - for_seconds - 1
    return sum(table.delete(key) for key, lifetime in found.items() if lifetime < oldest and key not in keep)


def _collect_map(table: Map) -> Collected:
    scanned = deleted = 0
    tables.CONNECTIONS.of(table)  # what is read of values lies at the same place in all known layouts
    now = seconds()
    for key, value in table.items():
        scanned += 1
        if lifetime_of(value) < now:
            deleted += _delete_if_over(table, key)
    return Collected(table.name, scanned, deleted)


def _delete_if_over(table: Map, key: bytes) -> bool:
    """Delete an entry unless a packet has begun the connection anew since it was read.

    A packet between this look and the deletion, microseconds, still loses its entry: its connection is a new one to the
    next packet. bpf(2) has no deletion on a condition; Cilium's collector does not look again at all.
    """
    value = table.lookup(key)
    return value is not None and lifetime_of(value) < seconds() and table.delete(key)
