"""A scenario: nodes of its own, loaded once, traffic running, and all invariants checked when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent, Failure
from lab.agent.cluster import Cluster
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.traffic.defaults import RATE, cluster_flows, default_flows
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.traffic import Traffic, TrafficReport
from lab.watch.invariants import (
    Baseline,
    Expected,
    baseline,
    check,
    check_traffic,
    check_unchanged,
    check_warnings,
    count_solicitations,
)
from lab.watch.snapshot import take
from lab.watch.violation import Violation


class InvariantsViolated(ReloadlabError):
    """A scenario after which something does not hold; `violations` lists all of it."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(["invariants violated:", *(f"  {v}" for v in violations)]))
        self.violations = tuple(violations)

    @property
    def invariants(self) -> frozenset[int]:
        return frozenset(violation.invariant for violation in self.violations)


class BadGate(ReloadlabError):
    """A gate that names no step."""


class GateNeverFired(ReloadlabError):
    """A reload that never called the function of its gate; `gate` says which, `steps` are those that it passed."""

    def __init__(self, gate: Gate, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        end = "" if cause is None else f", then it failed: {cause}"
        passed = ", ".join(gate.steps) or "none"
        super().__init__(f"{gate} never fired; the steps of the reload of {', '.join(names)} were {passed}{end}")
        self.gate = gate
        self.steps = tuple(gate.steps)


class Gate:
    """Stops a reload before or after a step, and does something there: `Gate(do, before="commit")`.

    `do` gets the step and the reload's workspace; what it raises makes the reload fail. "*" stands for every step;
    `target` narrows the gate to one interface or object, `nth` to one of the times that it is passed, from 0 on.
    A scenario's reload raises GateNeverFired if `do` was never called, unless the gate is `optional`.
    """

    def __init__(
        self,
        do: Callable[[Step, Workspace], object],
        *,
        before: str | None = None,
        after: str | None = None,
        target: str | None = None,
        nth: int | None = None,
        optional: bool = False,
    ) -> None:
        if before is None and after is None:
            raise BadGate('a gate names a step: give before="commit", after="commit" or both; "*" is every step')
        self.passed = 0
        self.steps: dict[str, None] = {}
        self._fired = False
        self._optional = optional
        self._do = do
        self._before, self._after, self._target, self._nth = before, after, target, nth

    def __str__(self) -> str:
        options = {"before": self._before, "after": self._after, "target": self._target, "nth": self._nth}
        return f"Gate({', '.join(f'{name}={value!r}' for name, value in options.items() if value is not None)})"

    def check_fired(self, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        """Raise GateNeverFired if it should have; `cause` is why the reload of `names` failed."""
        if not self._fired and not self._optional:
            raise GateNeverFired(self, names, cause) from cause

    def before(self, step: Step, work: Workspace) -> None:
        self.steps[" ".join(step.key)] = None
        self._pass(self._before, step, work)

    def after(self, step: Step, work: Workspace) -> None:
        self._pass(self._after, step, work)

    def _pass(self, name: str | None, step: Step, work: Workspace) -> None:
        if name in (step.name, "*") and self._target in (None, step.target):
            self.passed += 1
            if self._nth in (None, self.passed - 1):
                self._fired = True
                self._do(step, work)


class Watched:
    """What is common to a scenario on one node and on several: traffic over them, and the checks at the end.

    A context manager. Leaving it without an exception checks every invariant on every node and raises
    InvariantsViolated. `phases` are the reports of its traffic: one, and one more for each pause.
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
        self._finished = False
        self._paused = False
        self.traffic: Traffic
        self._before: tuple[tuple[Agent, Baseline], ...]

    def _watch(self, stack: ExitStack, agents: Sequence[Agent], flows: Sequence[Flow]) -> None:
        """Start the traffic, remember how everything is, and keep what `stack` holds until the scenario ends."""
        self.traffic = stack.enter_context(Traffic(flows, rate=self._rate))
        self._before = tuple((agent, baseline(agent, count_solicitations(stack, agent))) for agent in agents)
        for agent in agents:
            agent.on_outcome = partial(self._note, agent.node.name)
        self._stack = stack.pop_all()

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
            found = check(agent, before, expected=expected, outcomes=outcomes)
            found += check_warnings(outcomes, expected)
            self.violations += found if len(self._before) == 1 else [v.on(name) for v in found]
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


class Scenario(Watched):
    """A scenario on one node.

    `flows` run all the time; by default between the pods, the host, the health endpoint and the outside, UDP and TCP,
    IPv4 and IPv6. `options` go to the Agent.
    """

    def __init__(
        self,
        spec: NodeSpec,
        *,
        flows: Callable[[Node], Sequence[Flow]] | None = None,
        rate: float = RATE,
        **options: Any,
    ) -> None:
        super().__init__(rate)
        self._spec = spec
        self._flows = flows or default_flows
        self._options = options
        self.node: Node
        self.agent: Agent

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.node = stack.enter_context(Node(self._spec))
            self.agent = stack.enter_context(Agent(self.node, **self._options))
            self.agent.start(workers=2)
            self._watch(stack, [self.agent], self._flows(self.node))
        return self

    def define(self, **macros: str) -> None:
        """Add these macros to the initial ones for later reloads; without arguments, restore the initial macros."""
        self.agent.configure(defines=(*self._options.get("defines", ()), *macros.items()))

    def reload(self, *subjects: str, gate: Gate | None = None, cancel: threading.Event | None = None) -> list[Outcome]:
        """Reload these endpoints, one after the other; all if none is named."""
        names = subjects or self.agent.subjects
        done = [self.agent.reload(subject, observer=gate, cancel=cancel) for subject in names]
        if gate is not None:
            gate.check_fired(names)
        return done

    def reload_parallel(self, subjects: Iterable[str], *, workers: int) -> list[Outcome]:
        """Reload in parallel; the first failure is raised when all are done."""
        results = self.agent.reload_many(subjects, workers=workers)
        for result in results:
            if isinstance(result, Failure):
                raise result.error
        return [result for result in results if isinstance(result, Outcome)]

    def set_endpoint_routes(self, on: bool) -> None:
        """Switch the whole node to the other routing mode while traffic runs."""
        self.expect(other_path=True)
        self.agent.set_endpoint_routes(on, workers=2)

    def reload_fails(
        self,
        subject: str,
        error: type[ReloadlabError],
        *,
        gate: Gate | None = None,
        cancel: threading.Event | None = None,
    ) -> ReloadlabError:
        """Reload, expecting this error, and hold the reload to it: the node must be as before. Returns the error.

        A gate must fire before the error: behind it, the gate would test nothing.
        """
        __tracebackhide__ = True
        before = take(self.node)
        try:
            self.agent.reload(subject, observer=gate, cancel=cancel)
        except error as raised:
            self.violations += check_unchanged(before, take(self.node))
            if gate is not None:
                gate.check_fired([subject], raised)
            return raised
        if gate is not None:
            gate.check_fired([subject])
        raise AssertionError(f"reload of {subject} succeeded, {error.__name__} expected")


class ClusterScenario(Watched):
    """A scenario on several nodes: `cluster` has them; what lives on one is named such as 2/pod-1.

    By default traffic runs across the nodes, between all kinds of endpoints, both ways; on a single node as in a
    Scenario. `options` go to every Agent.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        *,
        flows: Callable[[Cluster], Sequence[Flow]] | None = None,
        rate: float = RATE,
        **options: Any,
    ) -> None:
        super().__init__(rate)
        self._flows = flows or _flows_of
        self.cluster = Cluster(specs, **options)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            self.cluster.start(workers=2)
            self._watch(stack, self.cluster.agents, self._flows(self.cluster))
        return self

    def expect_on(self, number: int, **changes: Any) -> None:
        """Declare the intended effects on one node, in addition to what `expect` has declared for all nodes so far."""
        name = self.cluster.node(number).name
        self._expected_on[name] = self._expected_on.get(name, self._expected).and_also(**changes)

    def reload(self, *names: str, gate: Gate | None = None) -> list[Outcome]:
        """Reload these, such as 2/pod-1, one after the other; everything on all nodes if none is named."""
        subjects = names or self.cluster.subjects
        done = [self.cluster.reload(name, observer=gate) for name in subjects]
        if gate is not None:
            gate.check_fired(subjects)
        return done

    def silence(self, *, count: int = 3, flows: Sequence[str] | None = None) -> list[str]:
        """Send a burst over all flows, or these; return those in which not every packet is answered."""
        return [str(burst) for burst in self.traffic.burst_all(count, flows) if not burst.complete]


def _flows_of(cluster: Cluster) -> list[Flow]:
    return cluster_flows(cluster.nodes) if len(cluster.nodes) > 1 else default_flows(cluster.nodes[0])
