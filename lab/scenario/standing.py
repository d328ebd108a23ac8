"""A scenario on labs that are up already, and stay: whoever made them goes on with them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from datapath.errors import ReloadlabError
from lab.agent import aside
from lab.agent.agent import Agent
from lab.agent.options import Options, open_agent
from lab.node import registry
from lab.node.node import Node
from lab.scenario.watched import Watched
from lab.traffic.defaults import cluster_flows, default_flows


class StandingScenario(Watched):
    """A scenario on a lab that is up, or on all nodes of its cluster.

    Everything is reloaded once as it is; then the usual traffic runs, under a policy that lets exactly its flows pass.
    In the end the former policies hold again, also after a kill: then a restore does it. Without `fresh` flows, no
    connection begins later. `foreign` says that other programs than ours will run. `cancel` ends what happens before
    the block. `options` are those with which each node is loaded, by its name.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        rate: float,
        fresh: bool = True,
        foreign: bool = False,
        cancel: threading.Event | None = None,
    ) -> None:
        super().__init__(rate=rate, bursts="none", policy="flows", foreign=foreign)
        self.nodes = tuple(nodes)
        self._fresh = fresh
        self._cancel = cancel
        self.options: Mapping[str, Options] = {node.name: Options.kept(node) for node in nodes}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(aside.put_aside(node))
                stack.callback(_take_back, node)
            agents = [stack.enter_context(open_agent(node, self.options[node.name])) for node in self.nodes]
            self._history.hear_first_loads(agents)
            for agent in agents:
                agent.start(workers=2, cancel=self._cancel)
            flows = cluster_flows(self.nodes) if len(self.nodes) > 1 else default_flows(self.nodes[0])
            self._watch(stack, agents, [flow for flow in flows if self._fresh or not flow.fresh or flow.denied])
        return self

    def agent_of(self, node: str) -> Agent:
        """Return the agent of a node, by its name."""
        return next(agent for agent in self.agents if agent.node.name == node)

    def succeed(self, node: str, options: Options) -> Agent:
        """End the agent of a node, and start one that loads it with other options; nothing is loaded yet.

        If that fails, one with the former options takes the place of both.
        """
        old, former = self.agent_of(node), self.options[node]
        try:
            new = self._replace(old, lambda: open_agent(old.node, options))
        except ReloadlabError:
            self._replace(old, lambda: open_agent(old.node, former))
            raise
        self.options = {**self.options, node: options}
        return new


def _take_back(node: Node) -> None:
    """Let a node's own policies hold again, by an agent with the options by which all of it was loaded last.

    What else was tried may be what does not compile, or a loader that does not start.
    """
    with open_agent(node, replace(Options.kept(node), loader=None)) as agent:
        aside.take_back(agent)


class Strangers(ReloadlabError):
    """Nodes that are not of one cluster: no packet gets from one to the other."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)} are not of one cluster: name one lab, or nodes of one cluster")
        self.names = tuple(names)


def all_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Return these nodes of one cluster with all others of it; Strangers if they are of several, or of none."""
    first, *others = nodes
    if any(not node.spec.cluster or node.spec.cluster != first.spec.cluster for node in others):
        raise Strangers([node.name for node in nodes])
    return [Node.open(name) for name in registry.members(first.spec.cluster)] if first.spec.cluster else [first]
