"""A switch of the routing mode that is interrupted lets no packet past the policies, then or later."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from datapath.endpoint import XdpMode
from datapath.reload.outcome import Outcome
from datapath.reload.plans import OVERLAY_SUBJECT
from datapath.reload.step import Plan
from lab.agent.agent import Agent, Failure
from lab.agent.cluster import Cluster, cluster_specs
from lab.agent.unchecked import PodsUnchecked
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.watch.checks.xdp import check_xdp
from lab.watch.metrics import INGRESS, packets
from lab.watch.snapshot import take
from tests.lab.agent.test_collector import udp
from tests.lab.labs import receives, unique_name

pytestmark = pytest.mark.privileged

PORT = 7600
DENIED = 133, INGRESS
SEALED = {"name": "sealed", "endpoint": "pod-1", "ingress": [{}]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a tunnel and endpoint routes; nobody may send to pod-1 of the first."""
    specs = cluster_specs(unique_name("modes")[:24], 2, pods=2, tunnel=True, endpoint_routes=True)
    with Cluster(specs) as made:
        made.start()
        made.agents[0].apply_policies(SEALED)
        yield made


@pytest.fixture
def agent(cluster: Cluster) -> Iterator[Agent]:
    """The agent of the first node, which comes out of every test with all of its programs."""
    yield cluster.agents[0]
    cluster.agents[0].reload_all()


def at_pod_2(plan: Plan) -> Plan:
    if plan.subject == "pod-2":
        raise KeyboardInterrupt
    return plan


def interrupt_the_switch(agent: Agent) -> Agent:
    """Leave pod-1 without an egress program, as a process does that is killed; return the agent that has done it."""
    with Agent(Node.open(agent.node.name)) as other:
        other.change = at_pod_2
        with pytest.raises(KeyboardInterrupt):
            other.set_endpoint_routes(False)
        other.change = None
    return other


class Probes:
    """Packets of the other node to pod-1, through the tunnel: none may arrive."""

    def __init__(self, cluster: Cluster, stack: ExitStack) -> None:
        one, two = cluster.nodes
        self._node = one
        self._pairs = [(udp(stack, two, "pod-1", 0, v), udp(stack, one, "pod-1", PORT, v)) for v in (4, 6)]
        self.arrived: list[str] = []

    def send(self, when: str) -> None:
        denied = self._denied() + len(self._pairs)
        for sender, receiver in self._pairs:
            sender.sendto(b"denied", receiver.getsockname())
        # Which of both becomes of each packet: it arrives, or it is denied and counted. What is neither gets a while.
        receivers = [receiver for _, receiver in self._pairs]
        deadline = time.monotonic() + 0.4
        while self._denied() < denied and not select.select(receivers, [], [], 0.002)[0]:
            if time.monotonic() > deadline:
                break
        for receiver in receivers:
            if receives(receiver, within=0.002):
                self.arrived.append(f"{when}: IPv{4 if receiver.family == socket.AF_INET else 6}")

    def _denied(self) -> int:
        return packets(self._node).get(DENIED, 0)


@pytest.fixture
def probes(cluster: Cluster) -> Iterator[Probes]:
    with ExitStack() as stack:
        made = Probes(cluster, stack)
        made.send("before")
        yield made
        assert made.arrived == []


def test_the_tunnel_waits_for_pods_without_egress_programs(agent: Agent, probes: Probes) -> None:
    """With endpoint routes it leaves the policy to them."""
    interrupt_the_switch(agent)
    with Agent(Node.open(agent.node.name)) as other:
        other.on_outcome = lambda outcome: probes.send(f"after {outcome.subject}")
        assert [each.subject for each in other.reload_all()][-1] == OVERLAY_SUBJECT


