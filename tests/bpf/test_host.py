"""bpf_host.c and bpf_overlay.c, one packet at a time through BPF_PROG_TEST_RUN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from datapath.build.nodemacros import node_macros
from datapath.endpoint import Vlan
from lab.abi.layouts import Program
from scenarios import frames
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import (
    CILIUM_HOST_MAC,
    CILIUM_NET_MAC,
    DROP,
    HOST,
    NODE,
    PASS,
    PEER4,
    PEER6,
    POD,
    REDIRECT,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    Build,
    Datapath,
    loaded,
    mark_of,
)
from tests.bpf.vlan import tagged

pytestmark = pytest.mark.privileged

INGRESS, EGRESS = 1, 2
FORWARDED, PLAINTEXT = 0, 3
OFF = Build("bpf_host.c")
HOST_ROUTING = Build("bpf_host.c", defines=(("ENABLE_HOST_ROUTING", "1"),))
FIREWALL = Build("bpf_host.c", defines=(("ENABLE_HOST_FIREWALL", "1"),))


@pytest.fixture
def host() -> Iterator[Datapath]:
    with loaded(OFF) as datapath:
        yield datapath


@pytest.fixture
def overlay() -> Iterator[Datapath]:
    with loaded(Build("bpf_overlay.c")) as datapath:
        yield datapath


def frame_to(dst: IPv4Address | IPv6Address, *, mac: str = CILIUM_HOST_MAC) -> bytes:
    """Return what the stack puts on cilium_host: both MACs are the device's own."""
    if isinstance(dst, IPv4Address):
        return eth(mac, CILIUM_HOST_MAC, ETH_P_IP, ipv4(ROUTER4, dst, udp()))
    return eth(mac, CILIUM_HOST_MAC, ETH_P_IPV6, ipv6(ROUTER6, dst, udp()))


BOTH = pytest.mark.parametrize("peer", [PEER4, PEER6], ids=["v4", "v6"])


@BOTH
@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["off", "on"])
def test_from_host_delivers_to_a_pod(peer: IPv4Address | IPv6Address, endpoint_routes: bool) -> None:
    """Off, through the destination's policy program, which is missing here; on, through the device itself."""
    with loaded(Build("bpf_host.c", endpoint_routes=endpoint_routes)) as host:
        host.add_endpoint(peer, lxc_id=124)
        result = host.run("cil_from_host", frame_to(peer))
        assert result.retval == (REDIRECT if endpoint_routes else DROP)
        assert result.data[:12] == bytes.fromhex("02cc00000001" + "02cc00000002")
        assert host.drops() == ({} if endpoint_routes else {(140, INGRESS): 1})
        v4 = isinstance(peer, IPv4Address)
        tail = Program.IPV4_FROM_HOST if v4 else Program.IPV6_FROM_HOST
        assert host.hits() == {(HOST.generation, 0, Program.FROM_HOST): 1, (HOST.generation, 0, tail): 1}


@BOTH
@pytest.mark.parametrize(
    ("mark", "ingress_ifindex", "known", "identity"),
    [
        (0, 0, None, 1),
        (0xC00, 1, None, 1),
        (0xABCD_0F12, 1, 600, 0x12ABCD),
        (0, 1, 600, 600),
        (0, 1, 1, 2),
        (0, 1, None, 2),
    ],
    ids=["the host", "marked as the host's", "mark", "ipcache", "masqueraded", "nobody knows"],
)
def test_from_host_passes_on_who_sent_it(
    peer: IPv4Address | IPv6Address, mark: int, ingress_ifindex: int, known: int | None, identity: int
) -> None:
    with loaded(Build("bpf_host.c", endpoint_routes=True)) as host:
        host.add_endpoint(peer, lxc_id=124)
        if known is not None:
            host.add_identity(ROUTER4 if isinstance(peer, IPv4Address) else ROUTER6, known)
        result = host.run("cil_from_host", frame_to(peer), mark=mark, ingress_ifindex=ingress_ifindex)
        assert result.retval == REDIRECT
        assert mark_of(result) == (identity & 0xFFFF) << 16 | identity >> 16 | 0xF00


@BOTH
def test_from_host_to_an_address_of_the_host(host: Datapath, peer: IPv4Address | IPv6Address) -> None:
    """cilium_net takes only what is addressed to it."""
    host.add_endpoint(peer, host=True)
    result = host.run("cil_from_host", frame_to(peer))
    assert (result.retval, result.data) == (PASS, frame_to(peer, mac=CILIUM_NET_MAC))
    assert host.metrics() == {(PLAINTEXT, INGRESS): 1, (FORWARDED, EGRESS): 1}


