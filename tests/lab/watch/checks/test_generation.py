"""Programs of another load than the last one, at hooks and in slots, and endpoints that nobody has reloaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datapath.base.mapnames import POLICY_CALLS, calls_map
from datapath.kernel import progarray
from datapath.kernel.hooks import Direction
from datapath.kernel.inventory import program_by_id
from datapath.kernel.map import open_pin
from datapath.reload.outcome import Outcome
from datapath.reload.prepare import RepinMaps
from datapath.reload.switchover import InsertPolicy
from lab.agent.agent import Agent
from lab.node.topology import HOST_ENDPOINT
from lab.watch.invariants import baseline
from tests.lab.watch.faults import leave_out, program_at, put_at, violations

pytestmark = pytest.mark.privileged


def test_reloads_by_workers_are_of_their_load(agent: Agent) -> None:
    before = baseline(agent)
    outcomes = [each for each in agent.reload_many(agent.subjects, workers=2) if isinstance(each, Outcome)]
    assert len(outcomes) == len(agent.subjects)
    assert all(loaded.programs and loaded.arrays for outcome in outcomes for loaded in outcome.loaded)
    assert violations(agent, before, *outcomes) == []


def test_a_calls_map_that_two_loads_share_is_found(agent: Agent) -> None:
    """Cilium issue 20691: every slot is filled, every program is of the new load, and packets met a mixture."""
    before, name = baseline(agent), calls_map(agent.node.pod("pod-1").endpoint_id)
    leave_out(agent, RepinMaps)
    outcome = agent.reload("pod-1")
    text = f"{name}: load {outcome.generation} of pod-1 uses the calls map of the load before, {name}"
    assert violations(agent, before, outcome) == [f"invariant 4: {text}"]
    # However often it is shared.
    assert violations(agent, before, outcome, agent.reload("pod-1")) == [f"invariant 4: {text}"]


def test_a_slot_with_the_program_of_the_load_before_is_found(agent: Agent) -> None:
    before, pod = baseline(agent), agent.node.pod("pod-1")
    name, old = calls_map(pod.endpoint_id), before.snapshot.slots[calls_map(pod.endpoint_id)]
    with program_by_id(old[6]) as kept:
        outcome = agent.reload("pod-1")
        with open_pin(agent.config.globals / name) as calls:
            progarray.put(calls.fd, 6, kept)
    (loaded,) = outcome.loaded
    text = f"{name} slot 6: program {old[6]} instead of {loaded.slots[name][6]}, the last reload of pod-1"
    assert f"invariant 4: {text}" in violations(agent, before, outcome)


def test_an_old_policy_program_of_the_same_endpoint_is_found(agent: Agent) -> None:
    before, ident = baseline(agent), agent.node.pod("pod-1").endpoint_id
    leave_out(agent, InsertPolicy)
    outcome = agent.reload("pod-1")
    (loaded,) = outcome.loaded
    old, new = before.snapshot.policy[ident], loaded.slots[POLICY_CALLS][ident]
    text = f"{POLICY_CALLS} slot {ident}: program {old} instead of {new}, the last reload of pod-1"
    assert f"invariant 4: {text}" in violations(agent, before, outcome)


def test_a_policy_program_that_outlives_the_hosts_firewall_is_found(agent: Agent) -> None:
    """Nobody calls it: its name, its maps and its load are what they were."""
    agent.configure(defines=(("ENABLE_HOST_FIREWALL", "1"),))
    agent.reload("host")
    before = baseline(agent)
    old = before.snapshot.policy[HOST_ENDPOINT]
    agent.configure(defines=())
    with program_by_id(old) as kept, open_pin(agent.config.globals / POLICY_CALLS) as slots:
        outcome = agent.reload("host")
        progarray.put(slots.fd, HOST_ENDPOINT, kept)
        text = f"{POLICY_CALLS} slot {HOST_ENDPOINT}: program {old} which is none of the last reload of host"
        assert violations(agent, before, outcome) == [f"invariant 4: {text}"]


def test_a_hook_that_changes_without_a_reload_is_found(agent: Agent) -> None:
    """A program with the same name and maps, from the same object: only its id tells."""
    before, ifname = baseline(agent), agent.node.pod("pod-1").ifname
    old = program_at(agent, ifname, Direction.INGRESS).program_id
    outcome = agent.reload("pod-1")
    new = program_at(agent, ifname, Direction.INGRESS).program_id
    assert violations(agent, before, outcome) == []
    text = f"{ifname} ingress: program {new} instead of {old}, the one before, without a reload"
    assert f"invariant 1: {text}" in violations(agent, before)


def test_the_object_of_another_interface_is_found(agent: Agent) -> None:
    """cilium_net with the program of cilium_host: same name, same load, other object."""
    before = baseline(agent)
    outcome = agent.reload("host")
    mine, other = (program_at(agent, name, Direction.INGRESS) for name in ("cilium_net", "cilium_host"))
    put_at(agent, mine, other.program_id)
    text = (
        f"cilium_net ingress: program {other.program_id} instead of {mine.program_id}, that of the last reload of host"
    )
    assert f"invariant 1: {text}" in violations(agent, before, outcome)


def test_the_order_is_that_of_the_ends_not_of_the_generations(agent: Agent) -> None:
    """A reload has its number before it has its turn."""
    before = baseline(agent)
    first, second = agent.reload("pod-1"), agent.reload("pod-1")
    renumbered = replace(first, generation=second.generation + 1)
    assert violations(agent, before, second, renumbered) == []
