"""The cases of a sweep: what happens at which call, and what came of it."""

from __future__ import annotations

import errno
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from datapath.errors import ReloadlabError
from lab.gates.call import RECEIVE, Call
from lab.gates.supervisor import Answer, Fail, Kill, Signal
from lab.loaders.protocol import LoaderDied
from lab.proof.result import during
from lab.system.forkpool import WorkerDied
from lab.watch.violation import Violation

KILL = "SIGKILL"
CANCEL = "cancelled"

NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Place:
    """A call on any node: the `nth`, from 1, that fits a pattern."""

    pattern: str
    nth: int

    @property
    def is_look_up(self) -> bool:
        """Whether it is one of the calls that can be left to happen at once (lab.gates.seccomp.install)."""
        return self.pattern.startswith(("MAP_LOOKUP ", "MAP_GET_NEXT_KEY "))

    def fits(self, pattern: str) -> bool:
        """Tell whether a pattern chooses this call."""
        return self.pattern == pattern or fnmatchcase(self.pattern, pattern.replace("[", "[[]"))


@dataclass(slots=True)
class Case:
    """A fault at a call, and what came of it.

    The call fails with an errno (its name), the process is killed there (KILL), or what it does is cancelled (CANCEL).
    `ended` says how: `failed: ...`, `succeeded`, `killed`, `cancelled`, or `not reached` if the call did not come.
    `left` is the state that a killed process has left (lab.proof.left), empty of other ends.
    `wrong` is what does not hold, empty if the case was survived. `start_ns` is when it began (CLOCK_MONOTONIC).
    `arguments` are those of the action.
    """

    what: str
    place: Place
    fault: str
    ended: str = ""
    wrong: list[str] = field(default_factory=list)
    start_ns: int = 0
    arguments: tuple[str, ...] = ()
    left: str = ""

    @property
    def command(self) -> str:
        """The command that runs this case alone."""
        fault = {KILL: ("--kill",), CANCEL: ("--cancel",)}.get(self.fault, ("--errno", self.fault, "--no-kill"))
        where = ("--calls", self.place.pattern, "--nth", str(self.place.nth))
        more = ("--receives",) if self.place.pattern == RECEIVE else ()
        return shlex.join(("reloadlab", "faults", *self.arguments, *where, *more, *fault))

    @property
    def survived(self) -> bool:
        return not self.wrong and self.ended != NOT_REACHED

    @property
    def title(self) -> str:
        return f"{self.what}, {self.place.pattern} ({self.place.nth}): {self.fault}"

    def has_killed(self, error: ReloadlabError) -> bool:
        """Tell whether this is the end of the process that the case kills, and not one that died of something else."""
        return self.fault == KILL and isinstance(error, WorkerDied | LoaderDied) and error.killed

    @property
    def answer(self) -> Answer:
        """What becomes of the call."""
        if self.fault == KILL:
            return Kill()
        return Signal(signal.SIGTERM) if self.fault == CANCEL else Fail(getattr(errno, self.fault))


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens at each call, one after the other: `errnos` of it, a kill, a cancellation.

    `receives`: what is read from netlink sockets is a call as well.
    """

    errnos: Callable[[Call], Sequence[int]]
    kill: bool = True
    cancel: bool = False
    receives: bool = False

    def of(self, call: Call) -> Iterator[str]:
        """Yield the faults at a call, by their names."""
        yield from (errno.errorcode[number] for number in self.errnos(call))
        if self.kill:
            yield KILL
        if self.cancel:
            yield CANCEL


class Trigger:
    """Decides on the calls of a case: the one of its place gets the case's answer, all others happen."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._seen = 0
        self.reached = False

    def decide(self, call: Call) -> Answer:
        """Answer a call."""
        if self.reached or call.pattern != self._case.place.pattern:
            return None
        self._seen += 1
        self.reached = self._seen == self._case.place.nth
        return self._case.answer if self.reached else None


def places_of(calls: Sequence[Call]) -> Iterator[tuple[Call, Place]]:
    """Yield calls with their places; of a series of one map's keys, a few."""
    total, seen = Counter(call.pattern for call in calls), Counter[str]()
    for call in calls:
        seen[call.pattern] += 1
        nth, count = seen[call.pattern], total[call.pattern]
        # By parts of the whole: the number of entries differs from one time to the next.
        if not call.series or nth in (1, 2, count // 4, count // 2):
            yield call, Place(call.pattern, nth)


def cases_of(action: Doing, calls: Sequence[Call], faults: Faults) -> list[Case]:
    """Return the cases of an action of which these are the calls."""
    return [
        Case(action.name, place, fault, arguments=action.arguments)
        for call, place in places_of(calls)
        for fault in faults.of(call)
    ]


class Doing(Protocol):
    """What cases are cases of: its name, and the arguments with which a command does it."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> tuple[str, ...]: ...


class Timed(Protocol):
    """Something that began at a time (CLOCK_MONOTONIC), and what does not hold of it."""

    start_ns: int
    wrong: list[str]


def note_findings(violations: Iterable[Violation], done: Sequence[Timed]) -> Iterator[Violation]:
    """Note violations with what was done when they happened; yield those that belong to nothing, or to too much."""
    begun = [each.start_ns for each in done]
    for violation in violations:
        found = during(violation, begun)
        for number in found:
            done[number].wrong.append(str(violation))
        if not found:
            yield violation
