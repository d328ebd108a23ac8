"""What all measurements have in common: ways of doing the same work take turns, and what they took is compared."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

WARM_UP = 3
"""Rounds before the first that counts."""

NOISY = 0.25
"""Share of the CPUs from which on others spoil the figures; the kernel's threads, cleaning up behind us, are in it."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of doing it: seconds of every round; or, in somebody's own words, why it cannot be done."""

    name: str
    seconds: tuple[float, ...] = ()
    refusal: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio(self, other: Measurement) -> tuple[float, float, float]:
        """Return median and quartiles of the rounds' ratios to another row."""
        pairs = sorted(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))
        low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        return middle, low, high


class Way(Protocol):
    """One way of doing the work once. `name` is what the table calls it, `run` returns the seconds that count."""

    @property
    def name(self) -> str: ...

    def run(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Timed:
    """A way that takes as long as `call` does, divided by how many of what is counted it does at once.

    With `tries`, the least of so many: of short calls some are not interrupted, even where others want the CPU as well.
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


class Busy:
    """How busy others keep the CPUs, from its creation on: who measures beside them measures them as well."""

    def __init__(self) -> None:
        self._total, self._idle, self._own = self._now()

    def others(self) -> float:
        """Return the share of all CPUs' time (0 to 1) that neither this process and its children had nor nobody."""
        total, idle, own = self._now()
        passed = max(total - self._total, 1e-9)
        return min(max(1 - (idle - self._idle + own - self._own) / passed, 0.0), 1.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        second, times = os.sysconf("SC_CLK_TCK"), os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return sum(ticks) / second, (ticks[3] + ticks[4]) / second, own


def take_turns(ways: Sequence[Way], rounds: int, progress: Progress) -> list[Measurement]:
    """Run all ways in turns; who begins changes from round to round."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(-WARM_UP, rounds):
        progress(f"round {max(number, 0) + 1} of {rounds}")
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            took = way.run()
            if number >= 0:
                seconds[way.name].append(took)
    return [Measurement(name, tuple(values)) for name, values in seconds.items()]
