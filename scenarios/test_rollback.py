"""Reloads that fail: the old programs, maps, routes and connections live on, whatever went wrong and wherever."""

from __future__ import annotations

import struct
import threading

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
    detach,
    filters,
    take_snapshot,
)

RTM_DELLINK = 17


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
    assert isinstance(error, VerifierError)
    assert "invalid access to packet" in error.log
    scenario.define()


@pytest.mark.own_sources
@pytest.mark.node(pods=2)
def test_refused_after_maps_were_moved(scenario: Scenario) -> None:
    """The reference returns here without putting the maps back, and the old programs read empty maps."""
    scenario.define(REJECTED_BY_VERIFIER="1", POLICY_MAP_SIZE="4096")
    scenario.reload_fails("pod-1", VerifierError)
    scenario.define()


@pytest.mark.node(pods=2, endpoint_routes=True)
def test_second_attach_fails(scenario: Scenario) -> None:
    """Somebody else's filter sits where the egress program belongs; the ingress program is attached by then."""
    pod = scenario.node.pod("pod-1")
    with NetlinkSocket(scenario.node.netns("node")) as netlink:
        (ours,) = filters(netlink, pod.ifindex, Direction.EGRESS)

        def squat(step: Step, work: Workspace) -> None:
            fd = work.keep_program(ours.program_id)
            attach(netlink, pod.ifindex, Direction.EGRESS, program_fd=fd, name="acme-firewall", priority=1)

        gate = Gate(squat, before="repin maps")
        before = take_snapshot(scenario.node)
        with pytest.raises(HookTaken, match="acme-firewall"):
            scenario.agent.reload("pod-1", observer=gate)
        now = take_snapshot(scenario.node)
        assert now.filters[pod.ifname, Direction.INGRESS] == before.filters[pod.ifname, Direction.INGRESS]
        assert now.datapath()[1:] == before.datapath()[1:]
        (foreign,) = filters(netlink, pod.ifindex, Direction.EGRESS)
        assert foreign.name == "acme-firewall"
        detach(netlink, foreign)
    scenario.reload("pod-1")


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

    for number, _ in enumerate(scenario.agent.plan(subject).steps[:-1]):
        scenario.reload_fails(subject, Cancelled, gate=Gate(cancel, after="*", nth=number))
    cancelled = threading.Event()
    cancelled.set()
    scenario.reload_fails(subject, Cancelled, cancel=cancelled)
    scenario.reload(subject)


@pytest.mark.parametrize("subject", ["pod-1", "host"])
@pytest.mark.node(pods=2)
def test_fault_after_every_step(scenario: Scenario, subject: str) -> None:
    """An error behind each step but the commit undoes all steps, the one that has just been done included."""

    def fail(step: Step, work: Workspace) -> None:
        raise Injected(f"after {step.name} {step.target}")

    for number, _ in enumerate(scenario.agent.plan(subject).steps[:-1]):
        scenario.reload_fails(subject, Injected, gate=Gate(fail, after="*", nth=number))
    scenario.reload(subject)


def _delete(netlink: NetlinkSocket, ifindex: int) -> None:
    header = struct.pack("=IHHII", 32, RTM_DELLINK, NLM_F_REQUEST, 0, 0)
    netlink.request("delete the pod's device", header + struct.pack("=BxHiII", 0, 0, ifindex, 0, 0))
