"""What is read of a node, compared with what a reload says that it did, and that reading leaves no trace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_maps
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.snapshot import Snapshot, calls_maps, take
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    with Node(NodeSpec(unique_name(), pods=2, endpoint_routes=True)) as node, Agent(node) as agent:
        agent.start()
        yield agent


def test_snapshot_agrees_with_the_outcome_of_a_reload(agent: Agent) -> None:
    outcome = agent.reload("pod-1")
    now, pod = take(agent.node), agent.node.pod("pod-1")
    for item in outcome.attached:
        (found,) = now.filters[item.ifname, Direction[item.direction.upper()]]
        assert (found.program_id, found.name) == (item.program_id, f"{item.program}-{item.ifname}")
    assert now.routes[str(pod.ipv4)] == now.routes[str(pod.ipv6)] == pod.ifindex
    calls = f"cilium_calls_{pod.endpoint_id:05}"
    ident = calls_maps(now)[calls]
    assert ident in program_maps(outcome.attached[0].program_id)
    assert now.slots[calls]
    assert all(ident in program_maps(program) for program in now.slots[calls].values() if calls_of(program, now.calls))
    assert now.policy[pod.endpoint_id] in now.programs
    assert now.programs >= now.reachable > {item.program_id for item in outcome.attached}


def calls_of(program: int, calls: frozenset[int]) -> bool:
    return bool(calls.intersection(program_maps(program)))


def test_two_snapshots_are_equal_and_leave_nothing_open(agent: Agent) -> None:
    before = os.listdir("/proc/self/fd")
    assert take(agent.node).datapath() == take(agent.node).datapath()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_another_nodes_programs_are_not_counted(agent: Agent) -> None:
    mine = settled(agent.node)
    with Node(NodeSpec(unique_name(), pods=1)) as node, Agent(node) as other:
        other.start()
        its = take(node)
        assert its.programs
        assert not its.programs & mine.programs
        assert take(agent.node).programs == mine.programs


def settled(node: Node) -> Snapshot:
    """Return a snapshot after the kernel has freed the programs that the last reload replaced, which takes a moment."""
    deadline = time.monotonic() + 10
    while (now := take(node)).programs != now.reachable:
        assert time.monotonic() < deadline, "replaced programs stay loaded"
    return now


def test_a_node_without_programs_has_an_empty_snapshot() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        now = take(node)
    assert (now.filters, now.pins, now.slots, now.programs) == ({}, {}, {}, frozenset())
