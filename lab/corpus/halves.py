"""Steps that are done by half: for one address family, for some of the maps, for some of what they should let go of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

from datapath.base.mapnames import CT_MAPS, is_calls_map
from datapath.kernel import progarray
from datapath.kernel.map import Map
from datapath.reload import retired
from datapath.reload.prepare import FillArrays, MigrateMaps, RepinMaps, is_always_new
from datapath.reload.step import Step
from datapath.reload.switchover import Commit, InsertPolicy, InstallRoutes, RemoveRoutes
from datapath.reload.workspace import Workspace
from lab.corpus.models import HOST, OVERLAY, POD, POD_ROUTES
from lab.corpus.steps import Telling, in_place

IPV4, IPV6 = ("*ipv4*", "*arp*"), ("*ipv6*", "*icmp6*")
"""Names of programs that handle packets of one family."""


@dataclass(frozen=True)
class FillAllBut(Telling, FillArrays):
    """Fills the slots of all tail calls but those of some programs, given as patterns of their names."""

    left_out: tuple[str, ...]

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        collection = work.objects[self.target].collection
        for spec in collection.spec.maps.values():
            for slot, program in spec.contents.items():
                if any(fnmatchcase(program, pattern) for pattern in self.left_out):
                    progarray.clear(collection.maps[spec.name].fd, slot)
                    self.applied()


@dataclass(frozen=True)
class FillSlotsOnly(FillArrays):
    """Does not carry the connections over."""

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        for spec in collection.spec.maps.values():
            for slot, program in spec.contents.items() if is_calls_map(spec.name) else ():
                progarray.put(collection.maps[spec.name].fd, slot, collection.programs[program].fd)


@dataclass(frozen=True)
class MigrateAllBut(Telling, MigrateMaps):
    """Leaves new maps of some names, given as patterns, as empty as they are."""

    left_out: tuple[str, ...]

    def apply(self, work: Workspace) -> None:
        fill, item = work.on_new_map, work.objects[self.target]
        empty = [pin for pin in item.moved if self._leaves(pin.path.name)]
        item.moved[:] = [pin for pin in item.moved if pin not in empty]
        if empty:
            self.applied()
        # Without a map that it replaces, the control plane fills it.
        work.on_new_map = partial(self._fill, fill)
        try:
            super().apply(work)
        finally:
            work.on_new_map = fill
            item.moved += empty

    def _leaves(self, name: str) -> bool:
        # A calls map is not filled in this step in any case.
        return not is_calls_map(name) and any(fnmatchcase(name, pattern) for pattern in self.left_out)

    def _fill(self, fill: Callable[[Map], None] | None, new: Map) -> None:
        if fill is None:
            return
        if self._leaves(new.name):
            self.applied()
        else:
            fill(new)


@dataclass(frozen=True)
class MoveCallsOnly(Telling, RepinMaps):
    """Leaves the pins of incompatible maps in place."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        item = work.objects[self.target]
        work.take_undo(self)
        for pin in list(item.moved):
            if is_always_new(item.spec, pin.path.name):
                work.on_undo(self, pin.revert)
            else:
                pin.revert()
                item.moved.remove(pin)
                work.migrated.remove(pin.path.name)
                self.applied()


@dataclass(frozen=True)
class InsertIntoOneArray(Telling, InsertPolicy):
    """Fills the slot of the array that the object has opened, and of no other."""

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        for spec in collection.spec.maps.values():
            if is_calls_map(spec.name) or not spec.contents:
                continue
            if retired.others(work.config.globals, spec.name):
                self.applied()
            for slot, program in spec.contents.items():
                array = collection.maps[spec.name]
                old = progarray.open_program_at(array.fd, slot)
                back = partial(progarray.clear if old is None else progarray.put, array.fd, slot)
                work.on_undo(self, back if old is None else partial(back, work.keep_open(old)))
                progarray.put(array.fd, slot, collection.programs[program].fd)


@dataclass(frozen=True)
class CommitUnpublished(Commit):
    """Leaves the object of the load before where everybody looks for the one that runs."""

    def apply(self, work: Workspace) -> None:
        former = {item: item.path.read_bytes() for item in self.objects if item.path.exists()}
        super().apply(work)
        for item, image in former.items():
            item.path.write_bytes(image)


def _routes_of_one_family(lost: str) -> Callable[[Step], Step]:
    def change(step: Step) -> Step:
        if not isinstance(step, InstallRoutes | RemoveRoutes):
            return step
        without = {"v4": replace(step.endpoint, ipv4=None), "v6": replace(step.endpoint, ipv6=None)}
        return replace(step, endpoint=without[lost])

    return change


def _fill_all_but(*left_out: str) -> Callable[[Step], Step]:
    return in_place({FillArrays: partial(FillAllBut, left_out=left_out)})


def _migrate_all_but(*left_out: str) -> Callable[[Step], Step]:
    return in_place({MigrateMaps: partial(MigrateAllBut, left_out=left_out)})


def keep_obsolete(step: Step) -> Step:
    """Return the commit that leaves what interfaces have left which are gone, or no devices any more."""
    return replace(step, obsolete=()) if isinstance(step, Commit) else step


@dataclass(frozen=True)
class Half:
    """One way of doing a step by half, for plans of these shapes; `only` are hints as those of a fault."""

    step: str
    way: str
    what: str
    change: Callable[[Step], Step]
    shapes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


_ANY_POD = (POD, POD_ROUTES)
_CT4, _CT6 = (tuple(name for name in CT_MAPS if family in name) for family in "46")

HALVES: tuple[Half, ...] = (
    *(
        Half(step, f"without-{lost}", f"is not done for IP{lost}", _routes_of_one_family(lost), (), ("switched",))
        for step in ("install routes", "remove routes")
        for lost in ("v4", "v6")
    ),
    Half("fill arrays", "without-v4", "is not done for IPv4", _fill_all_but(*IPV4), (*_ANY_POD, HOST, OVERLAY)),
    Half("fill arrays", "without-v6", "is not done for IPv6", _fill_all_but(*IPV6), (*_ANY_POD, HOST, OVERLAY)),
    Half(
        "fill arrays",
        "without-connections",
        "carries no connections over",
        in_place({FillArrays: FillSlotsOnly}),
        _ANY_POD,
        ("connections_are_lost", "map_migration", "policy_reload"),
    ),
    Half(
        "migrate maps",
        "without-v4",
        "loses the IPv4 connections",
        _migrate_all_but(*_CT4),
        _ANY_POD,
        ("former_release", "map_migration"),
    ),
    Half(
        "migrate maps",
        "without-v6",
        "loses the IPv6 connections",
        _migrate_all_but(*_CT6),
        _ANY_POD,
        ("former_release", "map_migration"),
    ),
    Half(
        "migrate maps",
        "unfilled",
        "leaves every new map empty",
        _migrate_all_but("*"),
        (),
        ("endpoint_map[type]", "control_plane_is_lost", "map_migration"),
    ),
    Half(
        "repin maps",
        "calls-only",
        "leaves incompatible maps in place",
        in_place({RepinMaps: MoveCallsOnly}),
        (),
        ("endpoint_map[type]", "policy_array", "map_migration"),
    ),
    Half(
        "insert policy",
        "one-array",
        "leaves the other arrays",
        in_place({InsertPolicy: InsertIntoOneArray}),
        _ANY_POD,
        ("policy_array",),
    ),
    Half("commit", "unpublished", "publishes no object", in_place({Commit: CommitUnpublished})),
    Half("commit", "obsolete-kept", "keeps what devices have left", keep_obsolete, (HOST,), ("taken_from_the_list",)),
)
"""All of them."""
