"""The collector of connections on real maps: what it deletes, what it leaves, and that no packet notices."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath.base.mapnames import CT_MAPS, CT_TCP4, CT_TCP6
from datapath.kernel.map import Map, open_pin
from lab.abi.conntrack import CtEntry, CtTuple
from lab.agent.agent import Agent
from lab.agent.collector import Collected, collect, forget, forget_silent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.scenario import Scenario
from lab.system.sockets import Address, bound_socket
from lab.watch import metrics
from lab.watch.invariants import Expected, baseline, check
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

TREE = os.environ.get("RELOADLAB_CILIUM_BPF")
Ip = IPv4Address | IPv6Address
ENDS: dict[int, tuple[Ip, Ip]] = {
    4: (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
    6: (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
}
TCP, UDP = 6, 17
TABLES = dict(zip(CT_MAPS, ((4, TCP), (4, UDP), (6, TCP), (6, UDP)), strict=True))


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """A loaded node without traffic."""
    with Node(NodeSpec(unique_name(), pods=2)) as node, Agent(node) as agent:
        agent.start()
        yield agent


def now() -> int:
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def pin(agent: Agent, name: str) -> Map:
    return open_pin(agent.config.globals / name)


def key_of(name: str, port: int) -> bytes:
    version, protocol = TABLES[name]
    source, destination = ENDS[version]
    return CtTuple(source, destination, port, 80, protocol).pack()


def write(agent: Agent, name: str, lifetimes: dict[int, int]) -> None:
    """Write connections by source port, each with its lifetime, into one map; nothing else is left in it."""
    with pin(agent, name) as table:
        for key in list(table.keys()):
            table.delete(key)
        for port, lifetime in lifetimes.items():
            table.update(key_of(name, port), CtEntry(lifetime=lifetime).pack())


def ports(agent: Agent, name: str) -> set[int]:
    with pin(agent, name) as table:
        return {CtTuple.unpack(key).sport for key, _ in table.items()}


@pytest.mark.parametrize("name", CT_MAPS)
def test_what_is_over_goes(agent: Agent, name: str) -> None:
    """A lifetime is over when its second is past, not in it; all others live.

    The datapath's clock is a coarse one: it may be a tick behind, and so a second.
    """
    for other in CT_MAPS:
        write(agent, other, {})
    write(agent, name, {1: 0, 2: now() - 2, 3: now() + 60, 4: (1 << 32) - 1})
    found = agent.collect_connections()
    assert found == tuple(Collected(each, 4 * (each == name), 2 * (each == name)) for each in CT_MAPS)
    assert sum(item.alive for item in found) == 2
    assert ports(agent, name) == {3, 4}
    assert sum(item.deleted for item in agent.collect_connections()) == 0


def test_the_second_in_which_it_ends(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datapath takes an entry until the end of its last second (ct_find): so long it stays."""
    name = CT_MAPS[0]
    second = now()
    write(agent, name, {1: second, 2: second - 1})
    monkeypatch.setattr("lab.agent.collector.seconds", lambda: second)
    agent.collect_connections()
    assert ports(agent, name) == {1}


@pytest.mark.parametrize("name", CT_MAPS)
def test_what_was_silent_goes(agent: Agent, name: str) -> None:
    """Told from the one that was heard last; of TCP's nothing goes, as its lifetimes say more than that."""
    for other in CT_MAPS:
        write(agent, other, {})
    second = now()
    write(agent, name, {1: second + 60, 2: second + 30, 3: second + 10, 4: second + 10})
    gone = forget_silent(agent.config.globals, 35, keep=[key_of(name, 4)])
    ends_by_itself = name in (CT_TCP4, CT_TCP6)
    assert gone == (0 if ends_by_itself else 1)
    assert ports(agent, name) == ({1, 2, 3, 4} if ends_by_itself else {1, 2, 4})


