"""Sweeps: every system call of a reload fails, with each error that it can have, or is where the process dies.

One node serves all cases, traffic running. After each the node is entirely as before, or as after a reload, packets of
every flow are answered, and the next reload succeeds; what else does not hold is found at the end, and told with the
case during which it happened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from datapath.errors import Cancelled, ReloadlabError
from lab.gates.call import Call
from lab.loaders.protocol import CANCEL, LoaderDied
from lab.node.topology import NodeSpec
from lab.proof.action import RATE, Action, do_gated
from lab.proof.cases import KILL, NOT_REACHED, Case, Faults, Trigger, cases_of, note_findings
from lab.proof.errnos import errnos_of
from lab.scenario.scenario import Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.system.forkpool import WorkerDied
from lab.watch import metrics
from lab.watch.checks.mixed_loads import check_mixed_loads
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import take
from lab.watch.violation import Violation

EVERY_ERRNO = Faults(errnos_of)
"""Each call fails with each error that it can have, and is where the process dies."""

_TIMEOUT = 0.5
"""Seconds in which a packet of every flow is answered after a case."""

_WARNINGS = 11
"""The number of the invariant on warnings."""


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
            "failures": [asdict(case) | {"command": case.command} for case in self.cases if not case.survived],
            "findings": [str(violation) for violation in self.findings],
            "gaps": list(self.gaps),
            "seconds": round(self.seconds, 3),
        }


class Sweep:
    """Runs cases on a scenario's node."""

    def __init__(self, scenario: Scenario, cancel: threading.Event | None = None) -> None:
        self._scenario = scenario
        self._cancel = cancel
        self._first = metrics.read(scenario.node).hits

    def calls(self, action: Action) -> list[Call]:
        """Return the calls of an action, which is done twice: the second time, everything is compiled and known."""
        found: list[Call] = []
        action.prepare(self._scenario)
        action.do(self._scenario, self._cancel or threading.Event())
        action.prepare(self._scenario)
        do_gated(self._scenario, action, found.append, cancel=self._cancel)
        return found

    def run(self, action: Action, case: Case) -> None:
        """Run a case, and note what came of it."""
        scenario, trigger = self._scenario, Trigger(case)
        # Nothing is counted here: loads that are gone would fill the map.
        metrics.forget_hits(scenario.node, keep=self._first)
        counted = metrics.read(scenario.node)
        action.prepare(scenario)
        before = take(scenario.node)
        case.start_ns = time.monotonic_ns()
        try:
            do_gated(scenario, action, trigger.decide, cancel=self._cancel, look_ups=case.place.is_look_up)
            case.ended = "succeeded"
        except WorkerDied:
            case.ended = "killed"
        except ReloadlabError as error:
            if self._cancel is not None and self._cancel.is_set():
                raise
            if case.fault == KILL and isinstance(error, LoaderDied) and error.killed:
                case.ended = "killed"
            else:
                case.ended = "cancelled" if isinstance(error, Cancelled) else f"failed: {error}"
                if action.whole:
                    case.wrong += [str(violation) for violation in check_unchanged(before, take(scenario.node))]
        if not trigger.reached:
            case.ended = NOT_REACHED
        self._push(case, "not answered before the next one")
        try:
            action.do(scenario, threading.Event())
        except ReloadlabError as error:
            case.wrong.append(f"the next one failed: {error}")
        self._push(case, "not answered after the next one")
        case.wrong += map(str, check_mixed_loads(counted, metrics.read(scenario.node)))

    def _push(self, case: Case, what: str) -> None:
        bursts = self._scenario.traffic.burst_all(1, timeout=_TIMEOUT)
        # What arrives of a denied flow is found when the traffic ends.
        case.wrong += [f"{burst.flow}: {what}" for burst in bursts if not burst.complete and not burst.denied]


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
    """Run the cases of actions on a node of their own; `choose` picks them, `on_case` hears of each at its end.

    `options` go to the Scenario. Cancelled by `cancel`.
    """
    started, done = time.monotonic(), list[Case]()
    scenario = Scenario(spec, bursts="none", rate=RATE, **options)
    with scenario:
        if faults.cancel:
            scenario.agent.require(CANCEL, "the cancellation of a reload")
        runner = Sweep(scenario, cancel)
        for action in actions:
            if action.other_path:
                scenario.expect(other_path=True)
            for case in choose(cases_of(action, runner.calls(action), faults)):
                runner.run(action, case)
                done.append(case)
                on_case(case)
        scenario.expect(migrated=frozenset(name for outcome in scenario.outcomes for name in outcome.migrated))
        with suppress(InvariantsViolated):
            scenario.finish()
        scenario.abandon()
    # A reload that goes on although a call has failed warns of it.
    found = [violation for violation in scenario.findings if violation.invariant != _WARNINGS]
    rest = list(note_findings(found, done))
    return SweepResult(done, rest, scenario.gaps, time.monotonic() - started)