@BOTH
def test_from_host_to_what_only_ipcache_knows(host: Datapath, peer: IPv4Address | IPv6Address) -> None:
    host.add_identity(peer, 5000)
    result = host.run("cil_from_host", frame_to(peer))
    assert (result.retval, result.data) == (PASS, frame_to(peer, mac=CILIUM_NET_MAC))


@BOTH
@pytest.mark.parametrize("identity", [None, 2, 1 << 24 | 7], ids=["unknown", "world", "address range"])
def test_from_host_to_nobody(host: Datapath, peer: IPv4Address | IPv6Address, identity: int | None) -> None:
    if identity is not None:
        host.add_identity(peer, identity)
    assert host.run("cil_from_host", frame_to(peer)).retval == DROP
    assert host.drops() == {(151, INGRESS): 1}


@BOTH
def test_from_host_into_the_tunnel(peer: IPv4Address | IPv6Address) -> None:
    with loaded(Build("bpf_host.c", tunnel=True)) as host:
        host.add_identity(peer, 5000, node="192.0.2.7")
        assert host.run("cil_from_host", frame_to(peer)).retval == REDIRECT
        assert host.drops() == {}


LINK_FRAMES = {
    "v4 multicast": eth("01:00:5e:00:00:16", CILIUM_HOST_MAC, ETH_P_IP, ipv4(ROUTER4, IPv4Address("224.0.0.22"))),
    "v4 broadcast": eth(
        frames.BROADCAST, CILIUM_HOST_MAC, ETH_P_IP, ipv4(ROUTER4, IPv4Address("255.255.255.255"), udp())
    ),
    "v6 multicast": eth(
        "33:33:00:00:00:16", CILIUM_HOST_MAC, ETH_P_IPV6, ipv6(ROUTER6, IPv6Address("ff02::16"), udp())
    ),
    "v6 link-local": eth(CILIUM_HOST_MAC, CILIUM_HOST_MAC, ETH_P_IPV6, ipv6(ROUTER6, IPv6Address("fe80::1"), udp())),
    "arp": frames.arp(1, frames.BROADCAST, CILIUM_HOST_MAC, (CILIUM_HOST_MAC, ROUTER4), ("00:00:00:00:00:00", PEER4)),
    "LLDP": eth(CILIUM_NET_MAC, CILIUM_HOST_MAC, 0x88CC, bytes(46)),
    "802.3": eth(CILIUM_NET_MAC, CILIUM_HOST_MAC, 0x0026, bytes(46)),
}


@pytest.mark.parametrize("build", [OFF, HOST_ROUTING, FIREWALL], ids=["plain", "host routing", "host firewall"])
@pytest.mark.parametrize("program", ["cil_from_host", "cil_from_netdev", "cil_to_netdev", "cil_to_host"])
@pytest.mark.parametrize("frame", LINK_FRAMES.values(), ids=LINK_FRAMES)
def test_ordinary_traffic_of_the_host_passes_untouched(build: Build, program: str, frame: bytes) -> None:
    with loaded(build) as host:
        result = host.run(program, frame)
        assert (result.retval, result.data) == (PASS, frame)
        assert host.drops() == {}


@BOTH
@pytest.mark.parametrize("program", ["cil_from_host", "cil_from_netdev"])
def test_a_missed_tail_call_is_counted_and_passes(
    host: Datapath, program: str, peer: IPv4Address | IPv6Address
) -> None:
    for slot in (7, 10, 22, 23):
        host.empty(slot)
    result = host.run(program, frame_to(peer))
    assert (result.retval, result.data) == (PASS, frame_to(peer))
    assert host.drops() == {(140, INGRESS): 1}


@BOTH
def test_from_netdev_leaves_pods_to_the_stack(host: Datapath, peer: IPv4Address | IPv6Address) -> None:
    host.add_endpoint(peer)
    result = host.run("cil_from_netdev", frame_to(peer))
    assert (result.retval, result.data) == (PASS, frame_to(peer))


@BOTH
def test_from_netdev_delivers_with_host_routing(peer: IPv4Address | IPv6Address) -> None:
    with loaded(HOST_ROUTING) as host:
        host.add_endpoint(peer, lxc_id=124)
        assert host.run("cil_from_netdev", frame_to(peer)).retval == DROP
        assert host.drops() == {(140, INGRESS): 1}
        world = frame_to(WORLD4 if isinstance(peer, IPv4Address) else WORLD6)
        assert host.run("cil_from_netdev", world).retval == PASS


VLAN_FILTER = "VLAN_FILTER(ifindex, vlan_id)"
ALLOW_5 = ((VLAN_FILTER, "return vlan_id == 5;"),)
PRIORITY = 7 << 13
"""The bits of a tag that are no VLAN."""


