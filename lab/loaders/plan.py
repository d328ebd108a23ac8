"""The reload by a loader that is not ours, as a plan: objects and maps are made here, the rest is one step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import KEPT_WHILE_USED, is_calls_map
from datapath.build.objectfile import ObjectFile
from datapath.endpoint import Attachment, DatapathConfig
from datapath.errors import LinkNotFound
from datapath.kernel import hooks, progarray, tcx
from datapath.kernel.map import open_pin
from datapath.kernel.pins import Pin, map_id
from datapath.load.collection import Collection
from datapath.load.layout import layout_differences
from datapath.load.maps import differences, open_maps
from datapath.object.spec import CollectionSpec, MapSpec
from datapath.reload.outcome import Attached, Loaded
from datapath.reload.prepare import Compile, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach, Commit, InstallRoutes, SetUp, release_maps
from datapath.reload.workspace import LoadedObject, Workspace
from lab.loaders.client import LoaderClient
from lab.loaders.libbpf import CompileForLibbpf, slots_of
from lab.loaders.protocol import LIBBPF, OWN_CALLS_MAPS, ROLLBACK
from lab.loaders.requests import reload_request

PREFIX = "load by "
"""What the name of the step begins with that a loader does."""

PREPARATIONS = (Compile.name, WriteObject.name, "know object", CompileForLibbpf.name, "create maps")
"""The names of the steps that are the lab's, whoever loads."""


def loader_plan(plan: Plan, client: LoaderClient, config: DatapathConfig) -> Plan:
    """Return the plan of the same reload by a loader; `plan` is that of our own pipeline."""
    commit = next(step for step in plan.steps if isinstance(step, Commit))
    objects = commit.objects
    steps: list[Step] = [step for step in plan.steps if isinstance(step, Compile)]
    for step in plan.steps:
        if isinstance(step, WriteObject):
            steps.append(_object_step(step, client))
    sizes = not client.supports(ROLLBACK)
    steps += [CreateMaps(item.name, sizes=sizes) for item in objects]
    attaches = tuple(step for step in plan.steps if isinstance(step, Attach))
    request = reload_request(config, plan.subject, objects, attaches)
    load = Load(plan.subject, client, request, objects, attaches, commit.obsolete)
    set_up = [step for step in plan.steps if isinstance(step, SetUp)]
    # Nothing checks what a pod sends before its programs are attached; but no route leads to an interface that is down.
    has_route = any(isinstance(step, InstallRoutes) for step in plan.steps)
    steps += [*set_up, load] if has_route else [load, *set_up]
    return replace(plan, steps=tuple(steps))


def _object_step(step: WriteObject, client: LoaderClient) -> Step:
    """Return the step that makes an object in the form that a loader wants."""
    if client.greeting.compiles:
        return KnowObject(step.target, step.object)
    if client.greeting.objects == LIBBPF and step.object.endpoint is not None:
        return CompileForLibbpf(step.target, step.object, step.object.endpoint)
    return step


@dataclass(frozen=True)
class KnowObject(Step):
    """Know what an object will define that the loader makes itself."""

    object: ObjectFile

    name = "know object"

    def describe(self) -> str:
        return f"know the maps of {self.object.path}, which the loader writes"

    def apply(self, work: Workspace) -> None:
        template = work.template[self.object.kind]
        self.object.write_header(template)
        substitution = self.object.substitution(template)
        spec = template.image.spec.substitute(substitution, strict=False)
        work.objects[self.object.name] = LoadedObject(spec, own_maps=frozenset(substitution.names.values()))


@dataclass(frozen=True)
class CreateMaps(Step):
    """Create, fill and pin the maps that are missing, as a control plane does; calls maps are the loader's own.

    A map whose entries have another size, or a field elsewhere, is made anew: programs of another release wrote it. A
    loader compares sizes alone. It would put an empty map in the place of the one, and attach programs that read it
    before anybody has filled it; of the other, its programs would misread what is in there. With `keep` both are left
    to it, without `sizes` the one: a loader that can roll back moves maps aside itself, under the same names.
    """

    keep: bool = False
    sizes: bool = True

    name = "create maps"

    def describe(self) -> str:
        return (
            f"create, fill and pin the maps of {self.target} that are missing, or have other entries, "
            "but for its calls map"
        )

    def apply(self, work: Workspace) -> None:
        item = work.objects[self.target]
        work.maps_lock.acquire(exclusive=False)
        missing = self._wanted(item.spec, work)
        if missing.keys() - item.own_maps:
            # Nobody may open a map that goes again if this reload fails.
            work.maps_lock.acquire(exclusive=True)
            missing = self._wanted(item.spec, work)
        if not missing:
            return
        for name in missing:
            pin = Pin(work.config.globals / name)
            if pin.repin(partial(work.on_undo, self)):
                item.moved.append(pin)
                work.migrated.append(name)
        spec = replace(item.spec, maps=missing, programs={}, sections={})
        collection = Collection(spec, open_maps(spec, work.config.globals, types=work.types), {})
        work.keep_collection(self.target, collection)
        work.on_undo(self, collection.remove_pins)
        collection.map_set.pin_created(work.on_new_map)

    def _wanted(self, spec: CollectionSpec, work: Workspace) -> dict[str, MapSpec]:
        """Return the maps that the control plane has to make."""
        pins = work.config.globals
        found = _missing(spec, pins)
        for name, item in spec.maps.items() if not self.keep else ():
            if name in found or not item.pinned or item.replace_pin or is_calls_map(name):
                continue
            with open_pin(pins / name) as pinned:
                info = pinned.info
            other_sizes = (item.key_size, item.value_size) != (info.key_size, info.value_size)
            told = work.types.of_map(spec, item) is not None
            # What differs otherwise, such as the number of entries, is what the loader looks at.
            other_fields = not differences(item, info) and layout_differences(spec, item, info, told=told)
            if (other_sizes and self.sizes) or other_fields:
                found[name] = item
        return found


