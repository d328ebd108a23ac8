"""Sweeps: every system call of a reload fails, with each error that it can have, or is where the process dies.

One node serves all cases, traffic running. After each the node is entirely as before, or as after a reload, packets of
every flow are answered, and the next reload succeeds; what else does not hold is found at the end, and told with the
case during which it happened.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from datapath.errors import Cancelled, ReloadlabError
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Fail, Kill
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action, do_gated
from lab.proof.errnos import errnos_of
from lab.scenario.scenario import Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.system.forkpool import WorkerDied
from lab.watch import metrics
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import take
from lab.watch.violation import Violation

_TIMEOUT = 0.5
"""Seconds in which a packet of every flow is answered after a case."""

_WARNINGS = 11
"""The invariant on warnings: a reload that goes on although a call has failed says so."""

KILL = "SIGKILL"


@dataclass(frozen=True, slots=True)
class Place:
    """A call on any node: the `nth`, from 1, that fits a pattern."""

    pattern: str
    nth: int

    def fits(self, pattern: str) -> bool:
        """Tell whether a pattern chooses this call."""
        return self.pattern == pattern or fnmatchcase(self.pattern, pattern.replace("[", "[[]"))


@dataclass(slots=True)
class Case:
    """A call that fails with an errno (its name), or at which the process is killed (KILL), and what came of it.

    `ended` says how: `failed: ...`, `succeeded`, `killed`, or `not reached` if the call did not come. `wrong` is what
    does not hold, empty if the case was survived. `start_ns` is when it began (CLOCK_MONOTONIC).
    """

    what: str
    place: Place
    fault: str
    ended: str = ""
    wrong: list[str] = field(default_factory=list)
    start_ns: int = 0

    @property
    def survived(self) -> bool:
        return not self.wrong and self.ended != "not reached"

    @property
    def title(self) -> str:
        return f"{self.what}, {self.place.pattern} ({self.place.nth}): {self.fault}"


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All cases, what does not hold and belongs to none of them, and what could not be watched."""

    cases: Sequence[Case]
    findings: Sequence[Violation]
    gaps: Sequence[str]
    seconds: float

    @property
    def holds(self) -> bool:
        return all(case.survived for case in self.cases) and not self.findings

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as a JSON object: `cases`, how many were `survived`, and the `failures` in full."""
        return {
            "cases": len(self.cases),
            "survived": sum(case.survived for case in self.cases),
            "failures": [asdict(case) for case in self.cases if not case.survived],
            "findings": [str(violation) for violation in self.findings],
            "gaps": list(self.gaps),
            "seconds": round(self.seconds, 3),
        }


def cases_of(
    action: Action, calls: Sequence[Call], errnos: Callable[[Call], Sequence[int]], *, kill: bool
) -> list[Case]:
    """Return the cases of an action, of which these are the calls."""
    seen: Counter[str] = Counter()
    cases = []
    for call in calls:
        seen[call.pattern] += 1
        place = Place(call.pattern, seen[call.pattern])
        faults = [errno.errorcode[number] for number in errnos(call)] + ([KILL] if kill else [])
        cases += [Case(action.name, place, fault) for fault in faults]
    return cases


class Sweep:
    """Runs cases on a scenario's node."""

    def __init__(self, scenario: Scenario, cancel: threading.Event | None = None) -> None:
        self._scenario = scenario
        self._cancel = cancel

    def calls(self, action: Action) -> list[Call]:
        """Return the calls of an action, which is done."""
        found: list[Call] = []
        do_gated(self._scenario, action, found.append, cancel=self._cancel)
        return found

    def run(self, action: Action, case: Case) -> None:
        """Run a case, and note what came of it."""
        scenario, place, seen = self._scenario, case.place, Counter[str]()
        reached = False

        def decide(call: Call) -> Answer:
            nonlocal reached
            seen[call.pattern] += 1
            if reached or call.pattern != place.pattern or seen[call.pattern] != place.nth:
                return None
            reached = True
            return Kill() if case.fault == KILL else Fail(getattr(errno, case.fault))

        before, counted = take(scenario.node), metrics.read(scenario.node)
        case.start_ns = time.monotonic_ns()
        try:
            do_gated(scenario, action, decide, cancel=self._cancel)
            case.ended = "succeeded"
        except WorkerDied:
            case.ended = "killed"
        except Cancelled:
            raise
        except ReloadlabError as error:
            case.ended = f"failed: {error}"
            case.wrong += [str(violation) for violation in check_unchanged(before, take(scenario.node))]
        if not reached:
            case.ended = "not reached"
        try:
            action.do(scenario, threading.Event())
        except ReloadlabError as error:
            case.wrong.append(f"the next one failed: {error}")
        bursts = scenario.traffic.burst_all(1, timeout=_TIMEOUT)
        case.wrong += [f"{burst.flow}: not answered afterwards" for burst in bursts if not burst.complete]
        case.wrong += map(str, check_mixed_loads(counted, metrics.read(scenario.node)))


def sweep(
    spec: NodeSpec,
    actions: Sequence[Action],
    *,
    errnos: Callable[[Call], Sequence[int]] = errnos_of,
    kill: bool = True,
    choose: Callable[[Sequence[Case]], Sequence[Case]] = lambda cases: cases,
    on_case: Callable[[Case], object] = lambda case: None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> SweepResult:
    """Run the cases of actions on a node of their own; `choose` picks them, `on_case` hears of each at its end.

    `options` go to the Scenario. Cancelled by `cancel`.
    """
    started, done = time.monotonic(), list[Case]()
    scenario = Scenario(spec, bursts="none", rate=RATE, **options)
    with scenario:
        runner = Sweep(scenario, cancel)
        for action in actions:
            for case in choose(cases_of(action, runner.calls(action), errnos, kill=kill)):
                runner.run(action, case)
                done.append(case)
                on_case(case)
        with suppress(InvariantsViolated):
            scenario.finish()
        scenario.abandon()
    rest = list(_unplaced(scenario.findings, done))
    return SweepResult(done, rest, scenario.gaps, time.monotonic() - started)


def _unplaced(violations: Sequence[Violation], cases: Sequence[Case]) -> Iterator[Violation]:
    """Note violations with the cases during which they happened; yield those that belong to none."""
    for violation in violations:
        if violation.invariant == _WARNINGS:
            continue
        found = {case.start_ns: case for at in violation.at if (case := _during(cases, at)) is not None}
        for case in found.values():
            case.wrong.append(str(violation))
        if not found:
            yield violation


def _during(cases: Sequence[Case], at_ns: int) -> Case | None:
    return next((case for case in reversed(cases) if case.start_ns <= at_ns), None)
