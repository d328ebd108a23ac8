"""A scenario: a node of its own, loaded once, traffic running, and all invariants checked when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from datapath.errors import ReloadlabError
from datapath.outcome import Outcome
from datapath.plan import Step
from datapath.workspace import Workspace
from lab.agent import Agent, Failure
from lab.flows import Flow
from lab.invariants import Baseline, Expected, Violation, baseline, check, unchanged
from lab.node import Node
from lab.snapshot import take
from lab.topology import HEALTH, NODE, OUTSIDE, NodeSpec
from lab.traffic import Traffic, TrafficReport

RATE = 2000.0
"""Packets a second over all flows: one every 0.5 ms, a few for each of the slower steps of a reload."""


class InvariantsViolated(ReloadlabError):
    """A scenario after which something does not hold; `violations` lists all of it."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(["invariants violated:", *(f"  {v}" for v in violations)]))
        self.violations = tuple(violations)

    @property
    def invariants(self) -> frozenset[int]:
        return frozenset(violation.invariant for violation in self.violations)


class Gate:
    """Stops a reload before or after a step, and does something there: `Gate(do, before="commit")`.

    `do` gets the step and the reload's workspace; what it raises makes the reload fail. "*" stands for every step;
    `target` narrows the gate to one interface or object, `nth` to one of the times that it is passed, from 0 on.
    """

    def __init__(
        self,
        do: Callable[[Step, Workspace], object],
        *,
        before: str | None = None,
        after: str | None = None,
        target: str | None = None,
        nth: int | None = None,
    ) -> None:
        self.passed = 0
        self._do = do
        self._before, self._after, self._target, self._nth = before, after, target, nth

    def before(self, step: Step, work: Workspace) -> None:
        self._pass(self._before, step, work)

    def after(self, step: Step, work: Workspace) -> None:
        self._pass(self._after, step, work)

    def _pass(self, name: str | None, step: Step, work: Workspace) -> None:
        if name in (step.name, "*") and self._target in (None, step.target):
            self.passed += 1
            if self._nth in (None, self.passed - 1):
                self._do(step, work)


class Scenario:
    """A context manager. Leaving it without an exception checks every invariant and raises InvariantsViolated.

    `flows` run all the time; by default between the pods, the host, the health endpoint and the outside, UDP and TCP,
    IPv4 and IPv6. `options` go to the Agent. `outcomes` are the reloads after the first of everything.
    """

    def __init__(
        self,
        spec: NodeSpec,
        *,
        flows: Callable[[Node], Sequence[Flow]] | None = None,
        rate: float = RATE,
        **options: Any,
    ) -> None:
        self._spec = spec
        self._flows = flows or default_flows
        self._rate = rate
        self._options = options
        self._stack = ExitStack()
        self._expected = Expected()
        self._abandoned = False
        self.outcomes: list[Outcome] = []
        self.violations: list[Violation] = []
        self.report: TrafficReport | None = None
        self.node: Node
        self.agent: Agent
        self.traffic: Traffic
        self._before: Baseline

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.node = stack.enter_context(Node(self._spec))
            self.agent = stack.enter_context(Agent(self.node, **self._options))
            self.agent.start(workers=2)
            self.traffic = stack.enter_context(Traffic(self._flows(self.node), rate=self._rate))
            self.traffic.start()
            self._before = baseline(self.agent)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if kind is None and not self._abandoned:
                self.finish()

    def finish(self) -> None:
        """Stop the traffic and check everything; once. Called when the block ends."""
        if self.report is not None:
            return
        self.report = self.traffic.stop()
        self.violations += check(self.agent, self._before, expected=self._expected, traffic=self.report)
        if self.violations:
            raise InvariantsViolated(self.violations)

    def abandon(self) -> None:
        """Check nothing when the block ends: the scenario has failed already, by itself."""
        self._abandoned = True

    def expect(self, **changes: Any) -> None:
        """Say what this scenario does on purpose: fields of invariants.Expected."""
        self._expected = replace(self._expected, **changes)

    def reload(self, *subjects: str, gate: Gate | None = None, cancel: threading.Event | None = None) -> list[Outcome]:
        """Reload these endpoints, one after the other; all if none is named."""
        done = [self.agent.reload(subject, observer=gate, cancel=cancel) for subject in subjects or self.agent.subjects]
        self.outcomes += done
        return done

    def reload_parallel(self, subjects: Iterable[str], *, workers: int) -> list[Outcome]:
        """Reload in parallel; the first failure is raised when all are done."""
        results = self.agent.reload_many(subjects, workers=workers)
        done = [result for result in results if isinstance(result, Outcome)]
        self.outcomes += done
        for result in results:
            if isinstance(result, Failure):
                raise result.error
        return done

    def set_endpoint_routes(self, on: bool) -> None:
        """Switch the whole node to the other routing mode while traffic runs."""
        self.expect(other_path=True)
        self.outcomes += self.agent.set_endpoint_routes(on, workers=2)

    def reload_fails(
        self,
        subject: str,
        error: type[ReloadlabError],
        *,
        gate: Gate | None = None,
        cancel: threading.Event | None = None,
    ) -> ReloadlabError:
        """Reload, expecting this error, and hold the reload to it: the node must be as before. Returns the error."""
        before = take(self.node)
        try:
            self.agent.reload(subject, observer=gate, cancel=cancel)
        except error as raised:
            self.violations += unchanged(before, take(self.node))
            return raised
        raise AssertionError(f"reload of {subject} succeeded, {error.__name__} expected")


def default_flows(node: Node) -> list[Flow]:
    """Return UDP both ways and TCP, IPv4 and IPv6, between all kinds of endpoints of a node."""
    spec, pods = node.spec, node.pods
    ends = {
        "host": (NODE, spec.router4, spec.router6),
        "outside": (OUTSIDE, spec.outside4.ip, spec.outside6.ip),
        **{p.name: (p.name, p.ipv4, p.ipv6) for p in (node.facts.health, *pods)},
    }
    pairs = [(pods[0].name, pods[-1].name)] if len(pods) > 1 else []
    pairs += [(pods[0].name, "outside"), ("outside", pods[0].name), ("host", pods[0].name), (pods[0].name, HEALTH)]
    flows = []
    for source, target in pairs:
        for version in (1, 2):
            path = Flow(
                name=f"{source} -> {target} udp v{'46'[version - 1]}",
                source_ns=str(node.netns(ends[source][0])),
                source_ip=str(ends[source][version]),
                target_ns=str(node.netns(ends[target][0])),
                target_ip=str(ends[target][version]),
            )
            flows += [path, replace(path, name=path.name.replace("udp", "tcp"), protocol="tcp", port=7008)]
    return flows
