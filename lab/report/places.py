"""Where a moment falls among reloads: during which step of which, or between which two.

A reload is here one of run.json's `reloads` or `failed_reloads`, with the keys of both (lab.report.scenarios).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.report.figure import duration

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A moment among the reloads of a scenario; `reload` is the number of the reload, None outside of all."""

    text: str
    reload: int | None


def parts_of(reload: Json) -> list[tuple[str, Json]]:
    """Return what a reload did one after the other, by name: its steps, and the rollback of one that failed."""
    parts = [(f"{span['step']} {span['target']}", span["work"]) for span in reload["spans"]]
    return parts if reload["rollback"] is None else [*parts, ("rollback", reload["rollback"])]


def start_of(reload: Json) -> int:
    """Return when a reload began; of one that did nothing, 0."""
    return min((int(work["start_ns"]) for _, work in parts_of(reload)), default=0)


def end_of(reload: Json) -> int:
    """Return when a reload, or its rollback, ended; of one that did nothing, 0."""
    return max((int(work["end_ns"]) for _, work in parts_of(reload)), default=0)


def title(reload: Json) -> str:
    """Return such as `pod-1, generation 6`, or `pod-1, generation 7, failed`."""
    failed = ", failed" if reload["error"] else ""
    return f"{reload['subject']}, generation {reload['generation']}{failed}"


class Places:
    """Finds the places of moments. Of reloads that overlap, the last that began is told."""

    def __init__(self, reloads: Sequence[Json]) -> None:
        numbered = [(start_of(reload), number) for number, reload in enumerate(reloads) if parts_of(reload)]
        self._order = sorted(numbered)
        self._starts = [start for start, _ in self._order]
        self._reloads = reloads

    def find(self, at_ns: int) -> Place:
        """Return where a moment falls."""
        last = bisect_right(self._starts, at_ns)
        # A long reload can have begun before short ones that are over; looking far back would cost more than it tells.
        for _, number in reversed(self._order[max(last - 16, 0) : last]):
            if at_ns <= end_of(self._reloads[number]):
                return Place(_step(self._reloads[number], at_ns), number)
        if last == 0:
            return Place("before the first reload" if self._order else "no reload is recorded", None)
        _, number = self._order[last - 1]
        late = duration(at_ns - end_of(self._reloads[number]))
        return Place(f"{late} after the reload of {title(self._reloads[number])}", None)


def _step(reload: Json, at_ns: int) -> str:
    """Return during which step, or between which steps, of a reload a moment falls."""
    into = f"of {title(reload)}, {duration(at_ns - start_of(reload))} after its beginning"
    before = None
    for name, work in parts_of(reload):
        if work["start_ns"] <= at_ns <= work["end_ns"]:
            return f"during {name} {into}"
        if work["start_ns"] > at_ns:
            return f"between {before} and {name} {into}"
        before = name
    return f"after {before} {into}"