def test_begun_anew_meanwhile(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet begins a connection anew, and an LRU takes another away, between the collector's look and its hand."""
    name = CT_MAPS[0]
    write(agent, name, {1: 1, 2: 1, 3: 1})
    items = Map.items

    def late(self: Map) -> Iterator[tuple[bytes, bytes]]:
        found = list(items(self))
        if self.name == name:
            self.update(key_of(name, 1), CtEntry(lifetime=now() + 60).pack())
            self.delete(key_of(name, 2))
        yield from found

    monkeypatch.setattr(Map, "items", late)
    found = {item.map: item for item in agent.collect_connections()}
    monkeypatch.undo()
    assert found[name] == Collected(name, 3, 1)
    assert ports(agent, name) == {1}


def test_only_of_some_addresses(agent: Agent) -> None:
    """Both ends count, and time does not."""
    for name, (version, protocol) in TABLES.items():
        first, second = ENDS[version]
        third = first + 7
        write(agent, name, {})
        with pin(agent, name) as table:
            for port, (source, destination) in enumerate(((first, second), (second, third), (second, first)), 1):
                who = CtTuple(source, destination, port, 80, protocol)
                table.update(who.pack(), CtEntry(lifetime=now() + 60).pack())
    gone: set[Ip] = {first for first, _ in ENDS.values()}
    assert forget(agent.config, gone) == 2 * len(CT_MAPS)
    for name in CT_MAPS:
        assert ports(agent, name) == {2}


def test_nothing_is_loaded(tmp_path: Path) -> None:
    assert collect(tmp_path) == ()


def test_a_connection_that_is_over_may_be_collected(agent: Agent) -> None:
    """A connection that is alive may not vanish, unless a scenario declares that its map changes."""
    name = CT_MAPS[2]
    write(agent, name, {1: 1, 2: now() + 1000})
    before = baseline(agent)
    agent.collect_connections()
    assert ports(agent, name) == {2}
    assert check(agent, before) == []
    write(agent, name, {})
    (found,) = check(agent, before)
    assert str(found) == f"invariant 3: map {name}: 1 of 1 connections are gone"
    assert check(agent, before, expected=Expected(changed=frozenset({name}))) == []


@pytest.mark.parametrize(
    "library",
    [
        "ours",
        pytest.param("cilium", marks=pytest.mark.skipif(TREE is None, reason="RELOADLAB_CILIUM_BPF names no bpf/")),
    ],
)
@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_no_packet_notices(library: str, endpoint_routes: bool) -> None:
    """Open TCP connections and UDP streams live through collections without a loss; what is over is gone."""
    options: dict[str, Any] = {"library": Path(TREE or "")} if library == "cilium" else {}
    spec = NodeSpec(unique_name("gc"), pods=2, endpoint_routes=endpoint_routes)
    with Scenario(spec, **options) as scenario:
        for number in range(20):
            for name in CT_MAPS:
                with pin(scenario.agent, name) as table:
                    table.update(key_of(name, 1000 + number), CtEntry(lifetime=1).pack())
            found = scenario.agent.collect_connections()
            assert all(item.alive > 0 for item in found), "connections are open in every map"
            # The traffic's own short connections are over sometimes as well.
            assert all(item.deleted > 0 for item in found)
            for name in CT_MAPS:
                with pin(scenario.agent, name) as table:
                    assert table.lookup(key_of(name, 1000 + number)) is None
            assert all(burst.complete or burst.denied for burst in scenario.traffic.burst_all(3))
    assert scenario.sent > scenario.lost == 0


def test_short_lives_end_by_themselves() -> None:
    """Real connections whose lifetime the build makes short: collected when it is over, and not before."""
    defines = (("CT_CONNECTION_LIFETIME_NONTCP", "1"),)
    with Node(NodeSpec(unique_name("gc"), pods=2)) as node, Agent(node, defines=defines) as agent, ExitStack() as stack:
        agent.start()
        ends = [[udp(stack, node, pod, 7100, version) for pod in ("pod-1", "pod-2")] for version in (4, 6)]
        begun = now()
        for sender, receiver in ends:
            sender.sendto(b"x", receiver.getsockname())
            assert receiver.recv(16) == b"x"
        gone: Counter[str] = Counter()
        deadline = time.monotonic() + 20
        while gone.total() < 4:
            assert time.monotonic() < deadline
            gone.update({item.map: item.deleted for item in agent.collect_connections()})
            assert now() > begun + 1 or not gone.total()
            time.sleep(0.05)
        # Of each connection both sides have an entry.
        assert +gone == {CT_MAPS[1]: 2, CT_MAPS[3]: 2}


def udp(stack: ExitStack, node: Node, pod: str, port: int, version: int) -> socket.socket:
    """Return a UDP socket bound to a port of a pod; what does not come within a second is a timeout."""
    facts = node.pod(pod)
    address = str(facts.ipv4 if version == 4 else facts.ipv6)
    deadline = time.monotonic() + 10
    made = bound_socket(Address(str(node.netns(pod)), address, port), socket.SOCK_DGRAM, deadline)
    made.settimeout(1)
    return stack.enter_context(made)


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_inherits_no_connection(agent: Agent, version: int) -> None:
    """A pod that gets the addresses of one that is gone: what would have been an answer is dropped by its policy."""
    agent.add_pod("late")
    agent.apply_policies({"name": "one way", "endpoint": "late", "ingress": [{}]})
    first = agent.node.pod("late")
    with ExitStack() as stack:
        peer, late = udp(stack, agent.node, "pod-1", 7200, version), udp(stack, agent.node, "late", 7300, version)
        late.sendto(b"question", peer.getsockname())
        assert peer.recvfrom(16)[1][:2] == late.getsockname()[:2]
        peer.sendto(b"answer", late.getsockname())
        assert late.recv(16) == b"answer"
        agent.remove_pod("late")
        assert forget(agent.config, {first.ipv4, first.ipv6}) == 0, "the connections went with the pod"
        agent.add_pod("late")
        second = agent.node.pod("late")
        assert (second.ipv4, second.ipv6) == (first.ipv4, first.ipv6)
        before = metrics.read(agent.node)
        late = udp(stack, agent.node, "late", 7300, version)
        peer.sendto(b"answer", late.getsockname())
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(16)
        assert metrics.read(agent.node).drops_since(before) == {(133, metrics.INGRESS): 1}
    agent.apply_policies([])
    agent.remove_pod("late")
