"""Named faults of a loader that concern maps and their pins: what is moved aside, filled, kept, and put back."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from datapath.base.mapnames import POLICY, POLICY_ARRAYS, POLICY_CALLS, is_calls_map
from datapath.errors import BpfError
from datapath.kernel import bpf, progarray
from datapath.kernel.map import open_pin
from datapath.kernel.pins import Pin
from datapath.reload.prepare import FillArrays, MigrateMaps, RepinMaps, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Commit
from datapath.reload.workspace import LoadedObject, Workspace
from lab.corpus.fault import Fault
from lab.corpus.named_plans import instead

BETWEEN_SLOTS = 0.001
"""Seconds between two slots of a calls map that is filled in place: time for a packet."""


def _stay(step: Step, work: Workspace, pins: list[Pin], moved: list[Pin]) -> None:
    """Forget that these pins were moved aside: neither the commit nor the undo of `step` knows of them."""
    reverts = [pin.revert for pin in pins]
    for action in reversed(work.take_undo(step)):
        if action not in reverts:
            work.on_undo(step, action)
    for pin in pins:
        moved.remove(pin)


@dataclass(frozen=True)
class ReuseCalls(RepinMaps):
    """Moves incompatible maps aside, but never a calls map."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        moved = work.objects[self.target].moved
        calls = [pin for pin in moved if is_calls_map(pin.path.name)]
        for pin in calls:
            pin.revert()
        _stay(self, work, calls, moved)


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
class RepinOnce(RepinMaps):
    """Cannot move a map aside where another lies already."""

    def apply(self, work: Workspace) -> None:
        for name, wanted in work.objects[self.target].spec.maps.items():
            pending = Pin(work.config.globals / name).pending
            if wanted.pinned and pending.exists():
                raise BpfError("BPF_OBJ_PIN", errno.EEXIST, f"{pending.name} exists")
        super().apply(work)


@dataclass(frozen=True)
class RepinUnlessCancelled(RepinMaps):
    """Moves maps back, unless the reload was cancelled."""

    def undo(self, work: Workspace) -> None:
        if work.cancel.is_set():
            work.take_undo(self)
        super().undo(work)


@dataclass(frozen=True)
class RevertToEmpty(RepinMaps):
    """Moves maps back, and brings the policy map in line with a policy that was never noted."""

    def undo(self, work: Workspace) -> None:
        super().undo(work)
        for name in work.objects[self.target].own_maps if self.target in work.objects else ():
            path = work.config.globals / name
            if name.startswith(POLICY) and path.exists():
                with open_pin(path) as rules:
                    for key in list(rules.keys()):
                        rules.delete(key)


@dataclass(frozen=True)
class RemoveIncompatible(RepinMaps):
    """Removes the pins of incompatible maps, instead of moving them aside."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        moved = work.objects[self.target].moved
        others = [pin for pin in moved if not is_calls_map(pin.path.name)]
        for pin in others:
            pin.pending.unlink()
        _stay(self, work, others, moved)


@dataclass(frozen=True)
class PinEmpty(MigrateMaps):
    """Pins new maps that the control plane does not hear of: it goes on with those that it has open."""

    def apply(self, work: Workspace) -> None:
        with _deaf(work):
            super().apply(work)


@contextmanager
def _deaf(work: Workspace) -> Iterator[None]:
    told, work.on_new_map = work.on_new_map, None
    try:
        yield
    finally:
        work.on_new_map = told


@dataclass(frozen=True)
class RenameArray(RepinMaps):
    """Gives the host a new array of policy programs."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        pin = Pin(work.config.globals / POLICY_CALLS)
        if self.target == "bpf_host.o" and pin.repin():
            work.on_undo(self, pin.revert)
            work.objects[self.target].moved.append(pin)


@dataclass(frozen=True)
class StartArrayEmpty(MigrateMaps):
    """Leaves new arrays of policy programs empty: each endpoint's next reload fills its slot."""

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        arrays = [pin for pin in item.moved if pin.path.name in POLICY_ARRAYS]
        kept = [pin for pin in item.moved if pin not in arrays]
        item.moved[:] = kept
        super().apply(work)
        item.moved[:] = [*kept, *arrays]


@dataclass(frozen=True)
class PinMaps(MigrateMaps):
    """Pins new maps before they have any content."""

    name = "pin maps"

    def apply(self, work: Workspace) -> None:
        map_set = work.objects[self.target].collection.map_set
        work.on_undo(self, map_set.remove_pins)
        map_set.pin_created()


@dataclass(frozen=True)
class FillMaps(Step):
    """Fills the maps that were pinned empty."""

    name = "fill maps"

    def describe(self) -> str:
        return f"have the control plane fill the new maps of {self.target}"

    def apply(self, work: Workspace) -> None:
        map_set = work.objects[self.target].collection.map_set
        for name in sorted(map_set.created):
            if work.on_new_map is not None and not is_calls_map(name):
                work.on_new_map(map_set.maps[name])


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


