"""held.py: what a measured reload replaces is not emptied beside the next one, and is emptied before the next round."""

from __future__ import annotations

import pytest

from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from lab.agent.agent import Agent
from lab.bench.held import HeldArrays
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import unique_name


@pytest.mark.privileged
def test_what_is_replaced_is_held_until_it_is_let_go_and_gone_then() -> None:
    with Node(NodeSpec(unique_name("held"), pods=1)) as node, Agent(node) as agent:
        agent.start()
        held = HeldArrays(agent.config.globals)
        path = agent.config.globals / "cilium_calls_00101"
        replaced = []
        for _ in range(2):
            held.hold()
            with open_pin(path) as array:
                replaced.append(array.info.id)
            agent.reload("pod-1")
        assert all(bpf.has_map(ident) for ident in replaced)
        with open_pin(path) as present:
            assert held.pinned() > {present.info.id}
        held.let_go()
        assert not any(bpf.has_map(ident) for ident in replaced)
        with open_pin(path) as same:
            assert same.info.id == present.info.id
