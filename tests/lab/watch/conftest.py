"""A node without a fault, for tests of the checks: each test makes one fault on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.invariants import baseline, check
from tests.lab.labs import unique_name


@pytest.fixture(scope="module")
def sound_node() -> Iterator[Agent]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    with Node(NodeSpec(unique_name("rules"), pods=2, endpoint_routes=True, tunnel=True)) as node, Agent(node) as agent:
        agent.start()
        yield agent


@pytest.fixture
def agent(sound_node: Agent) -> Iterator[Agent]:
    """A node without a fault, before and after the test."""
    assert check(sound_node, baseline(sound_node)) == []
    yield sound_node
    sound_node.change = None
    for subject in sound_node.subjects:
        sound_node.reload(subject)
    assert check(sound_node, baseline(sound_node)) == []
