"""Reloads that fail: the old programs, maps, routes and connections live on, whatever went wrong and wherever."""

from __future__ import annotations

import struct
import threading
from dataclasses import replace

import pytest

from reloadlab import (
    NLM_F_REQUEST,
    Cancelled,
    Direction,
    Gate,
    HookTaken,
    LinkNotFound,
    NetlinkSocket,
    ReloadlabError,
    Scenario,
    Step,
    VerifierError,
    Workspace,
    attach,
    filters,
    take_snapshot,
)

RTM_DELLINK = 17


HOST_FIREWALL = {"defines": (("ENABLE_HOST_FIREWALL", "1"),)}
"""The agent's options with which the host's policy is asked."""

OWN_STEPS = pytest.mark.own_loader("faults between two steps of our own pipeline")


class Injected(ReloadlabError):
    """A fault that a gate raises."""


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.own_sources
@pytest.mark.node(pods=2)
def test_refused_by_the_verifier(scenario: Scenario, subject: str) -> None:
    """A program that reads packet data without a bounds check: the error carries the verifier's log."""
    refuse(scenario, subject)
    scenario.reload(subject)


def refuse(scenario: Scenario, subject: str) -> None:
    """Reload with a program that the verifier refuses."""
    scenario.define(REJECTED_BY_VERIFIER="1")
    error = scenario.reload_fails(subject, VerifierError)
    # Other loaders have errors of their own.
    assert "invalid access to packet" in (error.log if isinstance(error, VerifierError) else str(error))
    scenario.define()


@pytest.mark.own_sources
@pytest.mark.node(pods=2)
def test_refused_after_maps_were_moved(scenario: Scenario) -> None:
    """The reference returns here without putting the maps back, and the old programs read empty maps."""
    scenario.define(REJECTED_BY_VERIFIER="1", POLICY_MAP_SIZE="4096")
    scenario.reload_fails("pod-1", VerifierError)
    scenario.define()


@OWN_STEPS
@pytest.mark.node(pods=2, endpoint_routes=True, agent={"attach": "tc"})
def test_second_attach_fails(scenario: Scenario) -> None:
    """Somebody else's filter sits where the egress program belongs; the ingress program is attached by then."""
    pod = scenario.node.pod("pod-1")
    # The program is there all the time, but for a while in a filter that is not ours.
    scenario.expect(moments=frozenset({"egress hook had no program"}))
    with NetlinkSocket(scenario.node.netns("node")) as netlink:
        (ours,) = filters(netlink, pod.ifindex, Direction.EGRESS)

        def named(name: str) -> Gate:
            """Return a gate at which the filter gets another name; its program stays, and so no packet passes."""

            def attach_again(step: Step, work: Workspace) -> None:
                fd = work.keep_program(ours.program_id)
                attach(netlink, pod.ifindex, Direction.EGRESS, program_fd=fd, name=name, priority=1)

            return Gate(attach_again, before="repin maps")

        before = take_snapshot(scenario.node)
        with pytest.raises(HookTaken, match="acme-firewall"):
            scenario.agent.reload("pod-1", observer=named("acme-firewall"))
        now = take_snapshot(scenario.node)
        assert now.filters[pod.ifname, Direction.INGRESS] == before.filters[pod.ifname, Direction.INGRESS]
        assert now.datapath()[1:] == before.datapath()[1:]
        (foreign,) = filters(netlink, pod.ifindex, Direction.EGRESS)
        assert foreign.name == "acme-firewall"
        scenario.reload("pod-1", gate=named(ours.name))


@OWN_STEPS
@pytest.mark.parametrize("when", ["load programs", "attach ingress", "attach egress", "commit"])
@pytest.mark.node(pods=3, endpoint_routes=True)
def test_interface_disappears(scenario: Scenario, when: str) -> None:
    """A pod dies in the middle of its reload: one clear error, no pin left over, its neighbours unharmed."""
    scenario.agent.add_pod("doomed")
    pod = scenario.node.pod("doomed")
    pins = set(take_snapshot(scenario.node).pins)

    def kill(step: Step, work: Workspace) -> None:
        _delete(work.netlink, pod.ifindex)

    gate = Gate(kill, before=when)
    if when == "commit":
        scenario.agent.reload("doomed", observer=gate)
    else:
        with pytest.raises(LinkNotFound, match=pod.ifname):
            scenario.agent.reload("doomed", observer=gate)
    assert gate.passed == 1
    assert set(take_snapshot(scenario.node).pins) == pins
    scenario.agent.remove_pod("doomed")


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.node(pods=2, endpoint_routes=True)
def test_cancelled_before_every_step(scenario: Scenario, subject: str) -> None:
    """Whenever the cancellation comes, the node is as before; the next reload goes through."""

    def cancel(step: Step, work: Workspace) -> None:
        work.cancel.set()

    for number, _ in enumerate(scenario.agent.plan(subject).steps[:-1], 1):
        scenario.reload_fails(subject, Cancelled, gate=Gate(cancel, after="*", nth=number))
    cancelled = threading.Event()
    cancelled.set()
    scenario.reload_fails(subject, Cancelled, cancel=cancelled)
    scenario.reload(subject)


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("pod-1", marks=pytest.mark.node(pods=2)),
        pytest.param("host", marks=pytest.mark.node(pods=2)),
        pytest.param("host", marks=pytest.mark.node(pods=2, devices=("eth0",)), id="host-with-devices"),
        pytest.param("host", marks=pytest.mark.node(pods=2, agent=HOST_FIREWALL), id="host-firewall"),
        pytest.param("overlay", marks=pytest.mark.node(pods=2, tunnel=True)),
        pytest.param("pod-1", marks=pytest.mark.node(pods=2, endpoint_routes=True), id="pod-1-endpoint-routes"),
    ],
)
def test_fault_after_every_step(scenario: Scenario, subject: str) -> None:
    """An error behind each step but the commit undoes all steps, the one that has just been done included."""
    fail_after_every_step(scenario, subject)
    scenario.reload(subject)


