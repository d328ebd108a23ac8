"""The counters of a node: what was forwarded, what was dropped and why, and which load handled how many packets."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datapath.build.headers import policy_map
from datapath.errors import BpfError
from datapath.kernel.pins import Pin
from datapath.load.maps import Map, open_pin
from lab.abi import layouts, policymap, reasons
from lab.node.node import Node

INGRESS, EGRESS = 1, 2
"""Directions of cilium_metrics."""


@dataclass(frozen=True)
class Counters:
    """Packets by (reason, direction), all CPUs together; `hits` packets by (generation, source, program)."""

    packets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    hits: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    def drops_since(self, before: Counters) -> dict[tuple[int, int], int]:
        """Return the drops that were added since `before`."""
        moved = {
            key: count - before.packets.get(key, 0)
            for key, count in self.packets.items()
            if key[0] >= reasons.FIRST_DROP
        }
        return {key: count for key, count in moved.items() if count}


@contextmanager
def _opened(path: Path) -> Iterator[Map | None]:
    """Open the map that is pinned there; None if none is. Any other failure to open or read it is an error."""
    try:
        opened = open_pin(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        yield None
        return
    with opened:
        yield opened


def _counts(path: Path) -> list[tuple[bytes, list[bytes]]]:
    """Return the keys of a per-CPU map and their values on each CPU; nothing if no map is pinned there."""
    with _opened(path) as pinned:
        return [] if pinned is None else [(key, pinned.lookup_percpu(key)) for key in pinned.keys()]  # noqa: SIM118


def read(node: Node) -> Counters:
    """Read the counters of a node; empty before the first load."""
    hits: dict[tuple[int, int, int], int] = {}
    # A real Cilium tree has no map of ours, and before the first load there is none at all.
    for key, values in _counts(node.datapath_config().globals / "reloadlab_hits"):
        hit = layouts.HitsKey.unpack(key)
        hits[hit.generation, hit.source, hit.program] = sum(int.from_bytes(value, "little") for value in values)
    return Counters(packets(node), hits)


def packets(node: Node) -> dict[tuple[int, int], int]:
    """Return cilium_metrics: packets by (reason, direction), all CPUs together."""
    found: dict[tuple[int, int], int] = {}
    for key, values in _counts(node.datapath_config().globals / "cilium_metrics"):
        reason = layouts.MetricsKey.unpack(key)
        found[reason.reason, reason.dir] = sum(layouts.MetricsValue.unpack(value).count for value in values)
    return found


def rules(node: Node, *endpoints: str) -> dict[tuple[str, policymap.PolicyKey], tuple[int, int]]:
    """Return how many packets, and bytes with all headers, the entries of endpoints have decided on, by name and key.

    What connection tracking knows is not asked of the entries: answers, and what a pod sends on in a connection. While
    a map is migrated, the old one counts as well.
    """
    directory = node.datapath_config().globals
    found: dict[tuple[str, policymap.PolicyKey], tuple[int, int]] = {}
    for name in endpoints:
        path = directory / policy_map(node.endpoint(name).id)
        for pin in (path, *Pin(path).leftovers()):
            with _opened(pin) as pinned:
                for key, value in pinned.items() if pinned is not None else ():
                    entry, place = policymap.PolicyEntry.unpack(value), (name, policymap.PolicyKey.unpack(key))
                    counted, length = found.get(place, (0, 0))
                    found[place] = counted + entry.packets, length + entry.length
    return found


def describe(reason: int, direction: int) -> str:
    """Return a drop in words."""
    way = {INGRESS: "ingress", EGRESS: "egress"}.get(direction, str(direction))
    return f"{reasons.describe(reason)} ({reason}, {way})"
