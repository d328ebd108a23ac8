"""An object in the kernel: its maps, its programs, its program arrays filled. Attaches nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.base.bpftypes import MapType
from datapath.base.timing import Interval, VerifyTimes
from datapath.errors import BpfError, ObjectError
from datapath.kernel import bpf
from datapath.kernel.map import Map, MapCache
from datapath.load.maps import MapSet, load_maps
from datapath.load.programs import Program, load_programs
from datapath.object.spec import CollectionSpec

_SLOT = struct.Struct("=I")


def fill_program_arrays(
    spec: CollectionSpec,
    maps: Mapping[str, Map],
    programs: Mapping[str, Program],
    *,
    skip_contents: Container[str] = (),
) -> None:
    """Put the programs into the slots that their sections name, except in the maps of `skip_contents`."""
    for item in spec.maps.values():
        if item.type != MapType.PROG_ARRAY or item.name in skip_contents:
            continue
        fd = maps[item.name].fd
        for slot, name in item.contents.items():
            if name not in programs:
                raise ObjectError(spec.path, f"map {item.name}: its slot {slot} names {name}, which is no program")
            try:
                bpf.map_update(fd, _SLOT.pack(slot), _SLOT.pack(programs[name].fd))
            except BpfError as error:
                raise BpfError(error.command, error.errno, f"slot {slot} of {item.name}: {error}") from error


@dataclass(slots=True)
class Collection:
    """The loaded object. A context manager: leaving it closes every descriptor and leaves the pins.

    What is not attached by then, or pinned, is gone. `remove_pins` takes back the pins that this load made.
    """

    spec: CollectionSpec
    map_set: MapSet
    programs: dict[str, Program]

    @property
    def maps(self) -> Mapping[str, Map]:
        return self.map_set.maps

    @classmethod
    def load(
        cls,
        spec: CollectionSpec,
        *,
        pin_dir: Path | None,
        executor: Executor | None = None,
        order: VerifyTimes | None = None,
        cache: MapCache | None = None,
        skip_contents: Container[str] = (),
        on_interval: Callable[[Interval], None] | None = None,
    ) -> Self:
        """Open or create the maps, load the programs, fill the program arrays; on failure nothing of it is left.

        See load_maps, load_programs and fill_program_arrays, which a plan may call one by one instead.
        """
        with ExitStack() as undo:
            map_set = load_maps(spec, pin_dir, cache=cache)
            undo.callback(map_set.discard)
            programs = load_programs(spec, map_set.maps, executor=executor, order=order, on_interval=on_interval)
            collection = cls(spec, map_set, programs)
            undo.callback(collection.close_programs)
            fill_program_arrays(spec, map_set.maps, programs, skip_contents=skip_contents)
            undo.pop_all()
        return collection

    def remove_pins(self) -> None:
        """Remove the pins that this load made, as far as they still lead to its maps."""
        self.map_set.remove_pins()

    def close_programs(self) -> None:
        while self.programs:
            self.programs.popitem()[1].close()

    def close(self) -> None:
        """Close every descriptor; a second call does nothing."""
        self.close_programs()
        self.map_set.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
