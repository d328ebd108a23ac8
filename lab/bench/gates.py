"""What a gate costs: a system call without a filter, under the filter without being stopped, and stopped and let go."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, run_in_turns
from lab.gates.forked import gated
from lab.results.result import Series
from lab.system.forkpool import fork_map

MANY, FEW = 20_000, 1_000
"""Calls of a round: those that happen at once, and those that are stopped."""

_NOWHERE = Path("/nowhere")
"""No file counts, and no map is pinned."""


@dataclass(frozen=True, slots=True)
class Calls:
    """A variant: `count` times a call, by a process of its own; `gated` it is under the filter, with `look_ups` or not.

    Its time is that of one call.
    """

    name: str
    call: Callable[[], object]
    count: int
    gated: bool = False
    look_ups: bool = True

    def run(self) -> float:
        with ExitStack() as stack:
            enter = _nothing
            if self.gated:
                enter = stack.enter_context(
                    gated(lambda call: None, directories=[], pins=_NOWHERE, look_ups=self.look_ups)
                )
            (seconds,) = fork_map(partial(self._worker, enter), [None], workers=1)
        if isinstance(seconds, BaseException):
            raise seconds
        return seconds

    @contextmanager
    def _worker(self, enter: Callable[[], None], cancel: threading.Event) -> Iterator[Callable[[None], float]]:
        enter()
        yield self._timed

    def _timed(self, _: None) -> float:
        call = self.call
        begin = time.perf_counter()
        for _number in range(self.count):
            call()
        return (time.perf_counter() - begin) / self.count


@dataclass(frozen=True, slots=True)
class GatesReport:
    """The variants of each call, the one without a filter first, and the load of other processes (0 to 1)."""

    calls: Mapping[str, Sequence[Measurement]]
    others: float

    def series(self) -> list[Series]:
        """Return the series of the result: the seconds of one call."""
        return [each.series(call) for call, measurements in self.calls.items() for each in measurements]


def measure_gates(rounds: int, progress: Progress) -> GatesReport:
    """Measure the variants in turns; NoUserNotification where calls cannot be stopped."""
    load = BackgroundLoad()
    array = bpf.map_create(MapType.ARRAY, 4, 4, 1, name="bench_gates")
    key, value = struct.pack("=I", 0), bytes(4)
    try:
        groups = {
            "getppid": _variants(os.getppid, stopped=False),
            "bpf, look-up": _variants(partial(bpf.map_lookup, array, key, 4), stopped=False, look_ups=False),
            "bpf, update": _variants(partial(bpf.map_update, array, key, value), stopped=True),
        }
        found = {name: run_in_turns(variants, rounds, progress) for name, variants in groups.items()}
    finally:
        os.close(array)
    return GatesReport(found, load.share())


def _variants(call: Callable[[], object], *, stopped: bool, look_ups: bool = True) -> list[Calls]:
    under = "stopped and let go" if stopped else "under the filter"
    return [
        Calls("no filter", call, MANY),
        Calls(under, call, FEW if stopped else MANY, gated=True, look_ups=look_ups),
    ]


def _nothing() -> None:
    """Stay as it is."""
