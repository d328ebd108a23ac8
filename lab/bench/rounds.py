"""The rounds of every benchmark: all variants of the same work run in turns, and their times are compared."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datapath.errors import ReloadlabError
from lab.bench.held import HeldArrays
from lab.results.result import Series
from lab.system.process import status_fields

WARM_UP = 3
"""Rounds that are not counted, before the first that is, but never more than are counted (`warm_up`)."""

_TIMES = slice(11, 15)
"""Fields of /proc/PID/stat: the ticks of a process, outside the kernel and inside, then those of its ended children."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant: the seconds of every round, or the reason why it cannot run, in the words of the tool.

    `positions` are its places in the turn of each round, from 0.
    """

    name: str
    seconds: tuple[float, ...] = ()
    refusal: str = ""
    positions: tuple[int, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio(self, other: Measurement) -> tuple[float, float, float]:
        """Return the median and the quartiles of the ratios to another variant, round by round."""
        pairs = sorted(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))
        low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        return middle, low, high

    def series(self, group: str) -> Series:
        """Return the series of a result; all variants of a `group` ran in turns."""
        name = f"{group}: {self.name}"
        return Series(name, "s", self.seconds, group=group, positions=self.positions, refusal=self.refusal)


class Variant(Protocol):
    """One way to do the work; `name` is its name in the table, `run` does it once and returns its seconds."""

    @property
    def name(self) -> str: ...

    def run(self) -> float: ...


@dataclass(frozen=True, slots=True)
class TimedCall:
    """A variant whose time is that of `call`, divided by `count`, the number of counted units of one call.

    With `tries` it is the shortest of so many calls: some short calls are not interrupted even on a busy machine.
    """

    name: str
    call: Callable[[], object]
    count: int = 1
    tries: int = 1

    def run(self) -> float:
        return min(self._once() for _ in range(self.tries)) / self.count

    def _once(self) -> float:
        begin = time.perf_counter()
        self.call()
        return time.perf_counter() - begin


def own_time() -> float:
    """Return the CPU seconds of this process and of all that it has started, directly or not, ended or running."""
    times = os.times()
    ticks, children = dict[int, int](), defaultdict[int, list[int]](list)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = status_fields(int(name))
            children[int(fields[1])].append(int(name))
            ticks[int(name)] = sum(map(int, fields[_TIMES]))
    running = children[os.getpid()]
    # It grows meanwhile, by their own.
    for pid in running:
        running += children[pid]
    ended = times.user + times.system + times.children_user + times.children_system
    return ended + sum(ticks[pid] for pid in running) / os.sysconf("SC_CLK_TCK")


class BackgroundLoad:
    """The load of all other processes since the object was made: it distorts what is measured meanwhile."""

    def __init__(self) -> None:
        self._total, self._idle, self._own = self._now()

    def share(self) -> float:
        """Return the share of all CPU time (0 to 1) that was neither idle nor used for what this process does."""
        total, idle, own = self._now()
        passed = max(total - self._total, 1e-9)
        return min(max(1 - (idle - self._idle + own - self._own) / passed, 0.0), 1.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / second, (ticks[3] + ticks[4]) / second, own_time()


def warm_up(rounds: int) -> int:
    """Return how many rounds come before those that count: a short look is not mostly warm-up."""
    return min(WARM_UP, rounds)


def run_in_turns(
    variants: Sequence[Variant],
    rounds: int,
    progress: Progress,
    *,
    held: HeldArrays | None = None,
    tolerant: bool = False,
) -> list[Measurement]:
    """Run all variants in turns, the warm-up first; the variant that begins changes from round to round.

    `held` holds what they replace until a round is over. What fails is raised; if this is `tolerant`, the others go on
    without that variant, whose measurement is the reason.
    """
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    positions: dict[str, list[int]] = {variant.name: [] for variant in variants}
    refusals: dict[str, str] = {}
    for number in range(-warm_up(rounds), rounds):
        left = [variant for variant in variants if variant.name not in refusals]
        if not left:
            break
        progress(f"round {max(number, 0) + 1} of {rounds}")
        first = number % len(left)
        for position, variant in enumerate((*left[first:], *left[:first])):
            if held is not None:
                held.hold()
            try:
                took = variant.run()
            except ReloadlabError as error:
                if not tolerant:
                    raise
                refusals[variant.name] = str(error)
                continue
            if number >= 0:
                seconds[variant.name].append(took)
                positions[variant.name].append(position)
        if held is not None:
            held.let_go()
    return [
        Measurement(name, refusal=refusals[name])
        if name in refusals
        else Measurement(name, tuple(values), positions=tuple(positions[name]))
        for name, values in seconds.items()
    ]