@dataclass(frozen=True)
class Load(Step):
    """Have the loader load, attach and commit. Afterwards the kernel is asked what it has done.

    It finds the object files in their place; if it fails, the former ones are put back. Nothing else of what it has
    done is undone here.
    """

    loader: LoaderClient = field(compare=False, repr=False)
    request: Mapping[str, Any] = field(compare=False, repr=False)
    objects: tuple[ObjectFile, ...]
    attaches: tuple[Attach, ...]
    obsolete: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.loader.name}"

    def describe(self) -> str:
        hooks_ = ", ".join(f"{each.target} {each.direction}" for each in self.attaches)
        return f"have {' '.join(self.loader.command.argv)} load {self.target} and attach it to {hooks_}"

    def apply(self, work: Workspace) -> None:
        work.maps_lock.acquire(exclusive=False)
        before = dict(self._shared_maps(work))
        if not self.loader.greeting.compiles:
            for item in self.objects:
                work.on_undo(self, item.retract)
                item.publish()
        done = self.loader.ask(self._whole_request(work), cancel=work.cancel)
        work.committed = True
        for _, interval in done.spans:
            work.note_interval(interval)
        work.warnings += done.warnings
        self._settle(work)
        for name, ident in self._shared_maps(work):
            if before.get(name) != ident:
                self._take_over(name, work)
        for each in self.attaches:
            self._note_attached(each, work)
        sharer = "" if self.loader.supports(OWN_CALLS_MAPS) else self.loader.name
        for item in self.objects:
            known = work.objects[item.name]
            known.loaded = _loaded(item.name, known.spec, work.config.globals, sharer)

    def _whole_request(self, work: Workspace) -> dict[str, Any]:
        """Return the request, with what is known by now of the objects."""
        attach = []
        for wanted, known in zip(self.request["attach"], self.attaches, strict=True):
            kind = next(item.kind for item in self.objects if item.name == known.object)
            section = work.template[kind].image.spec.programs[known.program].section
            attach.append({**wanted, "section": section})
        found = {**self.request, "attach": attach}
        if self.loader.greeting.objects == LIBBPF:
            found["slots"] = [slot for item in self.objects for slot in slots_of(item, work)]
        return found

    def _settle(self, work: Workspace) -> None:
        """Let go of the former object files and maps, and of the files of interfaces without programs by now."""
        for item in self.objects:
            item.settle()
            for pin in work.objects[item.name].moved:
                # Programs of endpoints that are not reloaded yet read those that all share.
                if pin.path.name in KEPT_WHILE_USED:
                    pin.retire()
                else:
                    pin.finalize()
        release_maps(work)
        for path in self.obsolete:
            if path.is_relative_to(work.config.state):
                path.unlink(missing_ok=True)

    def _shared_maps(self, work: Workspace) -> Iterator[tuple[str, int]]:
        """Yield the names and ids of the pinned maps of the objects, but for calls maps."""
        names = {
            name for item in self.objects for name, spec in work.objects[item.name].spec.maps.items() if spec.pinned
        }
        for name in sorted(names):
            path = work.config.globals / name
            if not is_calls_map(name) and os.access(path, os.F_OK):
                yield name, map_id(path)

    def _take_over(self, name: str, work: Workspace) -> None:
        """Have the control plane fill a map that the loader has replaced."""
        if work.on_new_map is not None:
            with open_pin(work.config.globals / name) as new:
                work.on_new_map(new)
        work.migrated.append(name)

    def _note_attached(self, wanted: Attach, work: Workspace) -> None:
        """Note which program is at a hook; a hook without one is what the checks tell."""
        try:
            ifindex = work.netlink.ifindex(wanted.target)
        except LinkNotFound:
            return
        links = tcx.programs_if_there(work.config.netns, ifindex, wanted.direction)
        filters = hooks.filters(work.netlink, ifindex, wanted.direction)
        ours = [(found.entry.program_id, Attachment.TCX) for found in links if found.is_ours]
        ours += [(found.program_id, Attachment.TC) for found in filters if found.is_ours]
        if ours:
            place = (wanted.target, str(wanted.direction), wanted.program)
            work.attached[wanted.key] = Attached(*place, *ours[0])


def _missing(spec: CollectionSpec, pins: Path) -> dict[str, MapSpec]:
    return {
        name: item
        for name, item in spec.maps.items()
        if item.pinned and not is_calls_map(name) and not item.replace_pin and not os.access(pins / name, os.F_OK)
    }


def _loaded(name: str, spec: CollectionSpec, pins: Path, sharer: str) -> Loaded:
    """Return what is in the program arrays of an object, as the kernel says: all slots of those that are its own."""
    arrays: dict[str, int] = {}
    slots: dict[str, dict[int, int]] = {}
    programs: dict[str, int] = {}
    for item in spec.maps.values():
        path = pins / item.name
        if item.type != MapType.PROG_ARRAY or not item.pinned or not os.access(path, os.F_OK):
            continue
        with open_pin(path) as array:
            arrays[item.name] = array.info.id
            # An array that the whole node shares has a slot for each endpoint there can be.
            asked = range(array.info.max_entries) if is_calls_map(item.name) else item.contents
            found = {slot: progarray.program_at(array.fd, slot) for slot in asked}
        filled = {slot: program for slot, program in found.items() if program is not None}
        slots[item.name] = filled
        programs |= {program: filled[slot] for slot, program in item.contents.items() if slot in filled}
    return Loaded(name, programs, arrays, slots, sharer)
