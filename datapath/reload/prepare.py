"""The steps of a reload that prepare it: objects and maps. Nothing here changes what a packet meets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import CONNECTIONS, POLICY_ARRAYS, is_calls_map, is_written_by_agent
from datapath.base.statefile import DamagedFile
from datapath.build.objectfile import ObjectFile
from datapath.build.template import Kind
from datapath.endpoint import Endpoint
from datapath.errors import MapTooSmall, ProgramNotFound
from datapath.kernel.map import Map, open_pin
from datapath.kernel.pins import Pin
from datapath.load.collection import Collection, fill_program_arrays
from datapath.load.content import can_copy, copy
from datapath.load.maps import incompatibilities, open_maps
from datapath.load.programs import load_programs
from datapath.object.spec import CollectionSpec
from datapath.reload import connections, recovery
from datapath.reload.outcome import Loaded
from datapath.reload.step import Step
from datapath.reload.workspace import LoadedObject, Workspace


@dataclass(frozen=True)
class Compile(Step):
    """Get the template: compiled once per hash, parsed once per process."""

    kind: Kind
    endpoint: Endpoint | None = None  # None: the overlay and XDP, which belong to no endpoint

    name = "compile"

    def describe(self) -> str:
        return f"compile {self.target}, or take the template with the same hash"

    def apply(self, work: Workspace) -> None:
        templates = work.templates
        if self.endpoint is not None:
            template = templates.fetch(self.endpoint, cancel=work.cancel)
        else:
            fetch = templates.fetch_xdp if self.kind is Kind.XDP else templates.fetch_overlay
            template = fetch(cancel=work.cancel)
        work.template[self.kind] = template


@dataclass(frozen=True)
class WriteObject(Step):
    """Substitute constants and names, and write the endpoint's own object."""

    object: ObjectFile
    programs: tuple[str, ...]

    name = "write object"

    def describe(self) -> str:
        return f"substitute constants and names, write {self.object.path}"

    def apply(self, work: Workspace) -> None:
        template = work.template[self.object.kind]
        image, substitution = template.image, self.object.substitution(template)
        for program in self.programs:
            if program not in image.spec.programs:
                raise ProgramNotFound(self.object.name, program, sorted(image.spec.programs))
        work.on_undo(self, self.object.discard)
        self.object.write(template, *image.pieces(substitution, strict=False))
        spec = template.own_spec(work.wanted(template, self.programs), substitution)
        work.objects[self.object.name] = LoadedObject(spec, own_maps=frozenset(substitution.names.values()))


@dataclass(frozen=True)
class RepinMaps(Step):
    """Move aside the pins that the object cannot reuse: those of maps that are always new, and of incompatible ones."""

    name = "repin maps"

    def describe(self) -> str:
        return f"move the calls map of {self.target} and every incompatible map to :pending"

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        spec = item.spec
        work.maps_lock.acquire(exclusive=False)
        left, (names, missing) = recovery.find(work, spec), _survey(work, spec)
        touched = (*names, *(pin.path.name for pin in left), *(set(missing) - item.own_maps))
        if not all(is_always_new(spec, name) for name in touched):
            # Others share the map: nobody may open it while it is being replaced, nor one that goes again if this
            # reload fails. Another reload may have done it while we waited, so everything is asked again.
            work.maps_lock.acquire(exclusive=True)
            left = recovery.find(work, spec)
        recovery.recover(work, spec, left)
        if left or work.maps_lock.exclusive:
            names, _ = _survey(work, spec)
        for name in names:
            pin = Pin(work.config.globals / name)
            if pin.repin(partial(work.on_undo, self)):
                item.moved.append(pin)
                if not is_always_new(spec, name):
                    work.migrated.append(name)


@dataclass(frozen=True)
class OpenMaps(Step):
    """Open the pinned maps that can be reused, create the others: nobody else sees those yet."""

    name = "open maps"

    def describe(self) -> str:
        return f"open the pinned maps of {self.target}, create those that are missing"

    def apply(self, work: Workspace) -> None:
        spec = work.objects[self.target].spec
        maps = open_maps(spec, work.config.globals, cache=work.map_cache, types=work.types)
        work.keep_collection(self.target, Collection(spec, maps, {}))


@dataclass(frozen=True)
class MigrateMaps(Step):
    """Fill the maps that are new, from those they replace or by the control plane, and pin them.

    In this order: whatever kills the reload, no map that anybody can find lacks a part of its content.
    """

    name = "migrate maps"

    def describe(self) -> str:
        return (
            f"fill the new maps of {self.target}: from those they replace if sizes agree, by the control plane if not; "
            "pin them"
        )

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        spec, replaced = item.spec, {pin.path.name: pin for pin in item.moved}

        def fill(new: Map) -> None:
            if is_always_new(spec, new.name):
                return
            pin = replaced.get(new.name)
            if not (pin is not None and _copy_content(pin, new, work)) and work.on_new_map is not None:
                work.on_new_map(new)

        work.on_undo(self, item.collection.remove_pins)
        item.collection.map_set.pin_created(fill)


