"""Connection tracking between two snapshots: new connections may come, those that are alive must stay."""

from __future__ import annotations

from collections.abc import Iterator

from datapath.base.mapnames import CONNECTIONS
from datapath.reload.connections import seconds
from lab.watch.snapshot import Snapshot


def lost_connections(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Yield, for each map that lacks some, how many of the connections that are alive are gone."""
    for name, old in before.pins.items():
        new = now.pins.get(name)
        if not name.startswith(CONNECTIONS) or new is None or new.content is None:
            continue
        alive = {key for key, until in old.lifetimes.items() if until >= seconds()}
        if lost := alive - new.content.keys():
            yield f"map {name}: {len(lost)} of {len(alive)} connections are gone"