def passing(*vlans: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """Return the option of a node with these VLAN devices, an index and an id each. Packets here come to index 1."""
    node = replace(NODE, vlans=tuple(Vlan(f"{link}.{number}", link, number) for link, number in vlans))
    return ((VLAN_FILTER, node_macros(node, [vlan.name for vlan in node.vlans])[VLAN_FILTER]),)


@pytest.mark.parametrize(
    ("tci", "options", "verdict"),
    [
        pytest.param(5, (), DROP, id="a VLAN"),
        pytest.param(PRIORITY | 5, (), DROP, id="a VLAN with a priority"),
        pytest.param(PRIORITY | 5, ALLOW_5, PASS, id="a VLAN that is allowed"),
        pytest.param(6, ALLOW_5, DROP, id="another VLAN"),
        pytest.param(PRIORITY | 5, passing((1, 5), (2, 6)), PASS, id="a VLAN of a device"),
        pytest.param(6, passing((1, 5), (1, 7)), DROP, id="not among the VLANs of a device"),
        pytest.param(6, passing((1, 5), (2, 6)), DROP, id="a VLAN of another device"),
        pytest.param(PRIORITY, (), REDIRECT, id="a priority alone"),
    ],
)
def test_tagged_frames_are_of_another_network(tci: int, options: tuple[tuple[str, str], ...], verdict: int) -> None:
    """What is inside is not looked at: with host routing, a pod with that address would get it."""
    build = Build("bpf_host.c", endpoint_routes=True, defines=HOST_ROUTING.defines, options=options)
    with loaded(build) as host:
        host.add_endpoint(PEER4, lxc_id=124)
        assert host.run("cil_from_netdev", frame_to(PEER4)).retval == REDIRECT
        with tagged(host, "cil_from_netdev", tci) as wire:
            assert wire.run(frame_to(PEER4)).retval == verdict
        with tagged(host, "cil_to_netdev", tci) as wire:
            assert wire.run(frame_to(PEER4)).retval == (DROP if verdict == DROP else PASS)
        assert host.drops() == ({(182, INGRESS): 1, (182, EGRESS): 1} if verdict == DROP else {})


def test_from_netdev_leaves_fragments_to_the_stack() -> None:
    with loaded(HOST_ROUTING) as host:
        frame = eth(CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IP, ipv4(WORLD4, PEER4, udp(), fragment=0x2000))
        assert host.run("cil_from_netdev", frame).retval == PASS
        assert host.drops() == {}


@pytest.mark.parametrize(("from_host", "verdict"), [(0, PASS), (1, DROP)], ids=["to the host", "to the pod"])
def test_policy_program_of_the_host(from_host: int, verdict: int) -> None:
    """From the host it goes on to the pod's policy program, which is missing here."""
    with loaded(FIREWALL) as host:
        slot = host.collection.spec.programs["handle_lxc_traffic"].slot
        assert slot == (1, HOST.id)
        result = host.run("handle_lxc_traffic", frame_to(PEER4), cb=(POD.id, 0, 0, from_host, 0))
        assert result.retval == verdict
        assert host.drops() == ({(140, EGRESS): 1} if from_host else {})


@BOTH
def test_from_overlay_wants_a_tunnel_key(overlay: Datapath, peer: IPv4Address | IPv6Address) -> None:
    assert overlay.run("cil_from_overlay", frame_to(peer)).retval == DROP
    assert overlay.drops() == {(147, INGRESS): 1}
    v4 = isinstance(peer, IPv4Address)
    tail = Program.IPV4_FROM_OVERLAY if v4 else Program.IPV6_FROM_OVERLAY
    assert overlay.hits() == {(POD.generation, 0, Program.FROM_OVERLAY): 1, (POD.generation, 0, tail): 1}


@BOTH
def test_from_overlay_missed_tail_call(overlay: Datapath, peer: IPv4Address | IPv6Address) -> None:
    overlay.empty(7)
    overlay.empty(10)
    assert overlay.run("cil_from_overlay", frame_to(peer)).retval == DROP
    assert overlay.drops() == {(140, INGRESS): 1}


@pytest.mark.parametrize("program", ["cil_from_overlay", "cil_to_overlay"])
@pytest.mark.parametrize("name", ["arp", "LLDP", "802.3"])
def test_overlay_lets_pass_what_is_not_ip(overlay: Datapath, program: str, name: str) -> None:
    result = overlay.run(program, LINK_FRAMES[name])
    assert (result.retval, result.data) == (PASS, LINK_FRAMES[name])
    assert overlay.drops() == {}