@dataclass(frozen=True)
class LoadPrograms(Step):
    """Verify the programs, in parallel, the longest first."""

    kind: Kind

    name = "load programs"

    def describe(self) -> str:
        return f"load the programs of {self.target} that packets can reach; the verifier may refuse"

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        collection.programs = load_programs(
            collection.spec,
            collection.maps,
            executor=work.executor,
            order=work.template[self.kind].verify_times,
            types=work.types,
            on_interval=work.note_interval,
        )
        # Now: what can fail must not come after the commit.
        work.objects[self.target].loaded = _loaded(self.target, collection)
        refused = work.types.refusal(collection.spec)
        if refused is not None:
            work.warnings.append(f"{self.target} was loaded without its BTF, which the kernel refuses: {refused}")


def _loaded(name: str, collection: Collection) -> Loaded:
    """Ask for the ids of an object's programs and program arrays."""
    programs = {program.name: program.id for program in collection.programs.values()}
    arrays = [item for item in collection.spec.maps.values() if item.type == MapType.PROG_ARRAY]
    return Loaded(
        object=name,
        programs=programs,
        arrays={item.name: collection.maps[item.name].info.id for item in arrays},
        slots={
            item.name: {slot: programs[program] for slot, program in item.contents.items() if program in programs}
            for item in arrays
        },
    )


@dataclass(frozen=True)
class FillArrays(Step):
    """Fill the new calls map, which no attached program uses yet, so that the order of the slots does not matter.

    Packets come next: what the endpoint's old programs have noted in maps that were replaced is carried over as well.
    """

    object: ObjectFile

    name = "fill arrays"

    def describe(self) -> str:
        return f"put the tail calls of {self.target} into its calls map"

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        fill_program_arrays(collection.spec, collection.maps, collection.programs, skip_contents=POLICY_ARRAYS)
        # Undone when all that packets meet is: the old programs are back by then.
        work.on_undo(self, partial(_carry_connections_back, self.object, work))
        carry_connections_over(self.object, work)


def is_always_new(spec: CollectionSpec, name: str) -> bool:
    """Tell whether every load makes the map anew: a calls map, or one whose definition says so (CILIUM_PIN_REPLACE)."""
    return is_calls_map(name) or (name in spec.maps and spec.maps[name].replace_pin)


def carry_connections_over(item: ObjectFile, work: Workspace) -> None:
    """Let the new programs know what an endpoint's old ones have noted, its connections above all."""
    maps, owns = work.objects[item.name].collection.maps, connections.owner(work.config.node, item.endpoint)
    before = noted_maps(item.path.parent, work)
    left = connections.carry_over(before, maps, owns) if before is not None else {}
    for name, left_out in left.items():
        what = "connections" if name.startswith(CONNECTIONS) else "entries"
        work.warnings.append(f"map {name}: {left_out} {what} do not fit into {maps[name].info.max_entries}")


def _carry_connections_back(item: ObjectFile, work: Workspace) -> None:
    """Let the old programs know what the new ones have noted, connections that began meanwhile above all."""
    before = noted_maps(item.path.parent, work)
    if before is not None:
        owns = connections.owner(work.config.node, item.endpoint)
        connections.carry_back(before, work.objects[item.name].collection.maps, owns)


def noted_maps(directory: Path, work: Workspace) -> Mapping[str, int] | None:
    """Return what connections.remembered() does, which is read once a reload; None, with a warning, if it is damaged.

    The commit then writes the file anew.
    """
    if directory not in work.noted:
        try:
            work.noted[directory] = connections.remembered(directory)
        except DamagedFile as error:
            work.noted[directory] = None
            work.warnings.append(f"{error}: connections in maps that were replaced are not carried over")
    return work.noted[directory]


def _copy_content(pin: Pin, new: Map, work: Workspace) -> bool:
    """Copy the content of the map that was moved aside; False if its layout is another one.

    MapTooSmall if the control plane's entries do not all fit.
    """
    with open_pin(pin.pending) as old:
        if not can_copy(old, new):
            return False
        left_out = copy(old, new)
    if left_out and is_written_by_agent(new.name):
        raise MapTooSmall(new.name, left_out, new.info.max_entries)
    if left_out:
        work.warnings.append(f"map {new.name}: {left_out} entries do not fit into {new.info.max_entries}")
    return True


def _survey(work: Workspace, spec: CollectionSpec) -> tuple[list[str], list[str]]:
    """Return the pinned maps that the object cannot open, its calls map and those that differ; and those not there."""
    directory = str(work.config.globals)
    to_move: list[str] = []
    missing: list[str] = []
    for name, wanted in spec.maps.items():
        if not wanted.pinned:
            continue
        path = f"{directory}/{name}"
        if is_always_new(spec, name):
            (to_move if os.access(path, os.F_OK) else missing).append(name)
            continue
        info = work.map_cache.info(path)
        if info is None:
            missing.append(name)
        elif incompatibilities(spec, wanted, info, told=work.types.of_map(spec, wanted) is not None):
            to_move.append(name)
    return to_move, missing
