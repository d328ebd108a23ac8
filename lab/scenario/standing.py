"""A scenario on labs that are up already, and stay: whoever made them goes on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from lab.agent import enforcement
from lab.agent.agent import Agent
from lab.agent.cluster import put_back
from lab.agent.options import Options, open_agent
from lab.node import registry
from lab.node.node import Node
from lab.scenario.stepping import Bursts
from lab.scenario.watched import Watched
from lab.traffic.defaults import cluster_flows, default_flows


class StandingScenario(Watched):
    """A scenario on a lab that is up, or on all nodes of its cluster.

    Everything is reloaded once as it is; then the usual traffic runs, under a policy that lets exactly its flows pass.
    In the end the former policies hold again. Without `fresh` flows, no connection begins later. `foreign` says that
    other programs than ours will run. `options` are those with which each node is loaded, by its name.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        rate: float,
        bursts: Bursts = "none",
        fresh: bool = True,
        foreign: bool = False,
    ) -> None:
        super().__init__(rate=rate, bursts=bursts, policy="flows", foreign=foreign)
        self.nodes = tuple(nodes)
        self._fresh = fresh
        self.options: Mapping[str, Options] = {node.name: Options.kept(node) for node in nodes}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(self._put_back, node, enforcement.document_of(node))
            agents = [stack.enter_context(open_agent(node, self.options[node.name])) for node in self.nodes]
            self._history.hear_first_loads(agents)
            for agent in agents:
                agent.start(workers=2)
            flows = cluster_flows(self.nodes) if len(self.nodes) > 1 else default_flows(self.nodes[0])
            self._watch(stack, agents, [flow for flow in flows if self._fresh or not flow.fresh or flow.denied])
        return self

    def agent_of(self, node: str) -> Agent:
        """Return the agent of a node, by its name."""
        return next(agent for agent in self.agents if agent.node.name == node)

    def succeed(self, node: str, options: Options) -> Agent:
        """End the agent of a node, and start one that loads it with other options; nothing is loaded yet."""
        old = self.agent_of(node)
        new = self._replace(old, lambda: open_agent(old.node, options))
        self.options = {**self.options, node: options}
        return new

    def _put_back(self, node: Node, document: object) -> None:
        with open_agent(node, self.options[node.name]) as agent:
            put_back(agent, document)


def all_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Return these nodes, with all others of their clusters, in the order of their clusters."""
    found = {}
    for node in nodes:
        for name in registry.members(node.spec.cluster) if node.spec.cluster else (node.name,):
            found[name] = Node.open(name)
    return list(found.values())
