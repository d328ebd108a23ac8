"""Named faults of a loader that concern what is in a map: what is copied into it, written to it, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datapath.base.mapnames import POLICY, POLICY_ARRAYS, POLICY_CALLS, is_calls_map
from datapath.kernel.map import Map, open_pin
from datapath.kernel.pins import Pin
from datapath.reload.prepare import MigrateMaps, RepinMaps
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.named_plans import stay
from lab.corpus.steps import Telling, instead


@dataclass(frozen=True)
class RevertToEmpty(Telling, RepinMaps):
    """Moves maps back, and brings the policy map in line with a policy that was never noted."""

    def undo(self, work: Workspace) -> None:
        super().undo(work)
        for name in work.objects[self.target].own_maps if self.target in work.objects else ():
            path = work.config.globals / name
            if name.startswith(POLICY) and path.exists():
                with open_pin(path) as rules:
                    for key in list(rules.keys()):
                        rules.delete(key)
                        self.applied()


@dataclass(frozen=True)
class RemoveIncompatible(Telling, RepinMaps):
    """Removes the pins of incompatible maps, instead of moving them aside."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        moved = work.objects[self.target].moved
        others = [pin for pin in moved if not is_calls_map(pin.path.name)]
        for pin in others:
            pin.pending.unlink()
            self.applied()
        stay(self, work, others, moved)


@dataclass(frozen=True)
class PinEmpty(Telling, MigrateMaps):
    """Pins new maps that the control plane does not hear of: it goes on with those that it has open."""

    def apply(self, work: Workspace) -> None:
        told = work.on_new_map
        if told is not None:
            work.on_new_map = self._keep_it_to_itself
        try:
            super().apply(work)
        finally:
            work.on_new_map = told

    def _keep_it_to_itself(self, _: Map) -> None:
        self.applied()


@dataclass(frozen=True)
class RenameArray(Telling, RepinMaps):
    """Gives the host a new array of policy programs."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        pin = Pin(work.config.globals / POLICY_CALLS)
        if self.target == "bpf_host.o" and pin.repin():
            work.on_undo(self, pin.revert)
            work.objects[self.target].moved.append(pin)
            self.applied()


@dataclass(frozen=True)
class StartArrayEmpty(Telling, MigrateMaps):
    """Leaves new arrays of policy programs empty: each endpoint's next reload fills its slot."""

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        arrays = [pin for pin in item.moved if pin.path.name in POLICY_ARRAYS]
        kept = [pin for pin in item.moved if pin not in arrays]
        item.moved[:] = kept
        super().apply(work)
        item.moved[:] = [*kept, *arrays]
        if arrays:
            self.applied()


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


remove_incompatible = instead({RepinMaps: RemoveIncompatible, MigrateMaps: PinEmpty})
"""Remove incompatible maps and begin with empty ones (cilium issue 26739)."""

rename_policy_array = instead({RepinMaps: RenameArray, MigrateMaps: StartArrayEmpty})
"""Have the host use a new, empty array of policy programs (cilium issue 13015)."""


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
        change=instead({MigrateMaps: StartArrayEmpty}),
        cites=("cilium issue 13015",),
        only=("policy_array",),
    ),
    Fault(
        "B10-revert-to-empty-policy",
        "named",
        "a failed reload brings the policy map in line with an empty policy",
        change=instead({RepinMaps: RevertToEmpty}),
        cites=("cilium issue 38998", "cilium issue 44855"),
        only=("rollback",),
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
        change=instead({MigrateMaps: PinEmpty}),
        cites=("cilium issue 45196",),
        only=("pins",),
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
