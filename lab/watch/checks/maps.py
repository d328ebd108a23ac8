"""Invariant 3: shared maps keep their id and their content."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from datapath.base.mapnames import CONNECTIONS, is_calls_map
from datapath.reload.connections import seconds
from lab.watch.checks.text import difference
from lab.watch.snapshot import Snapshot
from lab.watch.violation import Violation


def check_maps(
    before: Snapshot, now: Snapshot, *, migrated: Collection[str], changed: Collection[str]
) -> Iterator[Violation]:
    """Yield the shared maps that were replaced or changed, other than these (invariant 3)."""
    yield from (Violation(3, what) for what in _shared(before, now, migrated, changed))


def _shared(before: Snapshot, now: Snapshot, migrated: Collection[str], changed: Collection[str]) -> Iterator[str]:
    for name, old in before.pins.items():
        if is_calls_map(name) or ":" in name:
            continue
        new = now.pins.get(name)
        if new is None:
            yield f"map {name} is not pinned any more"
        elif new.id != old.id and name not in migrated:
            yield f"map {name} was replaced (id {old.id} -> {new.id})"
        elif old.content is None or new.content is None or name in changed:
            continue
        elif name.startswith(CONNECTIONS):
            alive = {key for key, until in old.lifetimes.items() if until >= seconds()}
            lost = alive - new.content.keys()
            if lost:
                yield f"map {name}: {len(lost)} of {len(alive)} connections are gone"
        elif _padded(old.content) != _padded(new.content):
            yield f"map {name}: content differs: {difference(old.content, new.content)}"


def _padded(content: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return a map's content without the zero bytes that a migration may append to keys and values."""
    return {key.rstrip(b"\0"): value.rstrip(b"\0") for key, value in content.items()}
