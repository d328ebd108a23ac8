"""Pods with netkit devices: programs that the device itself runs, attached by links, and no tc hook between."""

from __future__ import annotations

import os

import pytest

from reloadlab import (
    Call,
    Direction,
    Gate,
    Program,
    ReloadlabError,
    Scenario,
    Step,
    VerifierError,
    Workspace,
    netkit_is_supported,
    read_counters,
    take_snapshot,
)

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() == 0 and not netkit_is_supported(), reason="no netkit devices: Linux 6.7, CONFIG_NETKIT"
    ),
    pytest.mark.own_loader("other loaders are not asked to attach programs to netkit devices"),
    pytest.mark.node(pods=2, datapath_mode="netkit"),
]

FLOW = "pod-1 -> pod-2 udp v4"
TRIES = 5
"""Bursts of which one must have had the program to itself: kernels send packets by themselves."""


class Injected(ReloadlabError):
    """A fault that a gate raises."""


def hits(scenario: Scenario) -> int:
    """Return how many packets from pod-1 have met its program."""
    ident = scenario.node.pod("pod-1").endpoint_id
    counted = read_counters(scenario.node).hits
    return sum(
        packets
        for (_, source, program), packets in counted.items()
        if (source, program) == (ident, Program.FROM_CONTAINER)
    )


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.node(datapath_mode=mode)) for mode in ("netkit", "netkit-l2")]
)
def test_between_any_two_steps(scenario: Scenario, mode: str) -> None:
    """Everything is reloaded with packets under way, a burst of each flow behind every step of a pod's reload."""
    scenario.reload()
    silent: list[str] = []

    def push(step: Step, work: Workspace) -> None:
        silent.extend(f"after {step.name}: {burst}" for burst in scenario.traffic.burst_all(3) if not burst.complete)

    gate = Gate(push, after="*")
    scenario.reload("pod-1", gate=gate)
    assert not silent
    pod = scenario.node.pod("pod-1")
    assert (pod.mac == pod.node_mac) == (mode == "netkit"), "only without Ethernet addresses both ends have zeros"
    (found,) = take_snapshot(scenario.node).filters[pod.ifname, Direction.INGRESS]
    assert (found.kind, found.name) == ("netkit", f"cil_from_container-{pod.ifname}")


@pytest.mark.own_sources("counts by programs: only our own C has counters for them (reloadlab_hits)")
@pytest.mark.node(rate=0)
def test_one_program_meets_each_packet(scenario: Scenario) -> None:
    """At every system call of a reload: never none, never two."""
    wrong: list[str] = []

    def look(call: Call) -> None:
        met = 0
        for _ in range(TRIES):
            before = hits(scenario)
            scenario.traffic.burst(FLOW, 1)
            met = hits(scenario) - before
            if met == 1:
                return
        wrong.append(f"before {call.text}: {met}")

    gate = Gate(look, call="*")
    scenario.reload("pod-1", gate=gate)
    assert sum(count for text, count in gate.calls.items() if text.startswith("LINK_UPDATE ")) == 1, gate.passed_calls
    assert not wrong, "\n".join(wrong)


@pytest.mark.own_sources
def test_failed_reload_leaves_the_old_program(scenario: Scenario) -> None:
    """Refused by the verifier, and failed when the new program runs already: what ran before runs on."""
    scenario.define(REJECTED_BY_VERIFIER="1")
    scenario.reload_fails("pod-1", VerifierError)
    scenario.define()

    def fail(step: Step, work: Workspace) -> None:
        raise Injected(f"after {step.name}")

    scenario.reload_fails("pod-1", Injected, gate=Gate(fail, after="attach ingress"))
    scenario.reload("pod-1")


def test_endpoint_routes_are_refused(scenario: Scenario) -> None:
    """Before anything is changed."""
    with pytest.raises(ReloadlabError, match="no endpoint routes"):
        scenario.agent.set_endpoint_routes(True)
    scenario.reload("pod-1")


def test_pod_comes_and_goes(scenario: Scenario) -> None:
    """Its devices, links and pins go with it, and the same name can come back."""
    for _ in range(2):
        scenario.agent.add_pod("guest")
        scenario.reload("guest")
        scenario.agent.remove_pod("guest")
    pods = (scenario.node.facts.health, *scenario.node.pods)
    pinned = scenario.agent.config.endpoints_links.iterdir()
    assert {path.name for path in pinned} == {str(pod.endpoint_id) for pod in pods}