def fail_after_every_step(scenario: Scenario, subject: str) -> None:
    """Reload again and again, with an error behind the first step, then behind the second, and so on."""

    def fail(step: Step, work: Workspace) -> None:
        raise Injected(f"after {step.name} {step.target}")

    for number, _ in enumerate(scenario.agent.plan(subject).steps[:-1], 1):
        scenario.reload_fails(subject, Injected, gate=Gate(fail, after="*", nth=number))
        left = [path.name for path in scenario.agent.config.state.glob("*.new")]
        left += [path.name for path in scenario.agent.config.state.glob("*/*.new")]
        assert left == []


@pytest.mark.parametrize(
    "on",
    [
        pytest.param(True, marks=pytest.mark.node(pods=2), id="on"),
        pytest.param(False, marks=pytest.mark.node(pods=2, endpoint_routes=True), id="off"),
    ],
)
def test_fault_while_endpoint_routes_are_switched(scenario: Scenario, on: bool) -> None:
    """Filters and routes of the pod are again those of the mode that the node is in."""
    scenario.expect(other_path=True)
    before = scenario.agent.config.node
    # As a switch does: without endpoint routes the node's route leads to the pods.
    scenario.node.set_node_route(True)
    scenario.agent.configure(node=replace(before, endpoint_routes=on))
    fail_after_every_step(scenario, "pod-1")
    scenario.agent.configure(node=before)
    scenario.node.set_node_route(on)
    scenario.reload("pod-1")


@pytest.mark.node(pods=2, devices=("eth0",))
def test_fault_while_a_device_is_added(scenario: Scenario) -> None:
    """The device has no filter, no map and no object, as before.

    It has had them: its clsact is there. The kernel stops the queue of a device for a moment to give it one
    (qdisc_graft: dev_deactivate), and drops what is sent meanwhile.
    """
    scenario.agent.configure(devices=())
    scenario.reload("host")
    scenario.agent.configure(devices=("eth0",))
    fail_after_every_step(scenario, "host")
    scenario.agent.configure(devices=())
    scenario.reload("host")


@pytest.mark.node(pods=2, devices=("eth0",))
def test_fault_while_a_device_loses_its_egress_program(scenario: Scenario) -> None:
    """The device has both programs, as before, until a reload goes through."""
    scenario.agent.configure(egress_devices=False)
    fail_after_every_step(scenario, "host")
    scenario.reload("host")


@pytest.mark.node(pods=2, devices=("eth0",))
def test_fault_while_a_device_is_taken_away(scenario: Scenario) -> None:
    """It keeps its programs, its map and its object."""
    scenario.agent.configure(devices=())
    fail_after_every_step(scenario, "host")
    scenario.agent.configure(devices=("eth0",))
    scenario.reload("host")


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("node", marks=pytest.mark.node(pods=2)),
        pytest.param("endpoint-routes", marks=pytest.mark.node(pods=2, endpoint_routes=True)),
    ],
)
def test_fault_in_the_first_load_of_a_pod(scenario: Scenario, network: str) -> None:
    """Nothing is left of a pod's programs and maps until its first load succeeds."""
    scenario.node.add_pod("late")
    scenario.agent.sync()
    fail_after_every_step(scenario, "late")
    scenario.reload("late")
    scenario.agent.remove_pod("late")


@pytest.mark.node(pods=2)
def test_object_that_cannot_be_published(scenario: Scenario) -> None:
    """Somebody has cleaned up on the disk: the commit fails at its second object and takes the first one back."""
    directory = scenario.agent.config.state / str(scenario.agent.endpoint("host").id)
    before = (directory / "bpf_host.o").read_bytes()
    second = directory / "bpf_host_cilium_net.o.new"

    def clean_up(step: object, work: object) -> None:
        assert second.exists()
        second.unlink()

    gate = Gate(clean_up, before="commit")
    scenario.reload_fails("host", ReloadlabError, gate=gate)
    assert (directory / "bpf_host.o").read_bytes() == before
    scenario.reload("host")


def _delete(netlink: NetlinkSocket, ifindex: int) -> None:
    header = struct.pack("=IHHII", 32, RTM_DELLINK, NLM_F_REQUEST, 0, 0)
    netlink.request("delete the pod's device", header + struct.pack("=BxHiII", 0, 0, ifindex, 0, 0))