@pytest.mark.parametrize("workers", [1, 2])
def test_the_tunnel_is_left_alone_if_such_a_pod_fails(agent: Agent, probes: Probes, workers: int) -> None:
    interrupt_the_switch(agent)

    def refused(plan: Plan) -> Plan:
        if plan.subject == "pod-1":
            raise PodsUnchecked("on purpose", ["pod-1"])
        return plan

    with Agent(Node.open(agent.node.name)) as other:
        other.change = refused
        results = other.reload_many(other.subjects, workers=workers)
        failures = {each.subject: str(each.error) for each in results if isinstance(each, Failure)}
        assert failures.keys() == {"pod-1", OVERLAY_SUBJECT}
        probes.send("after the failure")
        other.change = None
        done = other.reload_many(other.subjects, workers=workers)
        assert [each.subject for each in done if isinstance(each, Outcome)][-1] == OVERLAY_SUBJECT
    probes.send("after all")


def test_the_tunnel_alone_is_refused(agent: Agent, probes: Probes) -> None:
    interrupt_the_switch(agent)
    with pytest.raises(
        PodsUnchecked, match=r"not reloaded: .* health, pod-1 of .* has none: reload them first"
    ) as refused:
        agent.reload(OVERLAY_SUBJECT)
    assert refused.value.pods == ("health", "pod-1")
    probes.send("after the refusal")
    agent.reload_many(["health", "pod-1"], workers=1)
    agent.reload(OVERLAY_SUBJECT)
    probes.send("after the reload")


def test_a_switch_that_fails_leaves_its_agent_as_it_was(agent: Agent, cluster: Cluster, probes: Probes) -> None:
    """What it reloads next is built for the mode that the node has."""
    agent.change = at_pod_2
    with pytest.raises(KeyboardInterrupt):
        agent.set_endpoint_routes(False)
    agent.change = None
    assert agent.endpoint_routes
    agent.set_endpoint_routes(False)
    agent.change = at_pod_2
    with pytest.raises(KeyboardInterrupt):
        agent.set_endpoint_routes(True)
    agent.change = None
    assert not agent.endpoint_routes
    agent.on_outcome = lambda outcome: probes.send(f"after {outcome.subject}")
    agent.reload_all()
    agent.set_endpoint_routes(True)
    agent.on_outcome = None


def test_a_switch_by_another_agent_is_seen_after_ones_of_its_own(agent: Agent) -> None:
    agent.set_endpoint_routes(False)
    agent.set_endpoint_routes(True)
    with Agent(Node.open(agent.node.name)) as other:
        other.set_endpoint_routes(False)
    with agent.reloading():
        assert not agent.endpoint_routes
    agent.set_endpoint_routes(True)


def test_the_tunnel_moves_while_a_pod_has_no_egress_program(agent: Agent, probes: Probes, cluster: Cluster) -> None:
    """Its new device comes first, unless it would let packets past a policy."""
    interrupt_the_switch(agent)
    other = cluster.agents[1]
    order = [each.subject for each in agent.set_tunnel_port(9001)]
    assert order[-1] == OVERLAY_SUBJECT
    assert other.set_tunnel_port(9001)[0].subject == OVERLAY_SUBJECT
    probes.send("after the move")


@pytest.mark.parametrize(("before", "after"), [(None, "native"), ("native", "generic"), ("generic", None)])
def test_a_switch_of_xdp_that_fails_after_its_commit_is_done(
    devices: Agent, before: XdpMode | None, after: XdpMode | None
) -> None:
    """The node says what its devices have; a switch that fails before has changed nothing."""
    devices.set_xdp(before)

    for gate, mode in ((Gate(fail, before="commit"), before), (Gate(fail, after="commit"), after)):
        devices.on_reload = partial(lambda gate, plan: gate, gate)
        with pytest.raises(ZeroDivisionError):
            devices.set_xdp(after)
        devices.on_reload = None
        assert devices.config.xdp == devices.node.spec.xdp == Node.open(devices.node.name).spec.xdp == mode
        now = take(devices.node)
        assert [str(found) for found in check_xdp(devices, now, now)] == []


def fail(*_: object) -> None:
    raise ZeroDivisionError


@pytest.fixture(scope="module")
def devices() -> Iterator[Agent]:
    """The agent of a node with a device and without pods."""
    with Node(NodeSpec(unique_name("modes"), pods=0, devices=("eth0",))) as node, Agent(node) as agent:
        agent.start()
        yield agent
