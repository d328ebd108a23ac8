"""Named faults of a loader that concern pins and calls maps: what is moved aside, kept, and put back."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, replace

from datapath.base.mapnames import is_calls_map
from datapath.errors import BpfError
from datapath.kernel import bpf, progarray
from datapath.kernel.pins import Pin
from datapath.reload.prepare import FillArrays, RepinMaps, WriteObject
from datapath.reload.switchover import Commit
from datapath.reload.workspace import LoadedObject, Workspace
from lab.corpus.fault import Fault
from lab.corpus.named_plans import stay
from lab.corpus.steps import Telling, instead

BETWEEN_SLOTS = 0.001
"""Seconds between two slots of a calls map that is filled in place: time for a packet."""


@dataclass(frozen=True)
class ReuseCalls(Telling, RepinMaps):
    """Moves incompatible maps aside, but never a calls map."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        moved = work.objects[self.target].moved
        calls = [pin for pin in moved if is_calls_map(pin.path.name)]
        for pin in calls:
            pin.revert()
            self.applied()
        stay(self, work, calls, moved)


@dataclass(frozen=True)
class FillSlotBySlot(FillArrays):
    """Fills the calls map from its last slot to its first: consumers of the tail call buffer before producers."""

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        for name in filter(is_calls_map, collection.spec.maps):
            for slot, program in sorted(collection.spec.maps[name].contents.items(), reverse=True):
                progarray.put(collection.maps[name].fd, slot, collection.programs[program].fd)
                time.sleep(BETWEEN_SLOTS)
        super().apply(work)


@dataclass(frozen=True)
class RepinElsewhere(RepinMaps):
    """Looks for the pins in a directory where none are."""

    def apply(self, work: Workspace) -> None:
        right = work.config
        work.config = replace(right, bpffs=right.bpffs / "tc")
        try:
            super().apply(work)
        finally:
            work.config = right


@dataclass(frozen=True)
class RepinOnce(Telling, RepinMaps):
    """Cannot move a map aside where another lies already."""

    def apply(self, work: Workspace) -> None:
        for name, wanted in work.objects[self.target].spec.maps.items():
            pending = Pin(work.config.globals / name).pending
            if wanted.pinned and pending.exists():
                self.applied()
                raise BpfError("BPF_OBJ_PIN", errno.EEXIST, f"{pending.name} exists")
        super().apply(work)


@dataclass(frozen=True)
class RepinUnlessCancelled(Telling, RepinMaps):
    """Moves maps back, unless the reload was cancelled."""

    def undo(self, work: Workspace) -> None:
        if work.cancel.is_set() and work.take_undo(self):
            self.applied()
        super().undo(work)


@dataclass(frozen=True)
class WriteTemplate(WriteObject):
    """Loads the template as it is: the id in it fits no array."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        spec = work.template[self.object.kind].image.spec
        work.objects[self.object.name] = LoadedObject(spec, own_maps=frozenset())


@dataclass(frozen=True)
class CommitUnpinned(Commit):
    """Leaves calls maps without a pin: the kernel empties them when the loader closes its descriptors."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        for item in self.objects:
            for name in filter(is_calls_map, work.objects[item.name].collection.maps):
                (work.config.globals / name).unlink()


@dataclass(frozen=True)
class CommitLeaking(Commit):
    """Leaves a program that was loaded pinned, at every reload once more."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        collection = work.objects[self.objects[0].name].collection
        name, program = next(iter(collection.programs.items()))
        bpf.obj_pin(program.fd, work.config.bpffs / f"{name}_{self.objects[0].generation}")


reuse_calls_map = instead({RepinMaps: ReuseCalls})
"""Overwrite the slots of the calls map that is in use (cilium issue 20691)."""

reuse_calls_map_slowly = instead({RepinMaps: ReuseCalls, FillArrays: FillSlotBySlot})
"""Overwrite the slots one by one, with time for packets between them (cilium issue 28088)."""


FAULTS = (
    Fault(
        "B3-wrong-bpffs-root",
        "named",
        "looks for pins to move aside in a directory without any: nothing is migrated, and an incompatible map fails "
        "every reload",
        change=instead({RepinMaps: RepinElsewhere}),
        cites=("cilium issue 17744",),
        only=("map_migration",),
    ),
    Fault(
        "B4-reuse-calls-map",
        "named",
        "overwrites the slots of the calls map in use one at a time, while the old entry program jumps through it",
        change=reuse_calls_map,
        cites=("cilium issue 20691", "cilium issue 28740", "cilium issue 29334"),
        only=("hitless",),
    ),
    Fault(
        "B5-buffer-between-two-loads",
        "named",
        "overwrites slots in place, consumers first: a packet crosses from old to new programs, which read another "
        "tail call buffer than the one it was noted in",
        change=reuse_calls_map_slowly,
        cites=("cilium issue 28088", "cilium issue 28397"),
        only=("hitless",),
    ),
    Fault(
        "B6-stale-pending-pin",
        "named",
        "fails for ever with EEXIST once a killed reload has left a :pending pin",
        change=instead({RepinMaps: RepinOnce}),
        cites=("cilium issue 24013",),
        only=("restart",),
    ),
    Fault(
        "B7-cancelled-half-way",
        "named",
        "a reload that is cancelled leaves the maps that it has moved aside where they are",
        change=instead({RepinMaps: RepinUnlessCancelled}),
        cites=("cilium issue 30101", "cilium issue 30214", "the reference commit, replaceDatapath"),
        only=("cancelled",),
    ),
    Fault(
        "B11-load-unpatched-template",
        "named",
        "loads the template as it is, whose endpoint id is larger than any slot",
        change=instead({WriteObject: WriteTemplate}),
        cites=("cilium issue 23239",),
        only=("hitless",),
    ),
    Fault(
        "B26-unpinned-calls-map",
        "named",
        "pins no calls map: the kernel empties it when the loader is done",
        change=instead({Commit: CommitUnpinned}),
        cites=("cilium issue 13254",),
        only=("hitless",),
    ),
    Fault(
        "B31-leak-programs",
        "named",
        "leaves one program behind at every reload",
        change=instead({Commit: CommitLeaking}),
        cites=("cilium issue 447", "cilium issue 46065"),
        only=("test_off",),
    ),
    Fault(
        "B34-calls-map-of-another-numbering",
        "named",
        "overwrites the slots of a calls map whose numbers mean other steps: old programs jump into the wrong ones, "
        "and none of them misses",
        change=reuse_calls_map,
        cites=("cilium issue 20691",),
        only=("renumbered",),
    ),
)
