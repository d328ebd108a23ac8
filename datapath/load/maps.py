"""Maps in the kernel: opened by their pins, compared with what the object asks for, or created and pinned."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datapath.base.attempts import each
from datapath.base.bpftypes import OF_MAPS_TYPES, MapType
from datapath.errors import BpfError, MapDifference, MapIncompatible, ObjectError, PinPathError
from datapath.kernel import bpf
from datapath.kernel.cpus import cpu_ids, possible_cpus
from datapath.kernel.map import CacheEntry, CreatedPin, Map, MapCache, open_pin, round_up
from datapath.kernel.uapi import MapBtf, MapInfo
from datapath.load.layout import is_compared, layout_differences
from datapath.load.types import TypeStore
from datapath.object.spec import CollectionSpec, DataSection, MapSpec

BPF_F_NO_COMMON_LRU = 1 << 1
BPF_F_RDONLY_PROG = 1 << 7
_OF_DESCRIPTORS = 1 << 3 | 1 << 4
"""BPF_F_RDONLY and BPF_F_WRONLY, which the map itself does not keep (bpf_map_flags_retain_permanent)."""

_PIN_TRIES = 8
"""How often a pin may come and go between two calls before that is an error."""

_DEVMAPS = frozenset((MapType.DEVMAP, MapType.DEVMAP_HASH))
_SLOT = struct.Struct("=I")

TypesOf = Callable[[MapSpec], MapBtf | None]
"""Returns the types of a map whose types the kernel has to know."""


Fill = Callable[[Map], None]
"""Gives a new map its first content, before anybody else can find it."""


@dataclass(slots=True)
class MapSet:
    """The open maps of one load, by name; `created` are those that it made.

    `told` are those whose types the kernel is told, as far as `layout_differences` wants to know.

    What it made is pinned by `pin_created`. Closing it leaves the pins; `discard` takes back those it made as well.
    """

    spec: CollectionSpec
    pin_dir: Path | None
    maps: dict[str, Map] = field(default_factory=dict)
    created_pins: list[CreatedPin] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
    told: frozenset[str] = frozenset()
    _cache: MapCache | None = None
    _borrowed: list[CacheEntry] = field(default_factory=list)
    _owned: list[Map] = field(default_factory=list)

    def pin_created(self, fill: Fill | None = None) -> None:
        """Fill the new maps and then pin them: whoever finds the pin of a map finds its whole content.

        A loader that is killed before leaves no half-filled map behind. Whoever pins the same map second opens the
        first one's instead; MapIncompatible if that is of another shape. Maps of maps come last, when it is known
        which maps go into them.
        """
        new = [self.spec.maps[name] for name in sorted(self.created)]
        for item in sorted(new, key=lambda item: item.type in OF_MAPS_TYPES):
            if item.contents and item.type in OF_MAPS_TYPES:
                _fill_outer(self.spec.path, item, self.maps)
            if not item.pinned:
                continue  # it belongs to this load alone: nobody else could fill it
            if fill is not None:
                fill(self.maps[item.name])
            if self.pin_dir is not None:
                _pin(item, self.pin_dir, self)

    def close(self) -> None:
        """Close the descriptors that this set owns; a second call does nothing."""
        while self._owned:
            self._owned.pop().close()
        while self._borrowed and self._cache is not None:
            self._cache.release(self._borrowed.pop())

    def remove_pins(self) -> None:
        """Remove the pins that this load made, as far as they still lead to its maps: all that can be removed."""
        with each() as attempt:
            while self.created_pins:
                attempt(self.created_pins.pop().remove)

    def discard(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.close)
            self.remove_pins()


def load_maps(
    spec: CollectionSpec,
    pin_dir: Path | None,
    *,
    cache: MapCache | None = None,
    fill: Fill | None = None,
    types: TypeStore | None = None,
) -> MapSet:
    """Open, or create, fill and pin, every map of an object: `open_maps`, then `pin_created`.

    Two loaders that create the same map at once end with the same one. On failure nothing is left: no descriptor, no
    pin of ours.
    """
    result = open_maps(spec, pin_dir, cache=cache, types=types)
    with ExitStack() as undo:
        undo.callback(result.discard)
        result.pin_created(fill)
        undo.pop_all()
    return result


def open_maps(
    spec: CollectionSpec, pin_dir: Path | None, *, cache: MapCache | None = None, types: TypeStore | None = None
) -> MapSet:
    """Open every map of an object that `pin_dir` holds, and create the others, which nobody else can see yet.

    Without `pin_dir` all are created. MapIncompatible, with every difference of every map, comes before anything is
    created; then TypesUnknown. On failure no descriptor is left. Maps that stand for a section of variables are filled
    with its bytes; read-only ones are frozen, so that the verifier knows what they hold.
    """
    spec.check()
    result = MapSet(spec, pin_dir, _cache=cache)
    with ExitStack() as undo, TypeStore() as own_types:
        store = types or own_types
        types_of, new_types_of = partial(store.of_map, spec), partial(store.of_new_map, spec)
        result.told = frozenset(n for n, m in spec.maps.items() if is_compared(n) and types_of(m) is not None)
        undo.callback(result.close)
        if pin_dir is not None and any(m.pinned for m in spec.maps.values()):
            ensure_pin_dir(pin_dir)
            _open_pinned(spec, pin_dir, result)
        for item in spec.maps.values():
            if item.name not in result.maps:
                result.maps[item.name] = _new_map(item, new_types_of)
                result._owned.append(result.maps[item.name])
                result.created.add(item.name)
                if item.name in spec.sections:
                    _fill_variables(spec.sections[item.name], spec, result.maps[item.name])
        undo.pop_all()
    return result


def ensure_pin_dir(pin_dir: Path) -> None:
    """Make the directory of the pins; PinPathError if it does not lie on a bpffs (pkg/bpf: MkdirBPF)."""
    existing = pin_dir
    while True:
        try:
            magic = bpf.fs_magic(existing)
            break
        except FileNotFoundError:
            existing = existing.parent
    if magic != bpf.BPF_FS_MAGIC:
        raise PinPathError(pin_dir)
    if existing is not pin_dir:
        pin_dir.mkdir(parents=True, exist_ok=True, mode=0o700)


def differences(spec: MapSpec, info: MapInfo) -> list[MapDifference]:
    """List the properties in which a map differs from its definition, ignoring those that the kernel changes itself."""
    flags = info.flags
    if info.type in _DEVMAPS:
        # dev_map_init_map() sets it on every device map.
        flags = flags & ~BPF_F_RDONLY_PROG | spec.flags & BPF_F_RDONLY_PROG
    have = (info.type, info.key_size, info.value_size, info.max_entries, flags)
    want = (spec.type, spec.key_size, spec.value_size, max_entries(spec), spec.flags & ~_OF_DESCRIPTORS)
    if have == want:
        return []
    names = ("type", "key_size", "value_size", "max_entries", "flags")
    return [MapDifference(spec.name, *row) for row in zip(names, have, want, strict=True) if row[1] != row[2]]


def incompatibilities(spec: CollectionSpec, item: MapSpec, info: MapInfo, *, told: bool) -> list[MapDifference]:
    """List why an object cannot use a pinned map: its properties, or, if these agree, the fields of its entries.

    `told` says that the kernel is told the types of this map of the object.
    """
    return differences(item, info) or layout_differences(spec, item, info, told=told)


def max_entries(spec: MapSpec) -> int:
    """Return the size that the kernel will report for a map of this definition.

    A perf event array has at most one entry per CPU number, 0 means that many. An LRU with a list per CPU is rounded
    to a multiple of their number (htab_map_alloc).
    """
    if spec.type == MapType.PERF_EVENT_ARRAY:
        return spec.max_entries if 0 < spec.max_entries <= cpu_ids() else cpu_ids()
    if spec.type in (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH) and spec.flags & BPF_F_NO_COMMON_LRU:
        return round_up(spec.max_entries, possible_cpus())
    return spec.max_entries


def _open_pinned(spec: CollectionSpec, pin_dir: Path, result: MapSet) -> None:
    found: list[MapDifference] = []
    for item in spec.maps.values():
        if item.pinned:
            pinned = _open_one(item.name, pin_dir, result)
            if pinned is not None:
                found += incompatibilities(spec, item, pinned.info, told=item.name in result.told)
    if found:
        raise MapIncompatible(found)


def _open_one(name: str, pin_dir: Path, result: MapSet) -> Map | None:
    """Open the map pinned under `name` and add it to `result`; None if there is none."""
    path = f"{pin_dir}/{name}"
    entry: CacheEntry | None = None
    try:
        if result._cache is not None:
            opened, entry = result._cache.acquire(path)
        else:
            opened = open_pin(Path(path), name)
    except FileNotFoundError:
        return None
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    if entry is None:
        result._owned.append(opened)
    else:
        result._borrowed.append(entry)
    result.maps[name] = opened
    return opened


def _pin(item: MapSpec, pin_dir: Path, result: MapSet) -> None:
    """Pin a map that this load has made; or take the one that somebody else has pinned in the meantime."""
    created, path = result.maps[item.name], pin_dir / item.name
    for _ in range(_PIN_TRIES):
        try:
            created.pin(path)
        except BpfError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            result.created_pins.append(CreatedPin(path, created.info.id))
            return
        winner = _open_one(item.name, pin_dir, result)
        if winner is None:
            continue  # it is gone again
        result.created.discard(item.name)
        result._owned.remove(created)
        created.close()
        found = incompatibilities(result.spec, item, winner.info, told=item.name in result.told)
        if found:
            raise MapIncompatible(found)
        return
    raise BpfError("BPF_OBJ_PIN", errno.EEXIST, f"{item.name}: its pin comes and goes")


def _new_map(item: MapSpec, types_of: TypesOf) -> Map:
    with ExitStack() as stack:
        inner_fd = 0
        if item.inner is not None:
            # Only a pattern: the kernel copies its properties and needs it no more.
            inner_fd = stack.enter_context(_new_map(item.inner, types_of)).fd
        fd = bpf.map_create(
            item.type,
            item.key_size,
            item.value_size,
            max_entries(item),
            flags=item.flags,
            name=item.name,
            inner_map_fd=inner_fd,
            numa_node=item.numa_node,
            map_extra=item.map_extra,
            btf=types_of(item),
        )
    return Map.of(fd, item.name)


def _fill_variables(section: DataSection, spec: CollectionSpec, target: Map) -> None:
    """Write a section of variables into the map that stands for it (libbpf: bpf_object__populate_internal_map)."""
    if not section.is_zero:
        bpf.map_update(target.fd, _SLOT.pack(0), spec.content(section.name))
    if section.read_only:
        bpf.map_freeze(target.fd)


def _fill_outer(path: str, item: MapSpec, maps: Mapping[str, Map]) -> None:
    for slot, name in item.contents.items():
        if name not in maps:
            raise ObjectError(path, f"map {item.name}: its slot {slot} names {name}, which is no map")
        key = slot.to_bytes(item.key_size, "little")
        bpf.map_update(maps[item.name].fd, key, _SLOT.pack(maps[name].fd))
