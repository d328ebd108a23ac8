"""Pods that come and go while others talk: made, removed, and made anew under the same name and address."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from reloadlab import (
    METRIC_EGRESS,
    METRIC_INGRESS,
    Address,
    Counters,
    Flow,
    Node,
    PodFacts,
    Scenario,
    Traffic,
    bound_socket,
    packet_counters,
    slowness,
)

ROUNDS = 4
BURST = 5
"""Packets of each flow."""
GUEST = "guest"
STALE = 151, METRIC_INGRESS
"""Nobody here has the address: counted where cilium_host takes the packet."""
DENIED = 133, METRIC_EGRESS
KNOCKS = 7029
"""The port at which the guest is knocked at."""
PATIENCE = 5.0
"""Seconds within which one of the knocks has arrived, on an ordinary machine."""
PAUSE = 0.0002
"""Seconds between two packets to an address: a few dozen for each step of a removal."""

NETWORKS = [
    pytest.param("node", marks=pytest.mark.node(pods=2, policy=None)),
    pytest.param("endpoint-routes", marks=pytest.mark.node(pods=2, policy=None, endpoint_routes=True)),
]


def to_guest(node: Node) -> list[Flow]:
    """Return UDP and TCP, IPv4 and IPv6, from a pod to the one that comes and goes."""
    sender, guest = node.pod("pod-1"), node.pod(GUEST)
    here, there = str(node.netns("pod-1")), str(node.netns(GUEST))
    return [
        Flow("udp v4", here, str(sender.ipv4), there, str(guest.ipv4), port=7027),
        Flow("udp v6", here, str(sender.ipv6), there, str(guest.ipv6), port=7027),
        Flow("tcp v4", here, str(sender.ipv4), there, str(guest.ipv4), protocol="tcp", port=7028),
        Flow("tcp v6", here, str(sender.ipv6), there, str(guest.ipv6), protocol="tcp", port=7028),
    ]


def talk(node: Node) -> None:
    """Open connections to the guest and have every packet answered."""
    with Traffic(to_guest(node), rate=0) as traffic:
        for burst in traffic.burst_all(BURST):
            assert burst.complete, burst
        assert traffic.stop().findings() == []


@contextmanager
def knocking(node: Node, target: PodFacts) -> Iterator[None]:
    """Send packets from a pod to the addresses of another all the time, whether it is there or not (`hear_knocks`)."""
    sender, here = node.pod("pod-1"), str(node.netns("pod-1"))
    pairs = ((sender.ipv4, target.ipv4), (sender.ipv6, target.ipv6))
    deadline = time.monotonic() + 5 * slowness()
    sockets = [
        (bound_socket(Address(here, str(source), 0), socket.SOCK_DGRAM, deadline), (str(ip), KNOCKS))
        for source, ip in pairs
    ]
    done = threading.Event()

    def knock() -> None:
        while not done.wait(PAUSE):
            for sock, address in sockets:
                sock.sendto(b"knock", address)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for sock, _ in sockets:
            sock.close()


def hear_knocks(node: Node) -> None:
    """Receive a knock by each IP version in the guest, which is there by now: none is dropped meanwhile."""
    guest, netns = node.pod(GUEST), str(node.netns(GUEST))
    before, deadline = Counters(packet_counters(node)), time.monotonic() + 5 * slowness()
    for ip in (guest.ipv4, guest.ipv6):
        with bound_socket(Address(netns, str(ip), KNOCKS), socket.SOCK_DGRAM, deadline) as receiver:
            receiver.settimeout(PATIENCE * slowness())
            assert receiver.recv(64) == b"knock"
    dropped = Counters(packet_counters(node)).drops_since(before)
    assert not dropped, dropped


@contextmanager
def leaving(node: Node, target: PodFacts) -> Iterator[list[bytes]]:
    """Send packets from the guest to a pod all the time, also while the guest is removed; yield what arrives."""
    guest, there = node.pod(GUEST), str(node.netns(target.name))
    deadline = time.monotonic() + 5 * slowness()
    pairs = ((guest.ipv4, target.ipv4), (guest.ipv6, target.ipv6))
    arrived: list[bytes] = []
    done = threading.Event()
    with ExitStack() as stack:
        senders, receivers = [], []
        for source, to in pairs:
            receivers.append(
                stack.enter_context(bound_socket(Address(there, str(to), 7030), socket.SOCK_DGRAM, deadline))
            )
            sender = bound_socket(Address(str(node.netns(GUEST)), str(source), 0), socket.SOCK_DGRAM, deadline)
            senders.append((stack.enter_context(sender), (str(to), 7030)))

        def send() -> None:
            while not done.wait(PAUSE):
                for sock, address in senders:
                    try:
                        sock.sendto(b"from the guest", address)
                    except OSError as error:
                        # Its interface goes with it, and the routes with that.
                        if error.errno not in (errno.EINVAL, errno.ENETUNREACH):
                            raise

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield arrived
        finally:
            done.set()
            thread.join()
        for sock in receivers:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                arrived.append(sock.recv(64))


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_pod_may_not_send_it_does_not_send_when_it_dies(scenario: Scenario, network: str) -> None:
    """Its programs are taken away before its interface: no packet passes without them."""
    node, agent = scenario.node, scenario.agent
    policies = [{"name": "nothing", "endpoint": GUEST, "egress": [{"toEntities": ["health"]}]}]
    before = Counters(packet_counters(node))
    for _ in range(2):
        agent.add_pod(GUEST)
        agent.apply_policies(policies)
        with leaving(node, node.pod("pod-1")) as arrived:
            time.sleep(20 * PAUSE)
            agent.remove_pod(GUEST)
        assert arrived == []
        agent.apply_policies([])
    dropped = Counters(packet_counters(node)).drops_since(before)
    assert dropped[DENIED] > 0, dropped
    # All others are found at the end, but for those of the kernels' own packets that Cilium's programs drop.
    scenario.expect(drops={DENIED: dropped[DENIED]})


@pytest.mark.parametrize("network", NETWORKS)
def test_made_anew_under_the_same_name(scenario: Scenario, network: str) -> None:
    """What is known of the former pod does not hold for the new one; traffic reaches it as soon as it is loaded."""
    for _ in range(ROUNDS):
        scenario.agent.add_pod(GUEST)
        talk(scenario.node)
        scenario.reload(GUEST)
        scenario.agent.remove_pod(GUEST)


@pytest.mark.parametrize("network", NETWORKS)
def test_deletion_of_a_former_pod_comes_late(scenario: Scenario, network: str) -> None:
    """Its interface had the name that another pod's has by now: nothing of that one is touched."""
    agent = scenario.agent
    present = agent.endpoint("pod-2")
    assert present.ifindex is not None
    former = replace(
        present,
        id=present.id + 1000,
        ifindex=present.ifindex + 1000,
        ipv4=IPv4Address("10.244.15.200"),
        ipv6=IPv6Address("fd00:10:244::ff00"),
    )
    agent.unload_endpoint(former, str(former.id), forget=lambda: None)
    for burst in scenario.traffic.burst_all(BURST):
        assert burst.complete, burst
    scenario.reload("pod-2")
    agent.unload_endpoint(former, str(former.id), forget=lambda: None)


@pytest.mark.parametrize("network", NETWORKS)
def test_packets_to_a_pod_that_comes_and_goes(scenario: Scenario, network: str) -> None:
    """Nobody finds it before it is complete, nor half of it while it dies: a packet is delivered, or has no target."""
    scenario.agent.add_pod(GUEST)
    guest = scenario.node.pod(GUEST)
    before = Counters(packet_counters(scenario.node))
    with knocking(scenario.node, guest):
        hear_knocks(scenario.node)
        for _ in range(ROUNDS):
            scenario.agent.remove_pod(GUEST)
            scenario.agent.add_pod(GUEST)
            assert scenario.node.pod(GUEST).ipv4 == guest.ipv4
            hear_knocks(scenario.node)
    dropped = Counters(packet_counters(scenario.node)).drops_since(before)
    scenario.expect(drops={STALE: dropped.get(STALE, 0)})
    scenario.agent.remove_pod(GUEST)
