"""Sweeps: every system call of a reload fails, with each error that it can have, or is where the process dies.

A node serves many cases, traffic running; a case that was not survived is the last of its node, so that what it has
left is not taken for the next one's. After each the node is entirely as before, or as after a reload, packets of every
flow are answered, and the next reload succeeds; what else does not hold is found at the end of the node, and told with
the case during which it happened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from datapath.errors import Cancelled, ReloadlabError
from lab.gates.call import Call
from lab.loaders.protocol import CANCEL
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action, do_gated
from lab.proof.cases import NOT_REACHED, Case, Faults, Trigger, cases_of, note_findings
from lab.proof.denied import Denied
from lab.proof.ended import EndedConnections
from lab.proof.errnos import errnos_of
from lab.proof.left import MIXED, NEW, OLD, not_done, state_after_kill
from lab.proof.settling import Settler
from lab.proof.watched import conclude, unanswered
from lab.scenario.scenario import Scenario
from lab.system.forkpool import WorkerDied
from lab.system.scratch import scratch
from lab.watch import metrics
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.checks.objects import endpoint_files
from lab.watch.invariants import check_files, check_unchanged
from lab.watch.snapshot import take
from lab.watch.violation import Violation

EVERY_ERRNO = Faults(errnos_of)
"""Each call fails with each error that it can have, and is where the process dies."""

CASES = 250
"""How many cases a node serves at most. What happens on it is kept until its end, when it is asked what lost packets
met: up to 200 KB a case, which makes each fork slower."""

_WARNINGS = 11
"""The number of the invariant on warnings."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All cases that were run, what does not hold and belongs to none of them, and what could not be watched.

    `possible` is how many cases there are, of which these were chosen. `blind` says why the traffic on a node could
    have seen nothing at all; empty if it could on each.
    """

    cases: Sequence[Case]
    findings: Sequence[Violation]
    gaps: Sequence[str]
    seconds: float
    possible: int
    blind: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.findings) or not all(case.survived for case in self.cases)

    @property
    def undecided(self) -> str:
        """Why nothing can be said, although all cases were survived; empty if something can."""
        return "" if self.failed else self.blind

    @property
    def holds(self) -> bool:
        return not self.failed and not self.undecided

    @property
    def killed(self) -> dict[str, int]:
        """How many killed processes have left which state (lab.proof.left)."""
        return {state: sum(case.left == state for case in self.cases) for state in (OLD, NEW, MIXED)}

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as a JSON object: how many `cases` were run, how many `survived`, the `failures` in full."""
        return {
            "cases": len(self.cases),
            "possible": self.possible,
            "survived": sum(case.survived for case in self.cases),
            "killed": self.killed,
            "failures": [asdict(case) | {"command": case.command} for case in self.cases if not case.survived],
            "findings": [str(violation) for violation in self.findings],
            "gaps": list(self.gaps),
            "undecided": self.undecided,
            "seconds": round(self.seconds, 3),
        }


