"""The node's BPF file system: pins that are lost between two reloads, and pins of others."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack

import pytest

from reloadlab import (
    CT_MAPS,
    HOST,
    METRIC_INGRESS,
    Address,
    Counters,
    Probe,
    Scenario,
    ends,
    exchange,
    open_pin,
    packet_counters,
    slowness,
)
from scenarios.pinned import pinned
from scenarios.test_map_migration import ENDPOINT_MAP, ONE_WAY, open_connections
from scenarios.test_rollback import fail_after_every_step

IPCACHE, ENDPOINTS, HOST_CALLS = "cilium_ipcache", "cilium_lxc", "cilium_calls_hostns_00001"
MISSED = (140, METRIC_INGRESS)
"""Reason and direction under which a missed tail call of the host's programs is counted."""


def lose(scenario: Scenario, *names: str) -> None:
    """Remove the pins of maps that attached programs use."""
    for name in names:
        (scenario.agent.config.globals / name).unlink()


@pytest.mark.parametrize(
    "name",
    [
        IPCACHE,
        ENDPOINTS,
        ENDPOINT_MAP,
        pytest.param(ENDPOINT_MAP, marks=pytest.mark.node(endpoint_routes=True), id=f"{ENDPOINT_MAP}-endpoint-routes"),
    ],
)
@pytest.mark.node(pods=2)
def test_map_of_the_control_plane_is_lost(scenario: Scenario, name: str) -> None:
    """The next reload makes another, filled before a packet reads it; so does a new agent."""
    name = pinned(scenario.agent, name)
    # A new map begins to count anew; no key of it may differ.
    scenario.expect(migrated=frozenset({name}), changed={name: ()})
    for reload in (scenario.reload, scenario.restart):
        lose(scenario, name)
        reload()


@pytest.mark.parametrize(
    "network", [pytest.param("node"), pytest.param("endpoint-routes", marks=pytest.mark.node(endpoint_routes=True))]
)
@pytest.mark.node(pods=2, policy=None, flows=open_connections)
def test_connections_are_lost(scenario: Scenario, network: str) -> None:
    """Answers that depend on the lost maps go on: what the old programs use is carried over."""
    scenario.agent.apply_policies(ONE_WAY)
    scenario.expect(changed=frozenset({pinned(scenario.agent, ENDPOINT_MAP)}), migrated=frozenset(CT_MAPS))
    lose(scenario, *CT_MAPS)
    scenario.reload()


@pytest.mark.own_sources("a lost calls map of the host: programs of others pass on what misses a tail call")
@pytest.mark.node(pods=2, policy=None, flows=lambda _: [], rate=0)
def test_calls_map_of_the_host_is_lost(scenario: Scenario) -> None:
    """The kernel empties it: every packet of the host to a pod is lost, and counted once, until the next reload."""
    ports = itertools.count(30000)

    def asked(version: int) -> tuple[int, dict[tuple[int, int], int]]:
        """Send a datagram; return how many arrived, and what was dropped meanwhile."""
        before = Counters(packet_counters(scenario.node))
        (here, *sources), (there, *targets) = ends(scenario.node)[HOST], ends(scenario.node)["pod-1"]
        source, target = (str(addresses[version == 6]) for addresses in (sources, targets))
        result = exchange(
            Address(here, source, next(ports)),
            Address(there, target, 53),
            Probe("udp", 53, count=1),
            settled=lambda: bool(Counters(packet_counters(scenario.node)).drops_since(before)),
        )
        return result.arrived, dict(Counters(packet_counters(scenario.node)).drops_since(before))

    assert asked(4) == asked(6) == (1, {})
    lose(scenario, HOST_CALLS)
    # Slot by slot, and each family has one of its own.
    deadline, missed = time.monotonic() + 5 * slowness(), {4: 0, 6: 0}
    while not all(missed.values()) and time.monotonic() < deadline:
        for version in missed:
            missed[version] += asked(version)[1].get(MISSED, 0)
    for version in (4, 6) * 10:
        assert asked(version) == (0, {MISSED: 1})
        missed[version] += 1
    scenario.expect(drops={MISSED: sum(missed.values())})
    scenario.reload("host")
    assert asked(4) == asked(6) == (1, {})


@pytest.mark.parametrize(
    "subject", ["pod-1", "host", pytest.param("overlay", marks=pytest.mark.node(pods=1, devices=(), tunnel=True))]
)
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
    ipcache = directory / pinned(scenario.agent, IPCACHE)
    scenario.expect(pins=frozenset({"acme"}))
    (directory / "acme").mkdir()
    names = ("acme_flows", "acme/cilium_ipcache", "cilium_calls_acme", "cilium_policy_acme")
    with open_pin(ipcache) as somebodys:
        for name in names:
            somebodys.pin(directory / name)
    scenario.reload(subject)
    scenario.restart()
    scenario.agent.add_pod("guest")
    scenario.agent.remove_pod("guest")
    with open_pin(ipcache) as ours:
        for name in names:
            with open_pin(directory / name) as theirs:
                assert theirs.info.id == ours.info.id
