from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.abi.layouts import Program
from lab.agent.agent import Agent
from lab.bench.pairs import Pair
from lab.bench.programs import REPEAT, RUNS, TC_ACT_OK, TC_ACT_REDIRECT, VerdictChanged, capture_path
from lab.node.node import Node
from lab.node.topology import NodeSpec, PodFacts
from lab.watch import metrics
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

LAST = {
    (4, False): Program.IPV4_POLICY,
    (4, True): Program.IPV4_TO_ENDPOINT,
    (6, False): Program.IPV6_POLICY,
    (6, True): Program.IPV6_TO_ENDPOINT,
}
"""The receiver's program, by IP version and whether target_node are endpoint routes."""


@pytest.fixture(scope="module", params=[False, True], ids=["off", "on"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    spec = NodeSpec(unique_name("traffic"), pods=2, endpoint_routes=request.param)
    with Node(spec) as node, Agent(node) as found:
        found.start()
        yield found


def test_hits_of_all_cpus_are_added_up(agent: Agent) -> None:
    node = agent.node
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        ways = capture_path(stack, Pair("", node, node), 4)
        before = handled(agent, node.pods[0], Program.IPV4_FROM_LXC)
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            ways.run()
        assert handled(agent, node.pods[0], Program.IPV4_FROM_LXC) - before == RUNS * REPEAT * len(allowed)


def handled(agent: Agent, pod: PodFacts, program: Program) -> int:
    """Return how many packets a program of a pod has handled, in all loads."""
    hits = metrics.read(agent.node).hits
    return sum(n for (_, source, number), n in hits.items() if (source, number) == (pod.endpoint_id, program))


@pytest.mark.parametrize("version", [4, 6])
def test_all_programs_of_the_path_are_run(agent: Agent, version: int) -> None:
    """The last program of the way has handled a packet in each run."""
    node = agent.node
    with ExitStack() as stack:
        ways = capture_path(stack, Pair("", node, node), version)
        if node.spec.endpoint_routes:
            assert [hop.verdict for hop in ways.hops] == [TC_ACT_OK, TC_ACT_OK]
            mark = int.from_bytes(ways.hops[1].context[8:12], "little")
            assert (mark & 0xF00, mark >> 16) == (0xF00, node.pods[0].identity & 0xFFFF)
        else:
            assert [hop.verdict for hop in ways.hops] == [TC_ACT_REDIRECT]
        last = LAST[version, node.spec.endpoint_routes]
        before = handled(agent, node.pods[1], last)
        assert ways.run() > 0
        assert handled(agent, node.pods[1], last) - before == RUNS * REPEAT
        assert not metrics.read(node).drops_since(metrics.Counters())


def test_a_changed_verdict_is_an_error(agent: Agent) -> None:
    node = agent.node
    with ExitStack() as stack:
        ways = capture_path(stack, Pair("this way", node, node), 4)
        deny = {"name": "deny", "endpoint": node.pods[1].name, "ingressDeny": [{"fromEntities": ["all"]}]}
        agent.apply_policies(deny)
        stack.callback(agent.apply_policies, [])
        with pytest.raises(VerdictChanged, match=r"this way: .* verdict is 2 instead of "):
            ways.run()
