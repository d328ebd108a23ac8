"""A scenario: nodes of its own, loaded once, traffic running, and all invariants checked when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from lab.agent.agent import Agent, Failure
from lab.agent.cluster import Cluster
from lab.loaders.command import given_loader
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.flowpolicy import PolicyOption
from lab.scenario.gate import Gate
from lab.scenario.gated import reload_at
from lab.scenario.stepping import Bursts
from lab.scenario.watched import Watched
from lab.traffic.defaults import RATE, cluster_flows, default_flows
from lab.traffic.flows import Flow
from lab.watch.invariants import OF_FLOWS, BadExpectation


class Scenario(Watched):
    """A scenario on one node.

    `flows` run all the time; by default between the pods, the host, the health endpoint and the outside, UDP and TCP,
    IPv4 and IPv6. Unless `policy` is None, a policy lets exactly these flows pass. `bursts` says which reloads stop
    after each step until a packet of every flow is answered: "first" of each kind, "all" or "none". `options` go to the
    Agent. Entering it raises NotSupported if one of the `needed_macros` does not reach the loader's programs.
    """

    def __init__(
        self,
        spec: NodeSpec,
        *,
        flows: Callable[[Node], Sequence[Flow]] | None = None,
        rate: float = RATE,
        bursts: Bursts = "first",
        policy: PolicyOption = "flows",
        needed_macros: Collection[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(rate=rate, bursts=bursts, policy=policy)
        self._spec = spec
        self._flows = flows or default_flows
        self._needed_macros = needed_macros
        self.options = options
        self.node: Node
        self.agent: Agent

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.node = stack.enter_context(Node(self._spec))
            self.agent = stack.enter_context(Agent(self.node, **self.options))
            self.agent.require_reached(self._needed_macros)
            self._history.hear_first_loads([self.agent])
            self.agent.start()
            self._watch(stack, [self.agent], self._flows(self.node))
        return self

    def restart(self, *, workers: int = 2, last: Sequence[str] = ()) -> list[Outcome]:
        """End the agent and start another with the same options; return what that has reloaded, `last` at its end.

        The new one knows only what is on the node; changes by `define` and `Agent.configure` are gone.
        """
        kind = type(self.agent)
        self.agent = self._replace(self.agent, lambda: kind(self.node, **self.options))
        restored = self.agent.restore(workers=workers, last=last)
        if self.agent.external is None:
            assert not restored.anew, restored.anew
        return list(restored.outcomes)

    def upgrade(self, *, workers: int = 2, last: Sequence[str] = (), **options: Any) -> list[Outcome]:
        """Restart with other options of the agent, such as `library`, `loader` and `defines`; those not given stay.

        Maps may be replaced by it, but their content stays. So an upgrade and its downgrade are two calls.
        """
        self.options = {**self.options, **_given(options)}
        outcomes = self.restart(workers=workers, last=last)
        self.expect_upgraded(self.agent, _migrated(outcomes))
        return outcomes

    def define(self, **macros: str) -> None:
        """Add these macros to the initial ones for later reloads; without arguments, restore the initial macros.

        NotSupported if the loader compiles by itself.
        """
        if macros:
            self.agent.require_macros()
        self.agent.configure(defines=(*self.options.get("defines", ()), *macros.items()))

    def reload(self, *subjects: str, gate: Gate | None = None, cancel: threading.Event | None = None) -> list[Outcome]:
        """Reload these endpoints, one after the other; all if none is named."""
        names = subjects or self.agent.subjects
        done = [reload_at(self.noted(gate), self.agent, subject, cancel=cancel) for subject in names]
        self.check_fired(gate, names)
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
        at = self.noted(gate)
        return self._fails([subject], lambda: reload_at(at, self.agent, subject, cancel=cancel), error, gate)


class ClusterScenario(Watched):
    """A scenario on several nodes: `cluster` has them; what lives on one is named such as 2/pod-1.

    By default traffic runs across the nodes, between all kinds of endpoints, both ways; on a single node as in a
    Scenario. `policy`, `bursts` and `needed_macros` are those of a Scenario. `options` go to every Agent.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        *,
        flows: Callable[[Cluster], Sequence[Flow]] | None = None,
        rate: float = RATE,
        bursts: Bursts = "first",
        policy: PolicyOption = "flows",
        needed_macros: Collection[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(rate=rate, bursts=bursts, policy=policy)
        self._flows = flows or _flows_of
        self._needed_macros = needed_macros
        self.options = options
        self.cluster = Cluster(specs, **options)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            for agent in self.cluster.agents:
                agent.require_reached(self._needed_macros)
            self._history.hear_first_loads(self.cluster.agents)
            self.cluster.start()
            self._watch(stack, self.cluster.agents, self._flows(self.cluster))
        return self

    def expect_on(self, number: int, **changes: Any) -> None:
        """Declare the intended effects on one node, in addition to what `expect` has declared for all nodes so far.

        BadExpectation for what is expected of flows: those are of no single node.
        """
        for name in OF_FLOWS:
            if name in changes:
                raise BadExpectation(f"{name} is expected of flows, which are of no single node: say it with expect()")
        name = self.cluster.node(number).name
        self._expected_on[name] = self._expected_on.get(name, self._expected).and_also(**changes)

    def reload(self, *names: str, gate: Gate | None = None) -> list[Outcome]:
        """Reload these, such as 2/pod-1, one after the other; everything on all nodes if none is named."""
        subjects = names or self.cluster.subjects
        done = [reload_at(self.noted(gate), *self.cluster.find(name)) for name in subjects]
        self.check_fired(gate, subjects)
        return done

    def upgrade(self, number: int, *, workers: int = 2, last: Sequence[str] = (), **options: Any) -> list[Outcome]:
        """Start another agent on one node, with other options than all began with, as Scenario.upgrade does."""
        old = self.cluster.agent(number)
        new = self._replace(old, lambda: type(old)(old.node, **{**self.options, **_given(options)}))
        self.cluster.agents = tuple(new if agent is old else agent for agent in self.cluster.agents)
        outcomes = list(new.restore(workers=workers, last=last).outcomes)
        self.expect_upgraded(new, _migrated(outcomes))
        return outcomes

    def reload_fails(self, name: str, error: type[ReloadlabError], *, gate: Gate | None = None) -> ReloadlabError:
        """Reload, expecting this error, and hold the reload to it: all nodes must be as before. Returns the error.

        A gate must fire before the error: behind it, the gate would test nothing.
        """
        __tracebackhide__ = True
        return self._fails([name], lambda: reload_at(self.noted(gate), *self.cluster.find(name)), error, gate)

    def silence(self, *, count: int = 3, flows: Sequence[str] | None = None) -> list[str]:
        """Send a burst over all flows, or these; return those in which not every packet is answered."""
        return [str(burst) for burst in self.traffic.burst_all(count, flows) if not burst.complete]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of an agent as it takes them; a loader may be a name or a command, as marks have it."""
    loader = options.get("loader")
    return {**options, **({"loader": given_loader(loader)} if isinstance(loader, str) else {})}


def _migrated(outcomes: Sequence[Outcome]) -> set[str]:
    return {name for outcome in outcomes for name in outcome.migrated}


def _flows_of(cluster: Cluster) -> list[Flow]:
    return cluster_flows(cluster.nodes) if len(cluster.nodes) > 1 else default_flows(cluster.nodes[0])
