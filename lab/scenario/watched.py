"""Nodes under watch: traffic over them, their state before, and all checks at the end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from lab.agent.agent import Agent
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import Traffic
from lab.watch.checks.kernel_log import check_kernel_log
from lab.watch.drops import Drops
from lab.watch.invariants import (
    Baseline,
    Expected,
    baseline,
    check,
    check_kernel_drops,
    check_traffic,
    check_warnings,
)
from lab.watch.kernel_log import KernelLog, KernelLogUnavailable
from lab.watch.violation import Violation


class InvariantsViolated(ReloadlabError):
    """A scenario after which something does not hold; `violations` lists all of it."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(["invariants violated:", *(f"  {v}" for v in violations)]))
        self.violations = tuple(violations)

    @property
    def invariants(self) -> frozenset[int]:
        return frozenset(violation.invariant for violation in self.violations)


class Watched:
    """What is common to a scenario on one node and on several: traffic over them, and the checks at the end.

    A context manager. Leaving it without an exception checks every invariant on every node and raises
    InvariantsViolated. `phases` are the reports of its traffic: one, and one more for each pause. `agents` are the
    agents of its nodes, in the nodes' order, once it is up. `gaps` says what could not be watched.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._stack = ExitStack()
        self._expected = Expected()
        self._expected_on: dict[str, Expected] = {}
        self._abandoned = False
        self._outcomes: list[tuple[str, Outcome]] = []
        self.violations: list[Violation] = []
        self.phases: list[TrafficReport] = []
        self.gaps: list[str] = []
        self._finished = False
        self._paused = False
        self.agents: tuple[Agent, ...] = ()
        self.traffic: Traffic
        self.kernel_log = KernelLog()
        self.drops: Drops
        self._before: tuple[tuple[Agent, Baseline], ...]

    def _watch(self, stack: ExitStack, agents: Sequence[Agent], flows: Sequence[Flow]) -> None:
        """Start the traffic, remember how everything is, and keep what `stack` holds until the scenario ends."""
        self.traffic = stack.enter_context(Traffic(flows, rate=self._rate))
        self.agents = tuple(agents)
        self.drops = stack.enter_context(Drops([agent.node for agent in agents], flows))
        try:
            stack.enter_context(self.kernel_log)
        except KernelLogUnavailable as error:
            self.gaps.append(f"the kernel's log is not read: {error}")
        self._before = tuple((agent, baseline(agent)) for agent in agents)
        for agent in agents:
            agent.on_outcome = partial(self._note, agent.node.name)
        self._stack = stack.pop_all()

    def _succeed(self, old: Agent, new: Agent) -> None:
        """Watch an agent that takes the place of another, on the same node."""
        new.take_over(old)
        self.agents = tuple(new if agent is old else agent for agent in self.agents)
        self._before = tuple((new if agent is old else agent, before) for agent, before in self._before)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if kind is None and not self._abandoned:
                self.finish()

    def finish(self) -> None:
        """Stop the traffic and check everything; once. Called when the block ends."""
        __tracebackhide__ = True
        if self._finished:
            return
        self._finished = True
        self.pause()
        if self._rate > 0 and self.sent == 0:
            self.violations.append(Violation(7, "no packet was sent; a scenario without traffic has rate=0"))
        for agent, before in self._before:
            name = agent.node.name
            expected = self._expected_on.get(name, self._expected)
            outcomes = [outcome for node, outcome in self._outcomes if node == name]
            found = check(agent, before, expected=expected, outcomes=outcomes, drops=self.drops)
            found += check_warnings(outcomes, expected)
            self.violations += found if len(self._before) == 1 else [v.on(name) for v in found]
        dropped = self.drops.read()
        self.gaps += dropped.gaps
        self.violations += check_kernel_drops(dropped, self.phases, self._expected)
        self.violations += check_kernel_log(self.kernel_log)
        if self.violations:
            raise InvariantsViolated(self.violations)

    def _note(self, node: str, outcome: Outcome) -> None:
        self._outcomes.append((node, outcome))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The reloads since the scenario began, whoever asked the agents for them, in the order of their ends."""
        return tuple(outcome for _, outcome in self._outcomes)

    @property
    def sent(self) -> int:
        """Packets of the traffic until it was last stopped, all phases together."""
        return sum(report.sent for report in self.phases)

    @property
    def lost(self) -> int:
        """Those of them that were lost."""
        return sum(report.lost for report in self.phases)

    def pause(self) -> None:
        """Stop the traffic, before something that interrupts it say; what has gone wrong until then is remembered."""
        if self._paused:
            return
        self._paused = True
        self.phases.append(self.traffic.stop())
        self.violations += check_traffic(self.phases[-1], self._expected)

    def resume(self) -> None:
        """Start the traffic anew after a pause, with new connections."""
        if not self._paused:
            raise TrafficError("the traffic is not paused")
        self._paused = False
        self.traffic = self._stack.enter_context(Traffic(self.traffic.flows, rate=self._rate))

    def abandon(self) -> None:
        """Check nothing when the block ends: the scenario has failed already, by itself."""
        self._abandoned = True

    def expect(self, **changes: Any) -> None:
        """Say what this scenario does on purpose: fields of invariants.Expected; on every node."""
        self._expected = self._expected.and_also(**changes)
