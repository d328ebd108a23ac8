"""The policy maps of endpoints, and their counters, whatever the programs that read them have for a layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datapath.base.mapnames import POLICY_STATS, endpoint_of, policy_maps
from datapath.kernel.map import Map
from lab.abi import tables
from lab.abi.policymap import PolicyEntry, PolicyKey, PolicyStats
from lab.node.maps import open_if_pinned, open_used
from lab.node.node import Node


def open_policy(node: Node, endpoint_id: int) -> Map:
    """Open an endpoint's policy map, as `open_used` does. The caller closes it."""
    return open_used(node, policy_maps(endpoint_id), endpoint_id)


def pinned_policies(pins: Path, endpoint_id: int) -> Iterator[Path]:
    """Yield where an endpoint's policy maps are pinned: while one is migrated, programs use the old one too."""
    wanted = policy_maps(endpoint_id)
    try:
        there = os.listdir(pins)
    except FileNotFoundError:
        return
    yield from (pins / name for name in sorted(name for name in there if name.partition(":")[0] in wanted))


def entries(opened: Map, pins: Path) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
    """Yield the entries of a policy map with their counters, which may stand in another map, below `pins`."""
    table = tables.POLICY.of(opened)
    if _has_counters(table):
        yield from table.items(opened)
        return
    counted = _counted(pins, endpoint_of(opened.name))
    for key, entry in table.items(opened):
        found = counted.get(key, _NONE)
        yield key, replace(entry, packets=found.packets, length=found.length)


def counters(pins: Path, endpoint_id: int) -> dict[PolicyKey, PolicyStats]:
    """Return the counters of an endpoint's entries; while a map is migrated, those of the old one are added.

    Where they stand in a map of their own, the old policy map and the new one have them in common.
    """
    found: dict[PolicyKey, PolicyStats] = {}
    common: set[PolicyKey] = set()
    for pin in pinned_policies(pins, endpoint_id):
        opened = open_if_pinned(pin)
        if opened is None:
            continue
        with opened:
            table = tables.POLICY.of(opened)
            own = _has_counters(table)
            for key, entry in table.items(opened):
                counted = PolicyStats(entry.packets, entry.length) if own else _NONE
                found[key] = found.get(key, _NONE) + counted
                if not own:
                    common.add(key)
    counted_once = _counted(pins, endpoint_id) if common else {}
    return {key: stats + counted_once.get(key, _NONE) if key in common else stats for key, stats in found.items()}


def _has_counters(table: tables.Table[PolicyKey, PolicyEntry]) -> bool:
    return table.value.record is None or table.value.place("packets") is not None


_NONE = PolicyStats(0, 0)


def _counted(pins: Path, endpoint_id: int | None) -> dict[PolicyKey, PolicyStats]:
    """Return the counters of an endpoint's entries, all CPUs together."""
    opened = open_if_pinned(pins / POLICY_STATS)
    if opened is None:
        return {}
    with opened:
        table = tables.POLICY_STATS.of(opened)
        found = {}
        for packed, values in opened.items_percpu():
            key = table.key.unpack(packed)
            if key.endpoint_id == endpoint_id:
                each = [table.value.unpack(value) for value in values]
                found[key.rule] = PolicyStats(sum(one.packets for one in each), sum(one.length for one in each))
    return found
