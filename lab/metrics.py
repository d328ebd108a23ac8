"""The counters of a node: what was forwarded, what was dropped and why, and which load handled how many packets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.errors import BpfError
from datapath.maps import open_pin
from lab import layouts, reasons
from lab.node import Node

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


def read(node: Node) -> Counters:
    """Read the counters of a node; empty before the first load."""
    directory = node.datapath_config().globals
    packets: dict[tuple[int, int], int] = {}
    hits: dict[tuple[int, int, int], int] = {}
    try:
        with open_pin(directory / "cilium_metrics") as pinned:
            for key in pinned.keys():  # noqa: SIM118 - a map of the kernel, not a dict
                reason = layouts.MetricsKey.unpack(key)
                values = [layouts.MetricsValue.unpack(v) for v in pinned.lookup_percpu(key)]
                packets[reason.reason, reason.dir] = sum(v.count for v in values)
        with open_pin(directory / "reloadlab_hits") as pinned:
            for key in pinned.keys():  # noqa: SIM118
                hit = layouts.HitsKey.unpack(key)
                counts = [int.from_bytes(value, "little") for value in pinned.lookup_percpu(key)]
                hits[hit.generation, hit.source, hit.program] = sum(counts)
    except BpfError:
        # A real Cilium tree has no map of ours, and before the first load there is none at all.
        pass
    return Counters(packets, hits)


def describe(reason: int, direction: int) -> str:
    """Return a drop in words."""
    way = {INGRESS: "ingress", EGRESS: "egress"}.get(direction, str(direction))
    return f"{reasons.describe(reason)} ({reason}, {way})"
