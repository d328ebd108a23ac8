"""A named fault of a loader that replaces pins at its commit: two of them do it to the same map at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from datapath.base.mapnames import is_calls_map
from datapath.kernel.pins import Pin
from datapath.load.collection import Collection
from datapath.load.maps import incompatibilities, open_maps
from datapath.reload.prepare import MigrateMaps, OpenMaps, RepinMaps
from datapath.reload.switchover import Commit
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.steps import Telling, instead

BETWEEN = 0.02
"""Seconds between the removal of a pin and the pin in its place: another loader's removal may come in between."""


@dataclass(frozen=True)
class LeaveIncompatible(Telling, RepinMaps):
    """Moves calls maps aside, notes incompatible maps, and keeps nobody else from replacing those."""

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        work.maps_lock.acquire(exclusive=False)
        for name, wanted in item.spec.maps.items():
            pin = Pin(work.config.globals / name)
            if is_calls_map(name) and pin.repin():
                work.on_undo(self, pin.revert)
                item.moved.append(pin)
            elif wanted.pinned and not is_calls_map(name):
                info = work.map_cache.info(str(pin.path))
                told = work.types.of_map(item.spec, wanted) is not None
                if info is not None and incompatibilities(item.spec, wanted, info, told=told):
                    work.migrated.append(name)
                    self.applied()


@dataclass(frozen=True)
class OpenBeside(Telling, OpenMaps):
    """Makes new maps for those that are incompatible, without a pin."""

    def apply(self, work: Workspace) -> None:
        if work.migrated:
            self.applied()
        spec = work.objects[self.target].spec
        maps = {
            name: replace(item, pinned=item.pinned and name not in work.migrated) for name, item in spec.maps.items()
        }
        spec = replace(spec, maps=maps)
        opened = open_maps(spec, work.config.globals, cache=work.map_cache, types=work.types)
        work.keep_collection(self.target, Collection(spec, opened, {}))


@dataclass(frozen=True)
class FillBeside(Telling, MigrateMaps):
    """Has the maps without a pin filled as well."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        maps = work.objects[self.target].collection.maps
        for name in work.migrated:
            if name in maps and work.on_new_map is not None:
                self.applied()
                work.on_new_map(maps[name])


@dataclass(frozen=True)
class PinAnew(Telling, Commit):
    """Removes each pin, then pins the new map in its place."""

    def apply(self, work: Workspace) -> None:
        for item in self.objects:
            maps = work.objects[item.name].collection.maps
            for name in work.migrated:
                if name in maps:
                    path = work.config.globals / name
                    path.unlink(missing_ok=True)
                    self.applied()
                    time.sleep(BETWEEN)
                    maps[name].pin(path)
        super().apply(work)


commit_by_removal = instead(
    {RepinMaps: LeaveIncompatible, OpenMaps: OpenBeside, MigrateMaps: FillBeside, Commit: PinAnew}
)
"""Replace the pins of incompatible maps at the commit, in two steps, and without a lock (cilium issue 36094)."""


FAULTS = (
    Fault(
        "B8-commit-by-removal",
        "named",
        "replaces the pin of a shared map by removing it and pinning anew: two reloads at once find the pin taken, or "
        "end with different maps",
        change=commit_by_removal,
        cites=("cilium issue 36094", "cilium issue 32387", "cilium issue 41707"),
        only=("test_shared_map",),
    ),
)
