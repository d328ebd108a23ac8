"""The counters of a node: forwarded and dropped packets by reason, and the packets that each load handled."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from datapath.base.mapnames import METRICS
from datapath.kernel.map import Map
from lab.abi import reasons, tables
from lab.abi.layouts import HitsKey, MetricDirection, MetricsKey, MetricsValue, Program, direction_name
from lab.abi.policymap import PolicyKey
from lab.agent.policymaps import counters
from lab.node.maps import find_map
from lab.node.node import Node

INGRESS, EGRESS = MetricDirection.INGRESS, MetricDirection.EGRESS
"""Directions of cilium_metrics."""

ENTRIES = frozenset(program for program in Program if program.name.startswith(("FROM_", "TO_", "XDP_ENTRY")))
"""The programs at hooks; the others are reached by tail calls."""


@dataclass(frozen=True)
class Counters:
    """Packets by (reason, direction), and their bytes; `hits`, packets by (generation, source, program).

    All of them are sums over all CPUs.
    """

    packets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    hits: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    lengths: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def evicted_since(self, before: Counters) -> int:
        """Return how many counters of `hits` are gone since `before`: the kernel has made room for others (LRU)."""
        return len(before.hits.keys() - self.hits.keys())

    def entered(self, generation: int) -> dict[str, int]:
        """Return the packets that entered the programs of one load, by the name of the program at the hook.

        A program that is at several hooks has those of all of them together.
        """
        found: dict[str, int] = {}
        for (load, _, program), count in self.hits.items():
            if load == generation and program in ENTRIES:
                name = f"cil_{Program(program).name.lower()}"
                found[name] = found.get(name, 0) + count
        return found

    def drops_since(self, before: Counters) -> dict[tuple[int, int], int]:
        """Return the drops since `before` by (reason, direction); a counter that went back counts below zero."""
        keys = (key for key in {**before.packets, **self.packets} if key[0] >= reasons.FIRST_DROP)
        moved = {key: self.packets.get(key, 0) - before.packets.get(key, 0) for key in keys}
        return {key: count for key, count in moved.items() if count}


def read(node: Node) -> Counters:
    """Read the counters of a node; empty before the first load."""
    counted = _forwarded_and_dropped(node)
    return Counters(
        {key: value.count for key, value in counted.items()},
        _hits(node),
        {key: value.length for key, value in counted.items()},
    )


def _hits(node: Node) -> dict[tuple[int, int, int], int]:
    # Other C sources have no such map.
    opened = find_map(node, "reloadlab_hits")
    if opened is None:
        return {}
    with opened:
        found = {HitsKey.unpack(key): values for key, values in opened.items_percpu()}
    return {
        (key.generation, key.source, key.program): sum(int.from_bytes(value, "little") for value in values)
        for key, values in found.items()
    }


def forget_hits(node: Node, *, keep: Container[tuple[int, int, int]]) -> None:
    """Delete the counters of loads, all but those to be kept: thousands of loads have more than there is room for.

    Of a load that is attached, they begin anew.
    """
    opened = find_map(node, "reloadlab_hits")
    if opened is None:
        return
    with opened:
        for key in list(opened.keys()):
            found = HitsKey.unpack(key)
            if (found.generation, found.source, found.program) not in keep:
                opened.delete(key)


def packets(node: Node) -> dict[tuple[int, int], int]:
    """Return the packets of cilium_metrics by (reason, direction), all CPUs together; empty before the first load."""
    return {key: value.count for key, value in _forwarded_and_dropped(node).items()}


def _forwarded_and_dropped(node: Node) -> dict[tuple[int, int], MetricsValue]:
    opened = find_map(node, METRICS)
    if opened is None:
        return {}
    with opened:
        return {(key.reason, key.dir): value for key, value in totals(opened).items()}


def totals(metrics_map: Map) -> dict[MetricsKey, MetricsValue]:
    """Return the content of cilium_metrics, the sum over all CPUs and over the places of the source that count."""
    found: dict[MetricsKey, MetricsValue] = {}
    for key, value in by_place(metrics_map).items():
        whole = MetricsKey(key.reason, key.dir)
        found[whole] = value + found.get(whole, MetricsValue(0, 0))
    return found


def by_place(metrics_map: Map) -> dict[MetricsKey, MetricsValue]:
    """Return the content of cilium_metrics, the sum over all CPUs, of each place of the source by itself.

    A map that a release without places has made does not tell them, though a later one that found it counts by them.
    """
    table = tables.METRICS.of(metrics_map)
    found: dict[MetricsKey, MetricsValue] = {}
    for packed, values in metrics_map.items_percpu():
        key = table.key.unpack(packed)
        found[key] = sum(map(table.value.unpack, values), found.get(key, MetricsValue(0, 0)))
    return found


def rules(node: Node, *endpoints: str) -> dict[tuple[str, PolicyKey], tuple[int, int]]:
    """Return packets and bytes, headers included, on which policy entries of endpoints have decided, by name and key.

    Packets of known connections are not looked up in the policy map, so they are not counted: replies, and what a pod
    sends after the first packet. While a map is migrated, the old one is counted as well.
    """
    pins = node.globals
    return {
        (name, key): (found.packets, found.length)
        for name in endpoints
        for key, found in counters(pins, node.endpoint(name).id).items()
    }


def describe(reason: int, direction: int) -> str:
    """Return the reason and direction of a drop in words."""
    return f"{reasons.describe(reason)} ({reason}, {direction_name(direction)})"
