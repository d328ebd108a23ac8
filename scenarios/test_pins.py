"""The node's BPF file system: pins that are lost between two reloads, and pins of others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from reloadlab import CT_MAPS, Scenario, open_pin
from scenarios.test_map_migration import ENDPOINT_MAP, ONE_WAY, open_connections
from scenarios.test_rollback import fail_after_every_step

IPCACHE, ENDPOINTS = "cilium_ipcache", "cilium_lxc"


def lose(scenario: Scenario, *names: str) -> None:
    """Remove the pins of maps that attached programs use."""
    for name in names:
        (scenario.agent.config.globals / name).unlink()


@pytest.mark.parametrize("name", [IPCACHE, ENDPOINTS, ENDPOINT_MAP])
@pytest.mark.node(pods=2)
def test_map_of_the_control_plane_is_lost(scenario: Scenario, name: str) -> None:
    """The next reload makes another, filled before a packet reads it; so does a new agent."""
    # A new map begins to count anew; no key of it may differ.
    scenario.expect(migrated=frozenset({name}), changed={name: ()})
    for reload in (scenario.reload, scenario.restart):
        lose(scenario, name)
        reload()


@pytest.mark.node(pods=2, policy=None, flows=open_connections)
def test_connections_are_lost(scenario: Scenario) -> None:
    """Answers that depend on the lost maps go on: what the old programs use is carried over."""
    scenario.agent.apply_policies(ONE_WAY)
    scenario.expect(changed=frozenset({ENDPOINT_MAP}), migrated=frozenset(CT_MAPS))
    lose(scenario, *CT_MAPS)
    scenario.reload()


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.node(pods=2, devices=("eth0",))
def test_reload_fails_while_pins_are_lost(scenario: Scenario, subject: str) -> None:
    """What it has pinned where the lost ones were goes with it, at whatever step it fails."""
    paths = sorted(scenario.agent.config.globals.glob("cilium_calls_*"))
    with ExitStack() as stack:
        # A calls map that nobody has a descriptor of would be emptied.
        lost = [(path, stack.enter_context(open_pin(path))) for path in paths]
        lose(scenario, *(path.name for path in paths))
        fail_after_every_step(scenario, subject)
        for path, calls in lost:
            calls.pin(path)
    scenario.reload(subject)


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
