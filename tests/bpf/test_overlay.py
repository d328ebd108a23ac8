"""The programs on real devices: who a packet is said to come from, out of the tunnel, into it, and between pods.

The other node is a socket outside, which speaks VXLAN by hand.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest

from datapath.endpoint import HOST_ID
from datapath.kernel.map import Map, open_pin
from datapath.kernel.netns import enter
from lab.abi import layouts, policymap
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NODE, OUTSIDE, NodeSpec
from lab.system import tools
from lab.watch import metrics
from scenarios import frames
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

VXLAN_PORT = 8472
VXLAN_VALID_VNI = 0x08000000
REMOTE: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("10.77.0.5"), 6: IPv6Address("fd00:77::5")}
REMOTE_IDENTITY = 0x12345
INVALID_IDENTITY = (171, 1)
PATIENCE = 5.0  # seconds
SILENCE = 0.2  # seconds that nothing may come in

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A loaded node with a tunnel, and a pod behind it that only exists in ipcache, on "the node" outside."""

    node: Node

    def address(self, version: int) -> IPv4Address | IPv6Address:
        pod = self.node.pods[0]
        return pod.ipv4 if version == 4 else pod.ipv6

    def router(self, version: int) -> IPv4Address | IPv6Address:
        return self.node.spec.router4 if version == 4 else self.node.spec.router6

    def watch(self, identity: int) -> None:
        """Give the first pod a rule for an identity, whose counter starts at zero."""
        with self._policy() as rules:
            rules.update(policymap.policy_key_any(egress=False, identity=identity), policymap.POLICY_ENTRY_ALLOW)

    def seen(self, identity: int) -> int:
        """Return how many packets that rule has met."""
        with self._policy() as rules:
            value = rules.lookup(policymap.policy_key_any(egress=False, identity=identity))
        assert value is not None
        return policymap.PolicyEntry.unpack(value).packets

    def _policy(self) -> Map:
        name = f"cilium_policy_{self.node.pods[0].endpoint_id:05d}"
        return open_pin(self.node.datapath_config().globals / name)

    def socket(self, stack: ExitStack, where: str, address: IPv4Address | IPv6Address, port: int = 0) -> socket.socket:
        """Open a UDP socket in a namespace of the node."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with enter(self.node.netns(where)):
            opened = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        opened.settimeout(PATIENCE)
        opened.bind((str(address), port))
        return opened

    def send_encapsulated(self, vni: int, destination: IPv4Address | IPv6Address, port: int, data: bytes) -> None:
        """Send a datagram as the other node would: from REMOTE, in VXLAN, with an identity as the VNI."""
        message = struct.pack("!4H", 4000, port, 8 + len(data), 0) + data
        remote = REMOTE[destination.version]
        if isinstance(destination, IPv4Address) and isinstance(remote, IPv4Address):
            inner = frames.eth(
                "02:00:00:00:00:09", "02:00:00:00:00:08", 0x0800, frames.ipv4(remote, destination, message)
            )
        else:
            assert isinstance(destination, IPv6Address)
            assert isinstance(remote, IPv6Address)
            pseudo = remote.packed + destination.packed + struct.pack("!II", len(message), frames.UDP)
            checked = message[:6] + struct.pack("!H", frames.checksum(pseudo + message)) + message[8:]
            inner = frames.eth(
                "02:00:00:00:00:09", "02:00:00:00:00:08", 0x86DD, frames.ipv6(remote, destination, checked)
            )
        with ExitStack() as stack:
            sender = self.socket(stack, OUTSIDE, self.node.spec.outside4.ip)
            sender.sendto(
                struct.pack("!II", VXLAN_VALID_VNI, vni << 8) + inner, (str(self.node.spec.node4.ip), VXLAN_PORT)
            )


@pytest.fixture(scope="module", params=[False, True], ids=["off", "on"])
def tunnel(request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    spec = NodeSpec(f"overlay-{os.getpid()}", pods=2, tunnel=True, endpoint_routes=request.param)
    with Node(spec) as node, Agent(node) as agent:
        agent.start()
        with open_pin(agent.config.globals / "cilium_ipcache") as ipcache:
            # A wrong identity for the second pod: who sends is what its program says, and ipcache is not asked.
            for address in (node.pods[1].ipv4, node.pods[1].ipv6):
                value = layouts.RemoteEndpointInfo(REMOTE_IDENTITY + 1).pack()
                ipcache.update(layouts.ipcache_key(address, address.max_prefixlen), value)
            for remote in REMOTE.values():
                value = layouts.RemoteEndpointInfo(REMOTE_IDENTITY, spec.outside4.ip).pack()
                ipcache.update(layouts.ipcache_key(remote, remote.max_prefixlen), value)
                # As the agent would for another node's pods, so that the host itself finds the way.
                tools.run(nsenter(node.netns(NODE), "ip", "route", "add", str(remote), "dev", "cilium_host"))
        yield Tunnel(node)


@VERSIONS
@pytest.mark.parametrize("receiver", ["pod", "host"])
def test_from_the_tunnel(tunnel: Tunnel, version: int, receiver: str) -> None:
    where = tunnel.node.pods[0].name if receiver == "pod" else NODE
    address = tunnel.address(version) if receiver == "pod" else tunnel.router(version)
    with ExitStack() as stack:
        listener = tunnel.socket(stack, where, address, 5000)
        tunnel.send_encapsulated(REMOTE_IDENTITY, address, 5000, b"hello")
        data, sender = listener.recvfrom(100)
    assert (data, sender[0], sender[1]) == (b"hello", str(REMOTE[version]), 4000)


@VERSIONS
@pytest.mark.parametrize("sender", ["pod", "host", "tunnel"])
def test_policy_meets_a_packet_once_and_knows_its_sender(tunnel: Tunnel, version: int, sender: str) -> None:
    """In both modes: in the policy program that the sender calls, or in the egress program of the device."""
    receiver, other = tunnel.node.pods
    address = tunnel.address(version)
    identity = {"pod": other.identity, "host": HOST_ID, "tunnel": REMOTE_IDENTITY}[sender]
    source = {"pod": other.ipv4 if version == 4 else other.ipv6, "host": tunnel.router(version)}.get(sender)
    with ExitStack() as stack:
        listener = tunnel.socket(stack, receiver.name, address, 5002)
        outgoing = tunnel.socket(stack, NODE if sender == "host" else other.name, source) if source else None
        # The first one is preceded by neighbour discovery, which passes the device too.
        for data in (b"first", b"second"):
            tunnel.watch(identity)
            if outgoing is None:
                tunnel.send_encapsulated(REMOTE_IDENTITY, address, 5002, data)
            else:
                outgoing.sendto(data, (str(address), 5002))
            assert listener.recv(100) == data
        assert tunnel.seen(identity) == 1


@VERSIONS
def test_nobody_outside_is_this_host(tunnel: Tunnel, version: int) -> None:
    before = metrics.read(tunnel.node)
    address = tunnel.address(version)
    with ExitStack() as stack:
        listener = tunnel.socket(stack, tunnel.node.pods[0].name, address, 5001)
        tunnel.send_encapsulated(1, address, 5001, b"I am the host")
        listener.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            listener.recv(100)
    assert metrics.read(tunnel.node).drops_since(before) == {INVALID_IDENTITY: 1}


@VERSIONS
@pytest.mark.parametrize("sender", ["pod", "host"])
def test_into_the_tunnel(tunnel: Tunnel, version: int, sender: str) -> None:
    """The VNI is the pod's identity; to others, the host is a remote node (6)."""
    pod = tunnel.node.pods[0]
    where, identity = (pod.name, pod.identity) if sender == "pod" else (NODE, 6)
    source = tunnel.address(version) if sender == "pod" else tunnel.router(version)
    with ExitStack() as stack:
        other_node = tunnel.socket(stack, OUTSIDE, tunnel.node.spec.outside4.ip, VXLAN_PORT)
        tunnel.socket(stack, where, source).sendto(b"out we go", (str(REMOTE[version]), 6000))
        outer = other_node.recv(1000)
    assert struct.unpack("!II", outer[:8]) == (VXLAN_VALID_VNI, identity << 8)
    assert outer.endswith(b"out we go")
    assert source.packed + REMOTE[version].packed in outer


