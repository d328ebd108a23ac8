"""Times that several rooms hand to each other: pieces of work of a reload, and what verification took."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Interval:
    """A piece of work of one thread: `tid` as the kernel knows it, times in nanoseconds of CLOCK_MONOTONIC."""

    tid: int
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class VerifyTimes:
    """The seconds that each program of an object took to load, the last time, by name. Threads share it."""

    seconds: dict[str, float] = field(default_factory=dict)
