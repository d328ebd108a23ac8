"""What the steps of one reload share: open descriptors, and what each step needs to undo itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from datapath.build.templates import Kind, Template, TemplateCache
from datapath.endpoint import DatapathConfig
from datapath.kernel import bpf
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import Pin
from datapath.load.collection import Collection, Map, MapCache
from datapath.load.types import TypeStore
from datapath.locks import FairLock
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Attached
from datapath.timing import Interval


@dataclass
class Workspace:
    """The state of one reload while it runs. A context manager: leaving it closes every descriptor.

    `maps_lock` is held shared by every reload and exclusively by one that replaces a map that others share.
    `on_new_map` is called with each map that is new and empty, before any program that uses it is attached: the control
    plane fills it there. What replaces a map of the same layout is not empty.
    `own_maps` are the maps of each object that were given a name of their own: nobody shares them.
    `committed` is set by the commit when it begins what cannot be undone.
    """

    config: DatapathConfig
    netlink: NetlinkSocket
    executor: Executor | None
    templates: TemplateCache
    map_cache: MapCache
    types: TypeStore
    cancel: threading.Event
    maps_lock: FairLock
    on_new_map: Callable[[Map], None] | None = None
    template: dict[Kind, Template] = field(default_factory=dict)
    specs: dict[str, CollectionSpec] = field(default_factory=dict)
    own_maps: dict[str, frozenset[str]] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    moved: dict[str, list[Pin]] = field(default_factory=dict)
    undo: dict[tuple[str, str], Any] = field(default_factory=dict)
    attached: dict[tuple[str, str], Attached] = field(default_factory=dict)
    migrated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    committed: bool = False
    _intervals: list[Interval] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._stack.callback(self.maps_lock.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

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
        self._stack.callback(collection.close)
        self.collections[name] = collection

    def note_interval(self, interval: Interval) -> None:
        """Add work that another thread did for the step that runs now."""
        self._intervals.append(interval)

    def take_intervals(self) -> list[Interval]:
        taken, self._intervals = self._intervals, []
        return taken
