"""Several nodes on one underlay, each with its agent: what one node learns, the others are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from lab.agent import aside
from lab.agent.agent import Agent
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import MAX_NODES, InvalidSpec, NodeSpec, PodFacts, PodSpec

SEPARATOR = "/"


def cluster_specs(
    name: str, nodes: int, *, each: Mapping[int, Mapping[str, Any]] | None = None, **common: Any
) -> tuple[NodeSpec, ...]:
    """Return the specs of the nodes <name>-1, <name>-2, ...: fields of NodeSpec that all have in `common`.

    `each` has fields for single nodes by their number, from 1 on. InvalidSpec if there are too many.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise InvalidSpec(f"a cluster has 1 to {MAX_NODES} nodes, not {nodes}")
    own = each or {}
    strangers = sorted(set(own) - set(range(1, nodes + 1)))
    if strangers:
        raise InvalidSpec(f"node {strangers[0]} does not exist: the nodes are 1 to {nodes}")
    return tuple(
        NodeSpec(f"{name}-{number}", node_index=number - 1, cluster=name, **{**common, **own.get(number, {})})
        for number in range(1, nodes + 1)
    )


def build(specs: Sequence[NodeSpec]) -> list[Node]:
    """Build nodes that stay when the process ends: all of them, or none."""
    with ExitStack() as undo:
        nodes = []
        for spec in specs:
            nodes.append(Node.up(spec))
            undo.callback(registry.remove, spec.name, force=True)
        undo.pop_all()
    return nodes