def reuse_calls_map(plan: Plan) -> Plan:
    """Overwrite the slots of the calls map that is in use (cilium issue 20691)."""
    return instead(plan, RepinMaps, ReuseCalls)


def reuse_calls_map_slowly(plan: Plan) -> Plan:
    """Overwrite the slots one by one, with time for packets between them (cilium issue 28088)."""
    return instead(reuse_calls_map(plan), FillArrays, FillSlotBySlot)


def remove_incompatible(plan: Plan) -> Plan:
    """Remove incompatible maps and begin with empty ones (cilium issue 26739)."""
    return instead(instead(plan, RepinMaps, RemoveIncompatible), MigrateMaps, PinEmpty)


def rename_policy_array(plan: Plan) -> Plan:
    """Have the host use a new, empty array of policy programs (cilium issue 13015)."""
    return instead(instead(plan, RepinMaps, RenameArray), MigrateMaps, StartArrayEmpty)


def pin_before_filling(plan: Plan) -> Plan:
    """Pin new maps first and fill them afterwards: whoever is killed in between leaves them empty for good."""
    steps: list[Step] = []
    for step in plan.steps:
        steps += [PinMaps(step.target), FillMaps(step.target)] if type(step) is MigrateMaps else [step]
    return replace(plan, steps=tuple(steps))


FAULTS = (
    Fault(
        "B1-rename-policy-array",
        "named",
        "the host's reload makes a new cilium_call_policy, which is empty until each pod is reloaded",
        change=rename_policy_array,
        cites=("cilium issue 13015", "cilium issue 13097"),
        only=("host", "policy_array"),
    ),
    Fault(
        "B1-copy-no-slots",
        "named",
        "a reload that must replace cilium_call_policy does not copy its slots: other pods' programs are not in it",
        change=lambda plan: instead(plan, MigrateMaps, StartArrayEmpty),
        cites=("cilium issue 13015",),
        only=("policy_array",),
    ),
    Fault(
        "B3-wrong-bpffs-root",
        "named",
        "looks for pins to move aside in a directory without any: nothing is migrated, and an incompatible map fails "
        "every reload",
        change=lambda plan: instead(plan, RepinMaps, RepinElsewhere),
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
        change=lambda plan: instead(plan, RepinMaps, RepinOnce),
        cites=("cilium issue 24013",),
        only=("restart",),
    ),
    Fault(
        "B7-cancelled-half-way",
        "named",
        "a reload that is cancelled leaves the maps that it has moved aside where they are",
        change=lambda plan: instead(plan, RepinMaps, RepinUnlessCancelled),
        cites=("cilium issue 30101", "cilium issue 30214", "the reference commit, replaceDatapath"),
        only=("cancelled",),
    ),
    Fault(
        "B10-revert-to-empty-policy",
        "named",
        "a failed reload brings the policy map in line with an empty policy",
        change=lambda plan: instead(plan, RepinMaps, RevertToEmpty),
        cites=("cilium issue 38998", "cilium issue 44855"),
        only=("rollback",),
    ),
    Fault(
        "B11-load-unpatched-template",
        "named",
        "loads the template as it is, whose endpoint id is larger than any slot",
        change=lambda plan: instead(plan, WriteObject, WriteTemplate),
        cites=("cilium issue 23239",),
        only=("hitless",),
    ),
    Fault(
        "B12-remove-incompatible",
        "named",
        "removes a map that became incompatible and begins with an empty one",
        change=remove_incompatible,
        cites=("cilium issue 26739",),
        only=("map_migration",),
    ),
    Fault(
        "B25-map-unknown-to-the-control-plane",
        "named",
        "makes a new map where the pin is lost, while the control plane writes to the one that it has open",
        change=lambda plan: instead(plan, MigrateMaps, PinEmpty),
        cites=("cilium issue 45196",),
        only=("pins",),
    ),
    Fault(
        "B26-unpinned-calls-map",
        "named",
        "pins no calls map: the kernel empties it when the loader is done",
        change=lambda plan: instead(plan, Commit, CommitUnpinned),
        cites=("cilium issue 13254",),
        only=("hitless",),
    ),
    Fault(
        "B31-leak-programs",
        "named",
        "leaves one program behind at every reload",
        change=lambda plan: instead(plan, Commit, CommitLeaking),
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
    Fault(
        "pin-before-filling",
        "named",
        "pins new maps empty and fills them afterwards: a kill in between leaves them so for good",
        change=pin_before_filling,
        cites=("this loader, 2026-11-25",),
        only=("restart",),
    ),
)
