"""Whose programs the packets of a flow meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from lab.agent.cluster import cluster_specs
from lab.node.node import Node
from lab.scenario.ends import meets
from lab.traffic.defaults import ends
from lab.traffic.flows import Flow
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        specs = cluster_specs(unique_name("ends")[:28], 2, pods=2, tunnel=True)
        yield [stack.enter_context(Node(spec)) for spec in specs]


def flow(nodes: Sequence[Node], source: str, target: str) -> Flow:
    def end(name: str) -> tuple[str, str]:
        number, _, own = name.partition("/")
        netns, ipv4, _ = ends(nodes[int(number) - 1])[own]
        return netns, str(ipv4)

    return Flow("flow", *end(source), *end(target))


SUBJECTS = ("1/pod-1", "1/pod-2", "1/health", "1/host", "1/overlay", "2/pod-1", "2/host", "2/overlay")


@pytest.mark.parametrize(
    ("source", "target", "met"),
    [
        ("1/pod-1", "1/pod-2", {"1/pod-1", "1/pod-2"}),
        ("1/pod-1", "2/pod-1", {"1/pod-1", "1/host", "1/overlay", "2/pod-1", "2/host", "2/overlay"}),
        ("1/host", "1/pod-1", {"1/host", "1/pod-1"}),
        ("1/outside", "1/health", {"1/host", "1/health"}),
        ("1/host", "2/host", {"1/host", "1/overlay", "2/host", "2/overlay"}),
    ],
)
def test_a_flow_meets(nodes: list[Node], source: str, target: str, met: set[str]) -> None:
    for a, b in ((source, target), (target, source)):
        found = {
            f"{number}/{name}"
            for number, _, name in (subject.partition("/") for subject in SUBJECTS)
            if meets(flow(nodes, a, b), nodes, nodes[int(number) - 1], name)
        }
        assert found == met
