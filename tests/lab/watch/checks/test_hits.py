"""Which load packets meet after the last reload, by the datapath's own count."""

from __future__ import annotations

import subprocess
import time

import pytest

from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from lab.agent.agent import Agent
from lab.watch import metrics
from lab.watch.checks.hits import check_hits
from tests.lab.watch.faults import program_at, put_at
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


def ping(agent: Agent) -> bool:
    """Send a packet from pod-1 to pod-2; tell whether an answer came."""
    one, two = agent.node.pods
    argv = nsenter(agent.node.netns(one.name), "ping", "-c", "1", "-W", "2", str(two.ipv4))
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def test_packets_that_meet_the_load_before_are_found(agent: Agent) -> None:
    ifname = agent.node.pod("pod-1").ifname
    first = agent.reload("pod-1")
    old = program_at(agent, ifname, Direction.INGRESS)
    with program_by_id(old.program_id):
        agent.reload("pod-1")
        replaced = {first.generation: "pod-1"}
        earlier = metrics.read(agent.node)
        assert ping(agent)
        later = metrics.read(agent.node)
        assert list(check_hits(earlier, later, replaced)) == []
        put_at(agent, program_at(agent, ifname, Direction.INGRESS), old.program_id)
        deadline = time.monotonic() + 10
        while ping(agent):
            assert time.monotonic() < deadline, "the kernel does not empty the old calls map"
        (found,) = check_hits(later, metrics.read(agent.node), replaced)
    assert found.invariant == 4
    assert f" met generation {first.generation} of pod-1" in found.what
