"""What the kernel does later has been done before packets are sent."""

from __future__ import annotations

import os

import pytest

from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from lab.node.topology import NodeSpec
from lab.proof.settling import settle
from lab.scenario.scenario import Scenario
from tests.lab.labs import unique_name


@pytest.mark.privileged
def test_settle_waits_until_the_kernel_has_emptied_a_calls_map() -> None:
    """Its last pin is gone, as after a kill; the program at the hook still jumps through it."""
    with Scenario(NodeSpec(unique_name("settle"), pods=1), rate=0) as scenario:
        pin = scenario.agent.config.globals / "cilium_calls_00101"
        with open_pin(pin) as array:
            info = array.info
        pin.unlink()
        settle(scenario.node)
        fd = bpf.map_fd_by_id(info.id)
        try:
            assert bpf.map_slots(fd, info.max_entries) == {}
        finally:
            os.close(fd)
        scenario.reload("pod-1")
