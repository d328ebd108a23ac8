"""The array of policy programs is replaced by one pod's reload while all pods talk through the old one."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest

from reloadlab import Flow, Gate, Node, Scenario, default_flows, take_snapshot
from scenarios.steps import steps_of

ARRAY, SMALLER = "cilium_call_policy", "32768"
BURST = 3
"""Packets of each flow at each gate."""


PROTOCOLS: tuple[tuple[Literal["udp", "tcp"], int], ...] = (("udp", 7017), ("tcp", 7018))


def every_pair(node: Node) -> list[Flow]:
    """Return the usual flows, and UDP and TCP, IPv4 and IPv6, from each pod to each other one."""
    flows = default_flows(node)
    known = {flow.name for flow in flows}
    for source, target in itertools.permutations(node.pods, 2):
        for version, address in ((4, "ipv4"), (6, "ipv6")):
            for protocol, port in PROTOCOLS:
                flow = Flow(
                    f"{source.name} -> {target.name} {protocol} v{version}",
                    *(str(node.netns(source.name)), str(getattr(source, address))),
                    *(str(node.netns(target.name)), str(getattr(target, address))),
                    port=port,
                    protocol=protocol,
                )
                flows += [flow] if flow.name not in known else []
    return flows


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("node", marks=pytest.mark.node(pods=3, flows=every_pair)),
        pytest.param("endpoint-routes", marks=pytest.mark.node(pods=3, flows=every_pair, endpoint_routes=True)),
    ],
)
def test_others_are_reloaded_one_by_one(scenario: Scenario, network: str) -> None:
    """No packet is lost between any two steps, whoever is on the old array; it goes when nobody is."""
    scenario.expect(migrated=frozenset({ARRAY}))
    scenario.define(POLICY_PROG_MAP_SIZE=SMALLER)
    silent: list[str] = []

    def push(step: object, work: object) -> None:
        silent.extend(f"{step}: {burst}" for burst in scenario.traffic.burst_all(BURST) if not burst.complete)

    steps, gate = steps_of(scenario.agent, "pod-1"), Gate(push, after="*")
    first = scenario.reload("pod-1", gate=gate)[0]
    assert gate.passed >= steps
    assert first.migrated == (ARRAY,)
    node, last = scenario.agent.node_subjects, "pod-3"
    others = [subject for subject in scenario.agent.subjects if subject not in ("pod-1", *node, last)]
    for subject in (*others, *node, last):
        # With endpoint routes pods do not jump through it: only the host and the tunnel do.
        used = network == "node" or subject != last
        snapshot = take_snapshot(scenario.node)
        assert bool(snapshot.retired) == used, f"before {subject} is reloaded"
        for name, slots in snapshot.retired.items():
            assert slots == snapshot.policies[ARRAY], f"{name}, before {subject} is reloaded"
        assert scenario.reload(subject, gate=Gate(push, after="insert policy"))[0].migrated == ()
    assert take_snapshot(scenario.node).retired == {}
    assert not silent, "\n".join(silent[:20])


@pytest.mark.node(pods=3, flows=every_pair)
def test_there_and_back_in_parallel(scenario: Scenario) -> None:
    """An upgrade and its downgrade by several workers: in between each pod may be on another array."""
    scenario.expect(migrated=frozenset({ARRAY}))
    for macros in ({"POLICY_PROG_MAP_SIZE": SMALLER}, {}):
        scenario.define(**macros)
        scenario.reload("pod-2")
        scenario.reload_parallel(scenario.agent.subjects, workers=3)
    assert take_snapshot(scenario.node).retired == {}
