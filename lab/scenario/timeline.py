"""When each step of each reload ran, and during which of them something happened: a packet was sent, or dropped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from datapath.base.timing import Interval
from datapath.reload.outcome import FailedReload, Outcome, Span

SHOWN = 3
"""Places that one text names; of more it tells the number."""


@dataclass(frozen=True, slots=True)
class Reload:
    """A reload of a scenario, also one that failed.

    `subject` is the endpoint's name, with its node's number before it (2/pod-1) where there are several. `rollback` is
    when a failed reload was undone.
    """

    subject: str
    generation: int
    spans: tuple[Span, ...]
    rollback: Interval | None = None

    @classmethod
    def of(cls, reload: Outcome | FailedReload, subject: str) -> Self:
        """Return what became of a reload, as part of a timeline."""
        rollback = reload.rollback if isinstance(reload, FailedReload) else None
        return cls(subject, reload.generation, reload.spans, rollback)

    @property
    def title(self) -> str:
        return f"{self.subject} (generation {self.generation}"

    @property
    def start_ns(self) -> int:
        """When its first step began; without a step, when it was undone."""
        return self._ends[0].start_ns

    @property
    def end_ns(self) -> int:
        """When its last step, or its rollback, came to its end."""
        return self._ends[1].end_ns

    @property
    def is_empty(self) -> bool:
        """Whether no step was begun, and so nothing was undone."""
        return not self.spans and self.rollback is None

    @property
    def _ends(self) -> tuple[Interval, Interval]:
        """What was done first and last. Thousands of packets may ask for it."""
        works = self.spans[:1] + self.spans[-1:]
        done = [*(span.work for span in works), *([] if self.rollback is None else [self.rollback])]
        return done[0], done[-1]

    @property
    def _parts(self) -> list[tuple[str, Interval, tuple[Interval, ...]]]:
        """What was done one after the other: (name, time, pieces of other threads)."""
        parts = [(f'"{name_of(span, self.subject)}"', span.work, span.helpers) for span in self.spans]
        if self.rollback is not None:
            parts.append(("the rollback", self.rollback, ()))
        return parts

    def place(self, at_ns: int) -> Place:
        """Return where in the reload a time is, which lies between its start and its end."""
        before = ""
        end_ns = self.start_ns
        for name, work, helpers in self._parts:
            if at_ns < work.start_ns:
                return Place(f"between {before} and {name} of {self.title}", at_ns - end_ns)
            if at_ns <= work.end_ns:
                return Place(f"during {name} of {self.title}", at_ns - work.start_ns, _piece(helpers, at_ns))
            before, end_ns = name, work.end_ns
        return Place(f"after {before} of {self.title}", at_ns - end_ns)


@dataclass(frozen=True, slots=True)
class Place:
    """A place on the timeline: its name, open at the end, and how long after its beginning, nanoseconds.

    `detail` says between which pieces of work by helper threads the time lies, if the step has some.
    """

    name: str
    offset_ns: int
    detail: str = ""


class Timeline:
    """The reloads of a scenario, those of worker processes included, on CLOCK_MONOTONIC."""

    def __init__(self, reloads: Iterable[Reload] = ()) -> None:
        self._reloads: list[Reload] = []
        for reload in reloads:
            self.add(reload)

    def add(self, reload: Reload) -> None:
        """Add a reload, whenever it ran; one that began no step is left out."""
        if not reload.is_empty:
            self._reloads.append(reload)

    @property
    def reloads(self) -> list[Reload]:
        """The reloads in the order in which they began."""
        return sorted(self._reloads, key=lambda reload: reload.start_ns)

    def place(self, at_ns: int) -> str:
        """Say where a time is, as in `during "attach ingress cilium_host" of host (generation 12, +0.41 ms)`."""
        return self.places([at_ns])

    def places(self, at: Iterable[int]) -> str:
        """Say where several times are, those of one step together: `... (generation 12, +0.41 to +0.63 ms)`."""
        order = _Order(self.reloads)
        groups: dict[tuple[str, ...], list[tuple[Place, ...]]] = {}
        for at_ns in sorted(at):
            found = order.places(at_ns)
            groups.setdefault(tuple(place.name for place in found), []).append(found)
        texts = [" and ".join(_text(same) for same in zip(*group, strict=True)) for group in groups.values()]
        more = len(texts) - SHOWN
        return "; ".join(texts[:SHOWN]) + (f"; and at {more} other places" if more > 0 else "")


def name_of(span: Span, subject: str) -> str:
    """Return the name of a step with its target, unless that is the subject of the reload itself."""
    own = subject.rpartition("/")[2]
    return span.step if span.target in ("", own) else f"{span.step} {span.target}"


class _Order:
    """Reloads in the order in which they began: thousands of packets are looked for among hundreds of them."""

    def __init__(self, reloads: Sequence[Reload]) -> None:
        self._reloads = reloads
        self._starts = [reload.start_ns for reload in reloads]
        self._ends = [reload.end_ns for reload in reloads]
        # Of each reload and those before it, the one that ended last; of several the first.
        self._last = list(accumulate(range(len(reloads)), self._later))

    def _later(self, one: int, other: int) -> int:
        return other if self._ends[other] > self._ends[one] else one

    def places(self, at_ns: int) -> tuple[Place, ...]:
        """Return the places of a time in the reloads that ran then, a few of them; else between which two it lies."""
        begun = bisect_right(self._starts, at_ns)
        running = list(self._running(begun, at_ns))
        if running:
            return tuple(reload.place(at_ns) for reload in reversed(running[-SHOWN:]))
        later = self._reloads[begun] if begun < len(self._reloads) else None
        if begun:
            last = self._reloads[self._last[begun - 1]]
            until = "" if later is None else f", before {later.title})"
            return (Place(f"after the reload of {last.title}", at_ns - last.end_ns, until),)
        if later is not None:
            return (Place(f"before the reload of {later.title}", at_ns - later.start_ns),)
        return (Place("", 0),)

    def _running(self, begun: int, at_ns: int) -> Iterator[Reload]:
        """Yield those of the first `begun` reloads that had not ended, the latest first."""
        for number in range(begun - 1, -1, -1):
            if self._ends[self._last[number]] < at_ns:
                return
            if self._ends[number] >= at_ns:
                yield self._reloads[number]


def _piece(helpers: Sequence[Interval], at_ns: int) -> str:
    """Say after which start or end of a helper's piece of work a time is, and before which; empty without helpers."""
    events = sorted(
        (at, number, what)
        for number, piece in enumerate(sorted(helpers, key=lambda piece: piece.start_ns), 1)
        for at, what in ((piece.start_ns, "began"), (piece.end_ns, "ended"))
    )
    before = [f"after piece {number} {what}" for at, number, what in events if at <= at_ns][-1:]
    after = [f"before piece {number} {what}" for at, number, what in events if at > at_ns][:1]
    return "".join(f", {text}" for text in (*before, *after))


def _text(places: Sequence[Place]) -> str:
    """Return the text of one or more times at the same place."""
    first, last = places[0], places[-1]
    if not first.name:
        return "while nothing was reloaded"
    details = {place.detail for place in places}
    detail = details.pop() if len(details) == 1 else ""
    return f"{first.name}, {_offsets(first.offset_ns, last.offset_ns)}{detail})"


def _offsets(first_ns: int, last_ns: int) -> str:
    start, end = (f"{ns / 1e6:+.2f}" for ns in (first_ns, last_ns))
    return f"{start} ms" if start == end else f"{start} to {end} ms"
