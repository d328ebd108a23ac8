"""Scenarios on labs that stay: a lab has its own policies again, whatever ends the scenario."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from datapath.errors import Cancelled
from lab.agent import enforcement
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.standing import StandingScenario
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged

POLICY = [{"name": "one", "endpoint": "pod-1", "ingress": [{"fromEntities": ["world"]}]}]


@pytest.fixture
def node() -> Iterator[Node]:
    with removed(unique_name()) as name:
        with Agent(Node.up(NodeSpec(name, pods=1))) as agent:
            agent.start()
            agent.apply_policies(POLICY)
        yield Node.open(name)


def test_a_kill_loses_no_policies(node: Node) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with StandingScenario([node], rate=50.0):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert enforcement.document_of(node) != POLICY
    with Agent(node) as agent:
        agent.restore()
    assert enforcement.document_of(node) == POLICY


def test_it_is_cancelled_while_everything_is_loaded_once(node: Node) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled), StandingScenario([node], rate=50.0, cancel=cancel):
        pass
    assert enforcement.document_of(node) == POLICY
