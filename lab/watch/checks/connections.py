"""Connection tracking between two snapshots: new connections may come, those that are alive must stay."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.base.mapnames import CONNECTIONS
from datapath.reload.connections import seconds
from lab.watch.snapshot import PinnedMap, Snapshot


def lost_connections(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Yield, for each map that lacks some, how many of the connections that are alive are gone."""
    for name, old in before.pins.items():
        new = now.pins.get(name)
        if name.startswith(CONNECTIONS) and new is not None and (lost := lost_of(old, new)):
            yield f"map {name}: {lost}"


def lost_of(old: PinnedMap, new: PinnedMap) -> str:
    """Return how many of the connections that are alive are gone, "" for none.

    One whose time is over although it held longer is none to the programs either, unless it was closed meanwhile.
    """
    now = seconds()
    alive = {key for key, until in old.lifetimes.items() if until >= now}
    there = {key for key, until in new.lifetimes.items() if until >= now or key in new.closing}
    lost = alive - there if new.content is not None else ()
    return f"{len(lost)} of {len(alive)} connections are gone" if lost else ""
