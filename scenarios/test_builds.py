"""Builds that differ in more than a map: other numbers of tail calls, the host's firewall switched on and off."""

from __future__ import annotations

import pytest

from reloadlab import Scenario, is_ours

NETWORKS = [
    pytest.param("node", marks=pytest.mark.node(pods=2)),
    pytest.param("endpoint-routes", marks=pytest.mark.node(pods=2, endpoint_routes=True)),
    pytest.param("devices", marks=pytest.mark.node(pods=2, devices=("eth0",))),
]
THERE_AND_BACK = 2


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.own_sources
def test_slots_are_renumbered(scenario: Scenario, network: str) -> None:
    """Another release numbers the tail calls otherwise: IPv4 has the slots of IPv6. No packet gets into another's."""
    for _ in range(THERE_AND_BACK):
        for macros in ({"RENUMBERED_SLOTS": "1"}, {}):
            scenario.define(**macros)
            scenario.reload()


@pytest.mark.parametrize("network", NETWORKS)
def test_host_firewall_is_switched_on_and_off(scenario: Scenario, network: str) -> None:
    """Pods call the host's policy program while they are built for it: it is there before, and goes after them."""
    if not is_ours(scenario.agent.config.library):
        scenario.expect(other_path=True)
        scenario.leave_out("the path of the host's packets to pods: with its firewall on, other C has another")
    for _ in range(THERE_AND_BACK):
        for macros in ({"ENABLE_HOST_FIREWALL": "1"}, {}):
            scenario.define(**macros)
            scenario.agent.reload_all(workers=2)
