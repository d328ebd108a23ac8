"""Scenarios notice a broken loader: each of the faults is caught by the scenario that is there for it."""

from __future__ import annotations

import time

import pytest

from datapath.base.mapnames import POLICY_CALLS
from datapath.reload.step import Plan
from datapath.reload.switchover import Attach
from lab.abi.reasons import MISSED_TAIL_CALL, POLICY_DENIED
from lab.agent.agent import Change
from lab.agent.cluster import cluster_specs
from lab.corpus import loaders
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.scenario.scenario import ClusterScenario, Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.watch import metrics
from scenarios import test_endpoint_routes, test_hitless, test_rollback
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


def broken(fault: Change, *, endpoint_routes: bool = False) -> Scenario:
    """Return a scenario whose loader is broken from the first reload of the test on."""

    class Broken(Scenario):
        def __enter__(self) -> Broken:
            super().__enter__()
            self.agent.change = fault
            return self

    return Broken(NodeSpec(unique_name("fault"), pods=3, endpoint_routes=endpoint_routes))


def test_finalize_too_early() -> None:
    """The calls map of the program that is still attached in the other direction is emptied: missed tail calls."""
    with broken(loaders.finalize_too_early, endpoint_routes=True) as scenario:
        with pytest.raises(AssertionError, match="answered"):
            test_hitless.push_between_steps(scenario, "pod-1", dwell=0.15)
        scenario.agent.change = None
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert {6, 7} <= caught.value.invariants
    assert f"({MISSED_TAIL_CALL}, " in str(caught.value)


def test_release_arrays_too_early() -> None:
    """The policy programs of pods are gone for all senders that have not been reloaded."""
    with broken(loaders.release_arrays_too_early) as scenario:
        scenario.expect(migrated={POLICY_CALLS})
        scenario.define(POLICY_PROG_MAP_SIZE="32768")
        scenario.reload("pod-1")
        missed(scenario)
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert {6, 7} <= caught.value.invariants
    assert f"({MISSED_TAIL_CALL}, " in str(caught.value)


def missed(scenario: Scenario) -> None:
    """Wait until a packet has missed its tail call."""
    deadline = time.monotonic() + 10
    while not any(reason == MISSED_TAIL_CALL for reason, _ in metrics.packets(scenario.node)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_skip_revert() -> None:
    """A refused program leaves the old maps at :pending and fresh ones in their place."""
    with pytest.raises(InvariantsViolated) as caught, broken(loaders.skip_revert) as scenario:
        test_rollback.refuse(scenario, "pod-1")
    assert {2, 8} <= caught.value.invariants
    assert "cilium_calls_00101:pending" in str(caught.value)


def test_keep_old_egress() -> None:
    """Endpoint routes are off and the egress program still enforces policy a second time."""
    with pytest.raises(InvariantsViolated) as caught, broken(loaders.keep_old_egress, endpoint_routes=True) as scenario:
        test_endpoint_routes.test_switched_off(scenario)
    assert 1 in caught.value.invariants
    assert "cil_to_container" in str(caught.value)


def test_keep_old_routes() -> None:
    """Endpoint routes are off and packets still take them."""
    with pytest.raises(InvariantsViolated) as caught, broken(loaders.keep_old_routes, endpoint_routes=True) as scenario:
        test_endpoint_routes.test_switched_off(scenario)
    assert 5 in caught.value.invariants
    assert "direct route to 10.244.0.4 is left over" in str(caught.value)


def leave_cilium_net_alone(plan: Plan) -> Plan:
    return plan.change(lambda step: None if isinstance(step, Attach) and step.target == "cilium_net" else step)


def test_old_program_stays_at_a_hook() -> None:
    """The program of cilium_net is that of the load before; it uses no calls map, and packets pass as before."""
    with pytest.raises(InvariantsViolated) as caught, broken(leave_cilium_net_alone) as scenario:
        scenario.reload("host")
    assert caught.value.invariants == {1, 4}
    assert "cilium_net ingress: program" in str(caught.value)


def test_old_program_stays_at_a_hook_of_one_of_two_nodes() -> None:
    name = unique_name("fault")[:28]
    with ClusterScenario(cluster_specs(name, 2, pods=1, tunnel=True)) as scenario:
        scenario.cluster.agent(2).change = leave_cilium_net_alone
        scenario.reload("2/host", "1/host")
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    attached, published = sorted(caught.value.violations, key=lambda violation: violation.invariant)
    assert str(attached).startswith(f"invariant 1: {name}-2: cilium_net ingress: program")
    assert str(published).startswith(f"invariant 4: {name}-2: ")


def test_never_finalize() -> None:
    """Old maps stay pinned."""
    with pytest.raises(InvariantsViolated) as caught, broken(loaders.never_finalize) as scenario:
        test_endpoint_routes.test_off(scenario)
    assert 2 in caught.value.invariants


def test_one_of_two_nodes() -> None:
    """Only one node's loader is broken; packets of the other meet its faults, and the report says where they are."""
    name = unique_name("fault")[:28]
    with ClusterScenario(cluster_specs(name, 2, pods=1, tunnel=True)) as scenario:
        broken = scenario.cluster.agent(2)
        broken.change = loaders.finalize_too_early
        gate = Gate(lambda *_: dwell(scenario), after="let go of calls")
        scenario.reload("1/host")
        assert gate.passed == 0
        scenario.reload("2/host", gate=gate)
        assert gate.passed == 1
        broken.change = None
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert 6 in caught.value.invariants
    lines = [str(violation) for violation in caught.value.violations if violation.invariant == 6]
    assert all(f"{name}-2: " in line for line in lines), lines
    # What misses its tail call is not denied by the policy.
    assert all(f"({MISSED_TAIL_CALL}, " in line or f"({POLICY_DENIED}, " in line for line in lines), lines
    assert any(f"({MISSED_TAIL_CALL}, " in line for line in lines), lines


def dwell(scenario: ClusterScenario) -> None:
    """Send packets for as long as the kernel may take to empty a calls map."""
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        scenario.silence()