class Sweep:
    """Runs cases. A context manager; it makes scenarios by `make`, one by one, each on a node of its own.

    `findings` is what does not hold and belongs to no case, `gaps` what could not be watched, `blind` why the traffic
    on a node could have seen nothing.
    """

    def __init__(self, make: Callable[[], Scenario], faults: Faults, cancel: threading.Event | None = None) -> None:
        self._make = make
        self._faults = faults
        self._cancel = cancel
        self._settler: Settler
        self._stack = ExitStack()
        self._scenario: Scenario | None = None
        self._cases: list[Case] = []
        self._first: Container[tuple[int, int, int]] = ()
        self._denied: Denied | None = None
        self._ended: EndedConnections | None = None
        self.findings: list[Violation] = []
        self.gaps: list[str] = []
        self.blind = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._stack.__exit__(kind, value, tb)
            return
        try:
            self._leave()
        except ReloadlabError as error:
            # What was found before is worth more than the end of the last node.
            self.findings.append(Violation(9, f"a node could not be left as it must be: {error}"))

    def _node(self, action: Action) -> Scenario:
        """Return the scenario on the present node; one on a new node if there is none."""
        scenario = self._scenario
        if scenario is None:
            # A node that is not ready goes again: the next one has its name.
            with ExitStack() as stack:
                scenario = stack.enter_context(self._make())
                if self._faults.cancel:
                    scenario.agent.require(CANCEL, "the cancellation of a reload")
                self._first = metrics.read(scenario.node).hits
                self._cases, self._denied, self._settler = [], Denied.by(scenario), Settler()
                self._ended = EndedConnections(scenario.agent.config.globals)
                self._scenario, self._stack = scenario, stack.pop_all()
        if action.other_path:
            scenario.expect(other_path=True)
        return scenario

    def _leave(self) -> None:
        """End with the present node: check everything that has not been checked yet."""
        scenario, self._scenario = self._scenario, None
        if scenario is None:
            return
        # Whatever fails, the node goes: the next one has its name.
        with self._stack:
            if self._denied is not None:
                self._denied.expect_counted()
            blind = conclude(scenario)
        self.blind = self.blind or blind
        # A reload that goes on although a call has failed warns of it.
        found = [violation for violation in scenario.findings if violation.invariant != _WARNINGS]
        for violation in note_findings(found, self._cases):
            # The node was as it must be until the case that was its last.
            if self._cases and self._cases[-1].wrong:
                self._cases[-1].wrong.append(str(violation))
            elif violation not in self.findings:
                self.findings.append(violation)
        self.gaps += (gap for gap in scenario.gaps if gap not in self.gaps)

    def _warm_up(self, action: Action) -> None:
        """Do it once: the next time, everything is compiled and known."""
        scenario = self._node(action)
        action.prepare(scenario)
        action.do(scenario, self._cancel or threading.Event())

    def calls(self, action: Action) -> list[Call]:
        """Return the calls of an action."""
        self._warm_up(action)
        found, scenario = list[Call](), self._node(action)
        action.prepare(scenario)
        do_gated(scenario, action, found.append, cancel=self._cancel, receives=self._faults.receives)
        return found

    def run(self, action: Action, case: Case) -> None:
        """Run a case, and note what came of it."""
        case.start_ns = time.monotonic_ns()
        try:
            self._run(action, case)
        except ReloadlabError as error:
            self._unless_cancelled(error)
            case.ended = case.ended or NOT_REACHED
            case.wrong.append(f"it could not go on: {error}")
        if case.wrong or len(self._cases) >= CASES:
            self._give_up(case)

    def _run(self, action: Action, case: Case) -> None:
        scenario, trigger = self._begin(action, case), Trigger(case)
        # Nothing is counted here: loads that are gone would fill the map.
        metrics.forget_hits(scenario.node, keep=self._first)
        if self._ended is not None:
            self._ended.forget()
        counted = metrics.read(scenario.node)
        before, files, done = take(scenario.node), endpoint_files(scenario.agent), len(scenario.outcomes)
        case.start_ns = time.monotonic_ns()
        try:
            do_gated(
                scenario,
                action,
                trigger.decide,
                cancel=self._cancel,
                look_ups=case.place.is_look_up,
                receives=self._faults.receives,
            )
        except ReloadlabError as error:
            self._unless_cancelled(error)
            if case.has_killed(error):
                case.ended, case.left = "killed", state_after_kill(scenario.agent, before)
            else:
                case.ended = "cancelled" if isinstance(error, Cancelled) else f"failed: {error}"
                if isinstance(error, WorkerDied):
                    case.wrong.append(str(error))
                if action.whole:
                    case.wrong += map(str, check_unchanged(before, take(scenario.node)))
                    case.wrong += map(str, check_files(files, endpoint_files(scenario.agent)))
        else:
            case.ended = "succeeded"
            action.tell(scenario)
            case.wrong += map(str, not_done(scenario.agent, before, scenario.outcomes[done:]))
        if not trigger.reached:
            case.ended = NOT_REACHED
        # A killed process may have left the device without a program; nothing else may.
        emptied = case.ended == "killed" and action.empties is not None
        self._push(scenario, case, "before the next one", emptied=emptied)
        try:
            action.do(scenario, threading.Event())
        except ReloadlabError as error:
            case.wrong.append(f"the next one failed: {error}")
        self._push(scenario, case, "after the next one")
        case.wrong += map(str, check_mixed_loads(counted, metrics.read(scenario.node)))

    def _begin(self, action: Action, case: Case) -> Scenario:
        """Return the scenario on a node that is ready for a case."""
        if is_new := self._scenario is None:
            self._node(action)
        self._cases.append(case)
        if is_new:
            self._warm_up(action)
        scenario = self._node(action)
        action.prepare(scenario)
        return scenario

    def _give_up(self, case: Case) -> None:
        """Leave the node of a case that was not survived; the next one gets another."""
        try:
            self._leave()
        except ReloadlabError as error:
            self._unless_cancelled(error)
            case.wrong.append(f"the node could not be left as it must be: {error}")

    def _unless_cancelled(self, error: ReloadlabError) -> None:
        """Raise an error that comes of the cancellation of the whole sweep."""
        if self._cancel is not None and self._cancel.is_set():
            raise error

    def _push(self, scenario: Scenario, case: Case, when: str, *, emptied: bool = False) -> None:
        self._settler.settle([scenario.node])
        case.wrong += [f"{flow}: not answered {when}" for flow in unanswered(scenario)]
        if self._denied is not None and not emptied:
            case.wrong += [f"{what} {when}" for what in self._denied.passed()]


def sweep(
    spec: NodeSpec,
    actions: Sequence[Action],
    *,
    faults: Faults = EVERY_ERRNO,
    choose: Callable[[Sequence[Case]], Sequence[Case]] = lambda cases: cases,
    on_case: Callable[[Case], object] = lambda case: None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> SweepResult:
    """Run the cases of actions on nodes of their own; `choose` picks them, `on_case` hears of each at its end.

    `options` go to the Scenarios. Cancelled by `cancel`.
    """
    started, done, possible = time.monotonic(), list[Case](), 0
    with scratch() as templates:
        options = {"templates": templates, **options}
        with Sweep(lambda: Scenario(spec, bursts="none", rate=RATE, **options), faults, cancel) as runner:
            for action in actions:
                try:
                    cases = cases_of(action, runner.calls(action), faults)
                except Cancelled:
                    raise
                except ReloadlabError as error:
                    # Without a case it is what the call asks for that cannot be done.
                    if not done:
                        raise
                    runner.findings.append(Violation(8, f"{action.name} failed without a fault: {error}"))
                    continue
                possible += len(cases)
                for case in choose(cases):
                    runner.run(action, case)
                    done.append(case)
                    on_case(case)
    return SweepResult(done, runner.findings, runner.gaps, time.monotonic() - started, possible, runner.blind)
