"""A loader that uses the pinned calls map again replaces the tail programs under the running entry program."""

from __future__ import annotations

import re

import pytest

from datapath.reload.prepare import RepinMaps
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.scenario.scenario import Scenario
from lab.scenario.verdict import InvariantsViolated
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


def use_pinned_calls_map(plan: Plan) -> Plan:
    return plan.change(lambda step: None if isinstance(step, RepinMaps) else step)


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.parametrize("again", [True, False], ids=["pinned calls map", "new calls map"])
def test_packets_that_meet_two_loads_are_found(subject: str, again: bool) -> None:
    running = Scenario(NodeSpec(unique_name("mixed"), pods=2))

    def push(step: Step, work: Workspace) -> None:
        assert all(burst.complete for burst in running.traffic.burst_all(3))

    try:
        with running:
            running.agent.change = use_pinned_calls_map if again else None
            running.reload(subject, gate=Gate(push, after="fill arrays"))
    except InvariantsViolated as error:
        found = [str(violation) for violation in error.violations]
    else:
        found = []
    whose = f"endpoint {running.agent.node.pod(subject).endpoint_id}" if subject != "host" else "host, overlay or XDP"
    wanted = rf"invariant 4: {whose}: another load's program handed \d+ packets? to \w+ of load \d+"
    assert any(re.fullmatch(wanted, line) for line in found) == again
    # Such a reload can also lose packets: those that are on their way while the slots are filled.
    assert again or not found
