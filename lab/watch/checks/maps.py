"""Invariant 3: shared maps keep their id and their content, and counters only go up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from datapath.base.mapnames import CONNECTIONS, is_calls_map
from lab.watch.checks.connections import lost_of
from lab.watch.checks.layouts import layout_of
from lab.watch.checks.text import difference
from lab.watch.metrics import Counters, describe
from lab.watch.snapshot import PinnedMap, Snapshot
from lab.watch.violation import Violation

Objects = Mapping[Path, bytes]
"""The object files of a node and what they contained at some moment."""
Keys = Collection[bytes] | Callable[[bytes], bool]
"""Keys of a map, or a function that tells whether a key is one of them."""
Changed = Collection[str] | Mapping[str, Keys]
"""Names of maps whose content may change, or by name the keys whose entries may."""


def check_maps(
    before: Snapshot,
    now: Snapshot,
    objects: Objects,
    *,
    migrated: Collection[str],
    changed: Changed,
    new_policies: bool = False,
) -> Iterator[Violation]:
    """Yield the shared maps that were replaced or changed, other than these (invariant 3).

    `objects` are the object files at the time of `before`: the layout of an old map is in no other place.
    `new_policies` says that policies were applied since then: their entries and the counters in them may be new.
    """
    for name, old in before.pins.items():
        if is_calls_map(name) or ":" in name:
            continue
        found = _map(name, old, now, objects, migrated, changed, new_policies=new_policies)
        yield from (Violation(3, f"map {name}{what}") for what in found)


def check_counters_rise(before: Counters, now: Counters) -> Iterator[Violation]:
    """Yield the counters that went back: metrics, and packets per load and program (invariant 3).

    Of the latter, the kernel lets go of the oldest when there are too many (LRU): once some are gone, others may have
    come again, and begun from 0.
    """
    for key, count in before.packets.items():
        if now.packets.get(key, 0) < count:
            text = f"map cilium_metrics: {describe(*key)} went back from {count} to {now.packets.get(key, 0)}"
            yield Violation(3, text)
    for (generation, source, program), count in () if now.evicted_since(before) else before.hits.items():
        have = now.hits.get((generation, source, program), count)
        if have < count:
            which = f"program {program} of endpoint {source} in load {generation}"
            yield Violation(3, f"map reloadlab_hits: {which} went back from {count} to {have}")


def _map(
    name: str,
    old: PinnedMap,
    now: Snapshot,
    objects: Objects,
    migrated: Collection[str],
    changed: Changed,
    *,
    new_policies: bool,
) -> Iterator[str]:
    new = now.pins.get(name)
    if new is None:
        yield " is not pinned any more"
        return
    if new.id != old.id and name not in migrated:
        yield f" was replaced (id {old.id} -> {new.id})"
        return
    # The counters of an entry begin anew where the control plane writes it anew: in a map that replaces one of another
    # type or layout, and where entries come and go.
    rewritten = name in changed or new_policies
    if not rewritten and (old.id == new.id or (old.type, old.sizes) == (new.type, new.sizes)):
        yield from _counters(old, new)
    if old.content is None or new.content is None or (name in changed and not isinstance(changed, Mapping)):
        return
    if name.startswith(CONNECTIONS):
        if lost := lost_of(old, new):
            yield f": {lost}"
        return
    declared = changed[name] if isinstance(changed, Mapping) and name in changed else ()
    was, has = (_without(content, declared) for content in (old.content, new.content))
    if was != has:
        yield from _content(name, old.id != new.id, was, has, objects)


def _content(
    name: str, replaced: bool, was: Mapping[bytes, bytes], has: Mapping[bytes, bytes], objects: Objects
) -> Iterator[str]:
    """Yield what differs in the content; by field, if the map was replaced by one of another layout."""
    if replaced:
        old = layout_of(name, objects.values())
        new = layout_of(name, (path.read_bytes() for path in objects if path.exists()))
        if old is not None and new is not None and old != new:
            keys, values = old.shared(new)
            by_field = old.read(was, keys, values), new.read(has, keys, values)
            if by_field[0] != by_field[1]:
                yield f": content differs: {difference(*by_field)}"
            return
    if _padded(was) != _padded(has):
        yield f": content differs: {difference(was, has)}"


def _without(content: Mapping[bytes, bytes], declared: Keys) -> Mapping[bytes, bytes]:
    if not callable(declared):
        return {key: value for key, value in content.items() if key not in declared} if declared else content
    return {key: value for key, value in content.items() if not declared(key)}


def _counters(old: PinnedMap, new: PinnedMap) -> Iterator[str]:
    """Yield the entries whose counters went back; the two counters of an entry are its packets and bytes."""
    for key, counts in old.counters.items():
        have = new.counters.get(key)
        if have is not None and any(after < earlier for earlier, after in zip(counts, have, strict=True)):
            yield f": counters of {key.hex()} went back from {counts} to {have}"


def _padded(content: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return a map's content without the zero bytes that a migration may append to keys and values."""
    return {key.rstrip(b"\0"): value.rstrip(b"\0") for key, value in content.items()}
