"""Invariant 5: the endpoints' own routes."""

from __future__ import annotations

from collections.abc import Iterator

from lab.agent.agent import Agent
from lab.node.topology import HEALTH
from lab.watch.snapshot import Snapshot
from lab.watch.violation import Violation


def check_routes(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield the endpoints whose direct routes do not match the routing mode (invariant 5)."""
    yield from (Violation(5, what) for what in _routes(agent, now))


def _routes(agent: Agent, now: Snapshot) -> Iterator[str]:
    node = agent.node
    for name in (HEALTH, *(pod.name for pod in node.pods)):
        pod = node.pod(name)
        for address in (pod.ipv4, pod.ipv6):
            found = now.routes.get(str(address))
            if agent.endpoint_routes and found != pod.ifindex:
                yield f"{name}: no direct route to {address}"
            elif not agent.endpoint_routes and found is not None:
                yield f"{name}: direct route to {address} is left over"
