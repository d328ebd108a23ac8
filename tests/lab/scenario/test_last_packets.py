"""The last packets of a scenario show which loads are met; where they cannot, that is a gap."""

from __future__ import annotations

import pytest

from lab.node.topology import NodeSpec
from lab.scenario.scenario import Scenario
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

GAP = "no last packet was sent to see which loads are met: "


def gaps(scenario: Scenario) -> list[str]:
    """Reload a pod, end the scenario, and return the gaps that are about loads."""
    scenario.reload("pod-1")
    if scenario.traffic.flows:
        scenario.pause()
    scenario.finish()
    return [gap for gap in scenario.gaps if gap.startswith(GAP)]


def test_without_traffic_it_is_not_known() -> None:
    with Scenario(NodeSpec(unique_name("hits"), pods=1), rate=0, flows=lambda _: []) as scenario:
        assert gaps(scenario) == [f"{GAP}the scenario has rate=0"]


def test_during_a_pause_it_is_not_known() -> None:
    with Scenario(NodeSpec(unique_name("hits"), pods=1)) as scenario:
        assert gaps(scenario) == [f"{GAP}its traffic is paused"]


def test_counters_that_make_room_for_others_are_a_gap() -> None:
    """And none of them went back: it came again."""
    defines = (("HITS_MAP_SIZE", "8"),)
    with Scenario(NodeSpec(unique_name("hits"), pods=1), defines=defines) as scenario:
        scenario.reload("pod-1")
        scenario.finish()
        (gap,) = [gap for gap in scenario.gaps if "reloadlab_hits" in gap]
    assert gap.startswith(f"{scenario.node.name}: ")
    assert " counters of loads made room for others in reloadlab_hits" in gap
