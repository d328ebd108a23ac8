"""What the steps of one reload share: open descriptors, the objects on their way, and how each step is undone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.base.locks import FairLock
from datapath.base.timing import Interval
from datapath.build.template import Kind, Template
from datapath.build.templates import TemplateCache
from datapath.endpoint import DatapathConfig
from datapath.kernel import bpf
from datapath.kernel.map import Map, MapCache
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import Pin
from datapath.load.collection import Collection
from datapath.load.types import TypeStore
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Attached, Loaded
from datapath.reload.replaced import ReplacedArrays
from datapath.reload.step import Step

Undo = Callable[[], object]
"""Takes back one thing that a step has done, or does what the step has left to the commit."""


@dataclass
class LoadedObject:
    """One object on its way into the kernel.

    `own_maps` are the maps that were renamed for this object: nobody shares them. `moved` are the pins that were moved
    aside for it. `loaded` are the kernel's ids, once its programs are loaded.
    """

    spec: CollectionSpec
    own_maps: frozenset[str]
    moved: list[Pin] = field(default_factory=list)
    loaded: Loaded | None = None
    _collection: Collection | None = None

    @property
    def collection(self) -> Collection:
        """The object in the kernel; there is one once its maps are open."""
        if self._collection is None:
            raise RuntimeError(f"{self.spec.path}: no map is open yet")
        return self._collection

    def set_collection(self, collection: Collection) -> None:
        self._collection = collection


@dataclass
class Workspace:
    """The state of one reload while it runs. A context manager: leaving it closes every descriptor.

    `maps_lock` is held shared by every reload and exclusively by one that replaces a map that others share.
    `on_new_map` is called with each map that is new and empty, before any program that uses it is attached: the control
    plane fills it there. What replaces a map of the same layout is not empty.
    `template` holds the templates of this reload by kind, `objects` the state of each object by its name, `noted` which
    maps the programs use that are replaced, by the directory of their objects.
    `replaced` takes the program arrays that are let go, if others are to be reloaded at once.
    `committed` is set by the commit when it begins what cannot be undone; `to_let_go` is what steps have left to it.
    """

    config: DatapathConfig
    netlink: NetlinkSocket
    executor: Executor | None
    templates: TemplateCache
    map_cache: MapCache
    types: TypeStore
    cancel: threading.Event
    maps_lock: FairLock
    replaced: ReplacedArrays
    on_new_map: Callable[[Map], None] | None = None
    template: dict[Kind, Template] = field(default_factory=dict)
    objects: dict[str, LoadedObject] = field(default_factory=dict)
    noted: dict[Path, Mapping[str, int] | None] = field(default_factory=dict)
    attached: dict[tuple[str, str], Attached] = field(default_factory=dict)
    migrated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    committed: bool = False
    to_let_go: list[tuple[str, Undo]] = field(default_factory=list)
    _undo: dict[tuple[str, str], list[Undo]] = field(default_factory=dict)
    _intervals: list[Interval] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._stack.callback(self.maps_lock.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def wanted(self, template: Template, entries: tuple[str, ...]) -> CollectionSpec:
        """Return what of a template is loaded, if these programs are attached."""
        return template.image.spec if self.config.all_programs else template.reached(entries)

    def keep_open(self, fd: int) -> int:
        """Close `fd` when the reload ends, and return it."""
        self._stack.callback(os.close, fd)
        return fd

    def keep_map(self, opened: Map) -> Map:
        """Close a map when the reload ends, and return it."""
        self._stack.callback(opened.close)
        return opened

    def keep_program(self, program_id: int) -> int:
        """Open a program that is about to be replaced, so that it can come back until the reload ends."""
        return self.keep_open(bpf.prog_fd_by_id(program_id))

    def keep_collection(self, name: str, collection: Collection) -> None:
        """Close an object's descriptors when the reload ends."""
        self._stack.callback(collection.close)
        self.objects[name].set_collection(collection)

    def let_go(self, what: str, action: Undo) -> None:
        """Have the commit call `action`, which cannot be undone; `what` is what is left over if it fails."""
        self.to_let_go.append((what, action))

    def on_undo(self, step: Step, action: Undo) -> None:
        """Have `action` called if the step is undone, before those that were registered earlier."""
        self._undo.setdefault(step.key, []).append(action)

    def take_undo(self, step: Step) -> list[Undo]:
        """Return what undoes a step, in the order in which it is to be called; once."""
        return self._undo.pop(step.key, [])[::-1]

    def note_interval(self, interval: Interval) -> None:
        """Add work that another thread did for the step that runs now."""
        self._intervals.append(interval)

    def take_intervals(self) -> list[Interval]:
        """Return the work that was noted since the last call."""
        taken, self._intervals = self._intervals, []
        return taken
