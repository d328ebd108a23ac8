"""Fragments where they are enabled: the later ones belong to the connection of the first."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from lab.abi.policymap import policy_key_any
from scenarios import frames
from scenarios.frames import UDP, icmp, ipv4, ipv6, udp
from tests.bpf.flow import Peer
from tests.bpf.loaded import DROP, PASS, WORLD4, WORLD6, Build, loaded
from tests.bpf.pod import EGRESS, POD4, POD6, from_pod

pytestmark = pytest.mark.privileged

DEFINES = (("ENABLE_IPV4_FRAGMENTS", "1"), ("ENABLE_IPV6_FRAGMENTS", "1"))
FIRST, LATER, ATOMIC = (0, True), (3, True), (0, False)


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=DEFINES)) as datapath:
        yield Peer(datapath, request.param)


def fragment(version: int, what: tuple[int, bool], payload: bytes, *, ident: int = 1, protocol: int = UDP) -> bytes:
    offset, more = what
    if version == 4:
        bits = offset | (frames.MORE_FRAGMENTS if more else 0)
        packet = ipv4(POD4, WORLD4, payload, fragment=bits, protocol=protocol)
        header = packet[:4] + ident.to_bytes(2, "big") + packet[6:10] + bytes(2) + packet[12:20]
        return from_pod(header[:10] + frames.checksum(header).to_bytes(2, "big") + header[12:] + packet[20:])
    extension = struct.pack("!BBHI", protocol, 0, offset << 3 | more, ident)
    return from_pod(ipv6(POD6, WORLD6, extension + payload, next_header=frames.FRAGMENT))


def sent(peer: Peer, *args: object, **fields: int) -> int:
    frame = fragment(peer.version, *args, **fields)  # type: ignore[arg-type]
    return peer.datapath.run("cil_from_container", frame).retval


def test_all_fragments_of_a_datagram_are_one_connection(peer: Peer) -> None:
    assert sent(peer, FIRST, udp(16)) == PASS
    assert sent(peer, LATER, bytes(24)) == PASS
    assert sent(peer, (6, False), bytes(8)) == PASS
    entry = peer.entry(UDP, 40000, 53, out=True)
    assert entry is not None
    assert entry.tx_packets == 3


def test_a_later_fragment_without_the_first(peer: Peer) -> None:
    assert sent(peer, FIRST, udp(16), ident=1) == PASS
    assert sent(peer, LATER, bytes(24), ident=2) == DROP
    assert peer.datapath.drops() == {(175, EGRESS): 1}


def test_a_first_fragment_without_a_header(peer: Peer) -> None:
    assert sent(peer, FIRST, bytes(3)) == DROP
    assert sent(peer, LATER, bytes(24)) == DROP
    assert peer.datapath.drops() == {(135, EGRESS): 1, (175, EGRESS): 1}


def test_errors_about_fragments(peer: Peer) -> None:
    """Of which only the first tells the connection, whatever the later ones look like."""
    kind = 3 if peer.version == 4 else 1
    peer.datapath.policy.delete(policy_key_any(egress=False))
    peer.out(UDP, udp(16))
    for what, verdict in ((FIRST, PASS), (LATER, DROP)):
        quoted = fragment(peer.version, what, udp(16))[frames.ETH_LEN :]
        assert peer.into(peer.icmp, icmp(kind, quoted=quoted)).retval == verdict, what


@pytest.mark.parametrize("version", [4, 6])
def test_of_one_family_alone(version: int) -> None:
    """Routers make fragments of what an IPv4 pod sent whole: errors about them count also where it may send none."""
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=(DEFINES[version == 6],)), allow=True) as datapath:
        tracked, other = Peer(datapath, version), Peer(datapath, 10 - version)
        assert sent(tracked, FIRST, udp(16)) == PASS
        assert sent(other, FIRST, udp(16)) == DROP
        assert datapath.drops() == {(157, EGRESS): 1}
        datapath.policy.delete(policy_key_any(egress=False))
        for peer, verdict in ((tracked, PASS), (other, PASS if other.version == 4 else DROP)):
            peer.out(UDP, udp(16))
            quoted = fragment(peer.version, FIRST, udp(16))[frames.ETH_LEN :]
            assert peer.into(peer.icmp, icmp(3 if peer.version == 4 else 1, quoted=quoted)).retval == verdict


def test_a_fragment_that_is_a_whole_datagram(peer: Peer) -> None:
    assert sent(peer, ATOMIC, udp(16)) == PASS
    assert list(peer.datapath.map(f"cilium_ipv{peer.version}_frag_datagrams").keys()) == []


def test_a_fragment_header_cut_off() -> None:
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=DEFINES)) as datapath:
        frame = from_pod(ipv6(POD6, WORLD6, bytes(7), next_header=frames.FRAGMENT))
        assert datapath.run("cil_from_container", frame).retval == DROP
        assert datapath.drops() == {(134, EGRESS): 1}


def test_a_later_fragment_of_options_is_found_by_its_datagram() -> None:
    """In IPv6 it names what follows the fragment header of the first one, not the upper layer."""
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=DEFINES)) as datapath:
        peer = Peer(datapath, 6)
        assert sent(peer, FIRST, frames.extension(UDP, udp(16)), protocol=frames.DESTINATION) == PASS
        assert sent(peer, LATER, bytes(24), protocol=frames.DESTINATION) == PASS
