"""The pod of the tests: what it sends, and what its programs have counted."""

from __future__ import annotations

from ipaddress import IPv6Address

from lab.abi.layouts import Program
from scenarios import frames
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import GATEWAY4, PEER4, PEER6, POD, Build, Datapath

assert POD.ipv4 is not None
assert POD.ipv6 is not None
POD4, POD6 = POD.ipv4, POD.ipv6
LINK_LOCAL, LINK_LOCAL_PEER = IPv6Address("fe80::bb:1"), IPv6Address("fe80::1")
INGRESS, EGRESS = 1, 2
FORWARDED, PLAINTEXT = 0, 3
STALE_MAC = "02:ee:00:00:00:0e"  # the pod has an old neighbour entry

OFF, ON = Build("bpf_lxc.c"), Build("bpf_lxc.c", endpoint_routes=True)
ARP_REQUEST = frames.arp(1, frames.BROADCAST, POD.mac, (POD.mac, POD4), ("00:00:00:00:00:00", GATEWAY4))


def from_pod(packet: bytes, *, dst: str = POD.node_mac) -> bytes:
    return eth(dst, POD.mac, ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6, packet)


def to_peer(version: int, **fields: int) -> bytes:
    """Return a frame of the pod to its peer."""
    if version == 4:
        return from_pod(ipv4(POD4, PEER4, udp(), ttl=fields.get("ttl", 64)))
    return from_pod(ipv6(POD6, PEER6, udp(), hops=fields.get("ttl", 64)))


def programs(datapath: Datapath) -> dict[Program, int]:
    """Return the packets per program; all of them under the pod's id and this load's generation."""
    hits = datapath.hits()
    assert {(generation, source) for generation, source, _ in hits} <= {(POD.generation, POD.id)}
    return {Program(program): packets for (_, _, program), packets in hits.items()}
