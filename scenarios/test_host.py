"""The host endpoint: cilium_host both ways, cilium_net, native devices; the health endpoint; the overlay."""

from __future__ import annotations

import pytest

from reloadlab import Direction, LinkNotFound, Scenario, host_plan, take_snapshot

ROUNDS = 30


@pytest.mark.own_loader("the loads of each object are steps of our own pipeline")
@pytest.mark.node(pods=2)
def test_host(scenario: Scenario) -> None:
    """Each object is loaded once, whatever number of hooks it has."""
    for outcome in (scenario.reload("host")[0] for _ in range(ROUNDS)):
        loads = [span.target for span in outcome.spans if span.step == "load programs"]
        assert loads == ["bpf_host.o", "bpf_host_cilium_net.o"]


@pytest.mark.node(pods=2, devices=("eth0",))
def test_devices(scenario: Scenario) -> None:
    """A native device gets its own copy of the object and both programs."""
    for _ in range(ROUNDS):
        scenario.reload("host")
    uplink = {str(d): take_snapshot(scenario.node).filters["eth0", d][0].name for d in Direction}
    assert uplink == {"ingress": "cil_from_netdev-eth0", "egress": "cil_to_netdev-eth0"}


@pytest.mark.node(pods=2, devices=("eth0",))
def test_device_is_taken_from_the_list(scenario: Scenario) -> None:
    """A device that is configured no more loses its programs at the next reload of the host."""
    scenario.agent.configure(devices=())
    scenario.reload("host")
    assert ("eth0", Direction.INGRESS) not in take_snapshot(scenario.node).filters


@pytest.mark.node(pods=2, devices=("eth0",))
def test_device_needs_an_egress_program_no_more(scenario: Scenario) -> None:
    """It keeps the ingress program (AreDevicesRequired); and there and back again."""
    for needed in (False, True, False):
        scenario.agent.configure(egress_devices=needed)
        scenario.reload("host")
        present = take_snapshot(scenario.node).filters
        assert {d: ("eth0", d) in present for d in Direction} == {Direction.INGRESS: True, Direction.EGRESS: needed}


@pytest.mark.node(pods=2)
def test_missing_device_is_a_warning(scenario: Scenario) -> None:
    """The other interfaces are reloaded all the same."""
    warning = "device eth7 does not exist: left out"
    scenario.expect(warnings=frozenset({warning}))
    scenario.agent.configure(devices=("eth7",))
    (outcome,) = scenario.reload("host")
    scenario.agent.configure(devices=())
    assert outcome.warnings == (warning,)


@pytest.mark.node(pods=2)
def test_missing_cilium_net_is_an_error(scenario: Scenario) -> None:
    """cilium_host and cilium_net are a pair: the reload fails before it begins, under the name of what is missing."""
    links = scenario.agent.loader.links()
    links.pop("cilium_net")
    with pytest.raises(LinkNotFound, match="interface cilium_net does not exist"):
        host_plan(scenario.agent.config, scenario.agent.endpoint("host"), links, subject="host")


@pytest.mark.node(pods=2)
def test_health(scenario: Scenario) -> None:
    """The health endpoint is an ordinary endpoint with identity 4."""
    for _ in range(ROUNDS):
        scenario.reload("health")


@pytest.mark.node(pods=2, tunnel=True)
def test_overlay(scenario: Scenario) -> None:
    """The tunnel device has both programs; its object is compiled with -D options, not patched."""
    for _ in range(ROUNDS):
        scenario.reload("overlay")