RANGE = 1 << 24 | 1  # of a CIDR, and of one node only; cut to the 24 bits of a VNI it would be the host's


@VERSIONS
def test_an_address_range_is_the_world_to_the_other_node(tunnel: Tunnel, version: int) -> None:
    """What comes in from outside and goes out through the tunnel."""
    spec = tunnel.node.spec
    source, gateway = (spec.outside4.ip, spec.node4.ip) if version == 4 else (spec.outside6.ip, spec.node6.ip)
    with ExitStack() as stack:
        ipcache = stack.enter_context(open_pin(tunnel.node.datapath_config().globals / "cilium_ipcache"))
        key = layouts.ipcache_key(source, source.max_prefixlen)
        ipcache.update(key, layouts.RemoteEndpointInfo(RANGE).pack())
        stack.callback(ipcache.delete, key)
        route = [str(REMOTE[version]), "via", str(gateway)]
        outside = nsenter(tunnel.node.netns(OUTSIDE), "ip", "route")
        tools.run([*outside, "add", *route])
        stack.callback(tools.run, [*outside, "del", *route])
        other_node = tunnel.socket(stack, OUTSIDE, spec.outside4.ip, VXLAN_PORT)
        tunnel.socket(stack, OUTSIDE, source).sendto(b"from far away", (str(REMOTE[version]), 6000))
        outer = other_node.recv(1000)
    assert struct.unpack("!II", outer[:8]) == (VXLAN_VALID_VNI, 2 << 8)
    assert outer.endswith(b"from far away")


@VERSIONS
def test_the_world_out_of_the_tunnel_is_looked_up_here(tunnel: Tunnel, version: int) -> None:
    """In both modes: by the overlay's program, or by the egress program of the device."""
    address, remote = tunnel.address(version), REMOTE[version]
    with ExitStack() as stack:
        ipcache = stack.enter_context(open_pin(tunnel.node.datapath_config().globals / "cilium_ipcache"))
        key = layouts.ipcache_key(remote, remote.max_prefixlen)
        before = ipcache.lookup(key)
        assert before is not None
        stack.callback(ipcache.update, key, before)
        ipcache.update(key, layouts.RemoteEndpointInfo(RANGE, tunnel.node.spec.outside4.ip).pack())
        listener = tunnel.socket(stack, tunnel.node.pods[0].name, address, 5003)
        tunnel.watch(RANGE)
        tunnel.send_encapsulated(2, address, 5003, b"hello")
        assert listener.recv(100) == b"hello"
    assert tunnel.seen(RANGE) == 1
