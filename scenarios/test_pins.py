"""The node's BPF file system: pins that are lost between two reloads, and pins of others."""

from __future__ import annotations

import pytest

from reloadlab import CT_MAPS, Scenario, open_pin

IPCACHE, ENDPOINTS = "cilium_ipcache", "cilium_lxc"
ONE_WAY = {"name": "one way", "endpoint": "pod-1", "ingress": [{"fromEntities": ["host", "world"]}]}
"""Answers of other pods and of health reach pod-1 because it has asked, and only then."""


def lose(scenario: Scenario, *names: str) -> None:
    """Remove the pins of maps that attached programs use."""
    for name in names:
        (scenario.agent.config.globals / name).unlink()


@pytest.mark.parametrize("name", [IPCACHE, ENDPOINTS, "cilium_policy_00101"])
@pytest.mark.node(pods=2)
def test_map_of_the_control_plane_is_lost(scenario: Scenario, name: str) -> None:
    """The next reload makes another, filled before a packet reads it; so does a new agent."""
    scenario.expect(migrated=frozenset({name}))
    for reload in (scenario.reload, scenario.restart):
        lose(scenario, name)
        reload()


@pytest.mark.node(pods=2, policy=None)
def test_connections_are_lost(scenario: Scenario) -> None:
    """Answers that depend on the lost maps go on: what the old programs use is carried over."""
    scenario.agent.apply_policies(ONE_WAY)
    scenario.expect(changed=frozenset({"cilium_policy_00101"}), migrated=frozenset(CT_MAPS))
    lose(scenario, *CT_MAPS)
    scenario.reload()


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.node(pods=2, devices=("eth0",))
def test_pins_of_others_stay(scenario: Scenario, subject: str) -> None:
    """Whatever they are called: beside our maps, in directories, and under names that look like ours."""
    directory = scenario.agent.config.globals
    scenario.expect(pins=frozenset({"acme"}))
    (directory / "acme").mkdir()
    names = ("acme_flows", "acme/cilium_ipcache", "cilium_calls_acme", "cilium_policy_acme")
    with open_pin(directory / IPCACHE) as somebodys:
        for name in names:
            somebodys.pin(directory / name)
    scenario.reload(subject)
    scenario.restart()
    scenario.agent.add_pod("guest")
    scenario.agent.remove_pod("guest")
    with open_pin(directory / IPCACHE) as ours:
        for name in names:
            with open_pin(directory / name) as theirs:
                assert theirs.info.id == ours.info.id