class Cluster:
    """A context manager over the nodes of a cluster and their agents.

    `with Cluster(specs) as cluster` builds the nodes and takes them away at the end; `options` go to every Agent.
    Whatever lives in it is named <node's number>/<name>, such as 2/pod-1.
    """

    def __init__(self, specs: Sequence[NodeSpec], **options: Any) -> None:
        _check(specs)
        self._specs = tuple(specs)
        self._options = options
        self._stack = ExitStack()
        self.nodes: tuple[Node, ...] = ()
        self.agents: tuple[Agent, ...] = ()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.nodes = tuple(stack.enter_context(Node(spec)) for spec in self._specs)
            self.agents = tuple(stack.enter_context(Agent(node, **self._options)) for node in self.nodes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.pop_all().__exit__(kind, value, tb)

    def start(self, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Fill the maps of all nodes, then load everything; the first failure is raised."""
        self.sync(cancel=cancel)
        return self._all(lambda agent: agent.reload_all(workers=workers, cancel=cancel))

    def sync(self, *, cancel: threading.Event | None = None) -> None:
        """Tell every node about all others: pods, their identities, the nodes' addresses, the routes to them."""
        for agent in self.agents:
            agent.sync(cancel=cancel)

    def agent(self, number: int) -> Agent:
        """Return the agent of a node, by its number, from 1 on."""
        if not 1 <= number <= len(self.agents):
            raise NoSuchNode(number, len(self.agents))
        return self.agents[number - 1]

    def node(self, number: int) -> Node:
        """Return a node by its number, from 1 on."""
        return self.agent(number).node

    def pod(self, name: str) -> PodFacts:
        """Return a pod by its full name, such as 2/pod-1."""
        agent, own = self.find(name)
        return agent.node.pod(own)

    def find(self, name: str) -> tuple[Agent, str]:
        """Return (the agent, the name on its node) of what is called <number>/<name>."""
        number, separator, own = name.partition(SEPARATOR)
        if not (separator and own and number.isdecimal()):
            raise BadName(name)
        return self.agent(int(number)), own

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everything that can be reloaded, node by node."""
        numbered = enumerate(self.agents, 1)
        return tuple(f"{number}{SEPARATOR}{subject}" for number, agent in numbered for subject in agent.subjects)

    def reload(self, name: str, **options: Any) -> Outcome:
        """Reload what is called <number>/<name>; `options` are those of Agent.reload."""
        agent, own = self.find(name)
        return agent.reload(own, **options)

    def add_pod(self, name: str, *, labels: Iterable[str] = ()) -> Outcome:
        """Make one more pod, with these labels; all nodes know it before its own node delivers to it."""
        agent, own = self.find(name)
        agent.node.add_pod(PodSpec(own, labels=frozenset(labels)), loaded=False)
        with agent.undone_pod(own):
            for each in self.agents:
                each.sync()
            return agent.reload(own)

    def remove_pod(self, name: str) -> None:
        """Remove a pod, from its own node first; then the other nodes forget it and its connections."""
        agent, own = self.find(name)
        pod = agent.node.pod(own)
        agent.remove_pod(own)
        self.sync()
        for each in self.agents:
            each.forget_connections(pod)

    def apply_policies(self, document: object, *, cancel: threading.Event | None = None) -> None:
        """Let these policies hold on all nodes, or on none; see Agent.apply_policies."""
        apply_policies(self.agents, document, cancel=cancel)

    def set_tunnel_port(self, port: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Move the tunnel of all nodes to another UDP port; between the first and the last they do not meet."""
        return self._all(lambda agent: agent.set_tunnel_port(port, workers=workers, cancel=cancel))

    def set_mtu(self, mtu: int, *, workers: int = 1, cancel: threading.Event | None = None) -> list[Outcome]:
        """Change the MTU of all nodes in place, bytes."""
        return self._all(lambda agent: agent.set_mtu(mtu, workers=workers, cancel=cancel))

    def _all(self, do: Callable[[Agent], Iterable[Outcome]]) -> list[Outcome]:
        return [outcome for agent in self.agents for outcome in do(agent)]


def apply_policies(agents: Sequence[Agent], document: object, *, cancel: threading.Event | None = None) -> None:
    """Let these policies hold on several nodes; if one refuses, all go back to what they had."""
    with updating(agents, cancel=cancel), ExitStack() as stack:
        # Those that a killed process has put aside are the ones that a node has again after a refusal.
        for agent in agents:
            stack.enter_context(aside.forgotten(agent.node))
        with ExitStack() as undo:
            for agent in agents:
                undo.callback(agent.put_back_policies, agent.exchange_policies(document, cancel=cancel))
            undo.pop_all()


def change_denied(
    agents: Sequence[Agent], *, deny: Sequence[str], allow: Sequence[str], cancel: threading.Event | None = None
) -> None:
    """Have the XDP programs of several nodes deny and allow prefixes; if one refuses, all go back to what they had."""
    with updating(agents, cancel=cancel), ExitStack() as undo:
        for agent in agents:
            undo.callback(agent.put_back_denied, agent.exchange_denied(deny=deny, allow=allow, cancel=cancel))
        undo.pop_all()


@contextmanager
def updating(agents: Sequence[Agent], *, cancel: threading.Event | None = None) -> Iterator[None]:
    """Exclude updates and reloads that would change the maps of any of these nodes (Agent.updating)."""
    with ExitStack() as locks:
        # In the same order everywhere: otherwise two processes could wait for each other.
        for agent in sorted(agents, key=lambda agent: agent.node.name):
            locks.enter_context(agent.updating(cancel=cancel))
        yield


class NoSuchNode(ReloadlabError):
    """A node's number that the cluster does not have."""

    def __init__(self, number: int, nodes: int) -> None:
        super().__init__(f"node {number} does not exist: the nodes are 1 to {nodes}")
        self.number = number


class BadName(ReloadlabError):
    """A name that is not of the form <number>/<name>."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} does not name anything in a cluster: give the node's number and the name, such as 2/pod-1"
        )
        self.name = name


def _check(specs: Sequence[NodeSpec]) -> None:
    """Refuse nodes that could not talk to each other."""
    if not specs:
        raise InvalidSpec("a cluster has at least one node")
    first = specs[0]
    for spec in specs:
        if not spec.cluster or spec.cluster != first.cluster:
            raise InvalidSpec(f"{spec.name} belongs to cluster {spec.cluster!r}, {first.name} to {first.cluster!r}")
        for field in ("tunnel", "tunnel_port"):
            if getattr(spec, field) != getattr(first, field):
                raise InvalidSpec(f"{spec.name} and {first.name} differ in {field}")
    if len({spec.node_index for spec in specs}) < len(specs):
        raise InvalidSpec("two nodes have the same index, and so the same addresses")
