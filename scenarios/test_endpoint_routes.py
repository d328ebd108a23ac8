"""Endpoint routes: off, on, and toggled on a live node both ways."""

from __future__ import annotations

import pytest

from reloadlab import Scenario

ROUNDS = 20
"""Reloads of every endpoint of the node."""


@pytest.mark.node(pods=3)
def test_off(scenario: Scenario) -> None:
    """Delivery by tail call through cilium_call_policy; no egress program, no route per pod."""
    for _ in range(ROUNDS):
        scenario.reload()


@pytest.mark.node(pods=3, endpoint_routes=True)
def test_on(scenario: Scenario) -> None:
    """Delivery by the stack through a route per pod; its egress program meets every packet."""
    for _ in range(ROUNDS):
        scenario.reload()


@pytest.mark.node(pods=3)
def test_switched_on(scenario: Scenario) -> None:
    """A live node goes from one route by cilium_host to a route per pod."""
    scenario.set_endpoint_routes(True)
    scenario.reload()


@pytest.mark.node(pods=3, endpoint_routes=True)
def test_switched_off(scenario: Scenario) -> None:
    """A live node goes back: no filter and no route of the other mode is left over."""
    scenario.set_endpoint_routes(False)
    scenario.reload()


@pytest.mark.node(pods=3)
def test_switched_back_and_forth(scenario: Scenario) -> None:
    """A second round begins where the first has ended."""
    for _ in range(2):
        scenario.set_endpoint_routes(True)
        scenario.set_endpoint_routes(False)
