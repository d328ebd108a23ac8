from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import pytest

from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario import traffic
from lab.scenario.traffic import ScenarioTraffic, count_in_parts
from lab.system.pace import SLOWNESS_VARIABLE
from lab.traffic.defaults import default_flows
from lab.traffic.flows import TrafficError
from tests.lab.labs import unique_name

TIMES = ("stall_after", "late_after", "start_timeout")


def options(monkeypatch: pytest.MonkeyPatch, slowness: str) -> dict[str, Any]:
    """Return the options of the traffic that a scenario starts where the machine is so slow."""
    found: dict[str, Any] = {}

    def stand_in(_: object, **given: Any) -> Any:
        found.update(given)
        return nullcontext()

    monkeypatch.setenv(SLOWNESS_VARIABLE, slowness)
    monkeypatch.setattr(traffic, "Traffic", stand_in)
    with ExitStack() as stack:
        ScenarioTraffic(rate=2000.0, policy=None).start(stack, [], [])
    return found


def test_a_slow_machine_sends_slower_and_waits_longer_by_the_same_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary, slow = options(monkeypatch, "1"), options(monkeypatch, "8")
    assert ordinary["rate"] == 2000.0
    assert slow["rate"] == 250.0
    assert [slow[name] for name in TIMES] == [8 * ordinary[name] for name in TIMES]


NOBODY = {"name": "closed", "endpointSelector": {"matchLabels": {"name": "pod-2"}}, "ingress": [{}]}


@pytest.mark.privileged
def test_traffic_that_cannot_start_says_what_dropped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "START_TIMEOUT", 1.0)
    with ExitStack() as stack:
        node = stack.enter_context(Node(NodeSpec(unique_name("drops"), pods=2)))
        agent = stack.enter_context(Agent(node))
        agent.start()
        agent.apply_policies([NOBODY])
        (flow,) = [flow for flow in default_flows(node) if flow.name == "pod-1 -> pod-2 udp v4"]
        said = r"flow pod-1 -> pod-2 udp v4: \S+ does not answer; \S+ dropped meanwhile \d+ packets? as Policy denied "
        with pytest.raises(TrafficError, match=said):
            ScenarioTraffic(rate=100, policy=None).start(stack, [agent], [flow])


def test_sendings_are_counted_in_equal_parts_of_the_phase() -> None:
    flows = [[90, 100, 101, 149], [150, 199, 200, 500]]
    # 90, 200 and 500 are of other phases.
    assert count_in_parts(flows, 100, 200, parts=2) == [3, 2]
    assert count_in_parts(flows, 100, 200, parts=4) == [2, 1, 1, 1]
    assert count_in_parts([], 100, 200, parts=2) == [0, 0]
