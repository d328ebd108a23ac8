"""bpf_lxc.c: where a pod's packet goes, and what happens to one on its way into the pod."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.abi import layouts
from lab.abi.conntrack import CtEntry
from lab.abi.layouts import Program
from lab.abi.policymap import policy_key_any
from scenarios import frames
from scenarios.frames import ETH_LEN, ETH_P_IP, ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import (
    DROP,
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
from tests.bpf.pod import (
    ARP_REQUEST,
    EGRESS,
    FORWARDED,
    INGRESS,
    OFF,
    ON,
    PLAINTEXT,
    POD4,
    POD6,
    STALE_MAC,
    from_pod,
    programs,
    to_peer,
)

pytestmark = pytest.mark.privileged

NODE4 = IPv4Address("192.0.2.7")


@pytest.mark.parametrize("version", [4, 6])
def test_local_delivery(off: Datapath, version: int) -> None:
    """The whole chain: entry, slots 7, 29, 25 or 10, 32, 26; the policy program of the pod, 28, 11 or 31, 12."""
    off.add_endpoint(PEER4 if version == 4 else PEER6)
    off.allow(POD.identity)
    result = off.run("cil_from_container", to_peer(version))
    assert result.retval == REDIRECT
    hop = to_peer(version, ttl=63)[ETH_LEN:]
    assert result.data == eth("02:cc:00:00:00:01", "02:cc:00:00:00:02", ETH_P_IP if version == 4 else ETH_P_IPV6, hop)
    slots = ("FROM_LXC", "CT_EGRESS", "FROM_LXC_CONT", "CT_INGRESS_POLICY_ONLY", "POLICY")
    chain = [Program[f"IPV{version}_{name}"] for name in slots]
    assert programs(off) == dict.fromkeys((Program.FROM_CONTAINER, *chain, Program.HANDLE_POLICY), 1)
    assert off.metrics() == {(FORWARDED, EGRESS): 1, (FORWARDED, INGRESS): 1}
    assert off.allowed(POD.identity) == 1


def test_counters_count_every_packet(off: Datapath) -> None:
    for _ in range(3):
        off.run("cil_from_container", ARP_REQUEST)
    assert programs(off) == {Program.FROM_CONTAINER: 3, Program.LXC_ARP: 3}
    assert off.metrics() == {(FORWARDED, INGRESS): 3}


@pytest.mark.parametrize("version", [4, 6])
def test_local_delivery_without_the_policy_program(off: Datapath, version: int) -> None:
    off.add_endpoint(PEER4 if version == 4 else PEER6, lxc_id=124)
    assert off.run("cil_from_container", to_peer(version)).retval == DROP
    assert off.drops() == {(140, EGRESS): 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ttl", [0, 1])
def test_local_delivery_of_an_expired_packet(off: Datapath, version: int, ttl: int) -> None:
    off.add_endpoint(PEER4 if version == 4 else PEER6)
    assert off.run("cil_from_container", to_peer(version, ttl=ttl)).retval == DROP
    assert off.metrics() == {(134, EGRESS): 1}


@pytest.mark.parametrize("destination", ["host", "unknown"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_rest_goes_to_the_stack(off: Datapath, version: int, destination: str) -> None:
    """The stack takes only what is addressed to the device, and counts down the time to live itself."""
    if destination == "host":
        off.add_endpoint(PEER4 if version == 4 else PEER6, host=True)
    frame = to_peer(version, ttl=1)
    stale = bytes.fromhex(STALE_MAC.replace(":", "")) + frame[6:]
    result = off.run("cil_from_container", stale)
    assert (result.retval, result.data) == (PASS, frame)
    assert off.metrics() == {(FORWARDED, EGRESS): 1}


@pytest.mark.parametrize("version", [4, 6])
def test_with_endpoint_routes_the_stack_routes_to_pods_too(on: Datapath, version: int) -> None:
    on.add_endpoint(PEER4 if version == 4 else PEER6)
    result = on.run("cil_from_container", to_peer(version))
    assert (result.retval, result.data) == (PASS, to_peer(version))


@pytest.mark.parametrize("version", [4, 6])
def test_tunnel(version: int) -> None:
    """A destination behind a tunnel is redirected, one without stays; a pod here is not sent there."""
    with loaded(Build("bpf_lxc.c", tunnel=True)) as datapath:
        datapath.add_identity(PEER4 if version == 4 else PEER6, 5000, node="192.0.2.7")
        result = datapath.run("cil_from_container", to_peer(version))
        assert (result.retval, result.data) == (REDIRECT, to_peer(version))
        datapath.add_endpoint(PEER4 if version == 4 else PEER6)
        assert datapath.run("cil_from_container", to_peer(version)).data != to_peer(version)
        world = ipv4(POD4, WORLD4, udp()) if version == 4 else ipv6(POD6, WORLD6, udp())
        assert datapath.run("cil_from_container", from_pod(world)).retval == PASS


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_that_ipcache_does_not_know_is_behind_the_tunnel_of_its_network(version: int) -> None:
    network = IPv4Address("10.2.0.0") if version == 4 else IPv6Address("fd00:2::")
    with loaded(Build("bpf_lxc.c", tunnel=True)) as datapath:
        datapath.map("cilium_tunnel_map").update(layouts.TunnelKey(network).pack(), layouts.TunnelValue(NODE4).pack())
        for offset, verdict in ((9, REDIRECT), (1 << (8 if version == 4 else 32), PASS)):
            packet = (
                ipv4(POD4, IPv4Address(int(network) + offset), udp())
                if isinstance(network, IPv4Address)
                else ipv6(POD6, IPv6Address(int(network) + offset), udp())
            )
            assert datapath.run("cil_from_container", from_pod(packet)).retval == verdict


GROUPS = {
    "v4 multicast": from_pod(ipv4(POD4, IPv4Address("224.0.0.251"), udp()), dst="01:00:5e:00:00:fb"),
    "v4 broadcast": from_pod(ipv4(POD4, IPv4Address("255.255.255.255"), udp()), dst=frames.BROADCAST),
    "v6 multicast": from_pod(ipv6(POD6, IPv6Address("ff02::fb"), udp()), dst="33:33:00:00:00:fb"),
    "v6 link-local": from_pod(ipv6(POD6, IPv6Address("fe80::1"), udp()), dst=STALE_MAC),
}


@pytest.mark.parametrize("frame", GROUPS.values(), ids=GROUPS)
def test_what_is_for_the_link_keeps_its_address(off: Datapath, frame: bytes) -> None:
    """The stack delivers it, or not; the policy is asked as for anything else."""
    result = off.run("cil_from_container", frame)
    assert (result.retval, result.data) == (PASS, frame)
    off.policy.delete(policy_key_any(egress=True))
    assert off.run("cil_from_container", frame.replace(udp(), udp(sport=9))).retval == DROP


@pytest.mark.parametrize(("excess", "verdict"), [(0, REDIRECT), (1, PASS)], ids=["fits", "too big"])
@pytest.mark.parametrize("version", [4, 6])
def test_what_does_not_fit_into_the_tunnel_goes_to_the_stack(version: int, excess: int, verdict: int) -> None:
    """The stack's route has the tunnel's MTU, 50 bytes less than the device's 1500: it tells the pod."""
    with loaded(Build("bpf_lxc.c", tunnel=True)) as datapath:
        datapath.add_identity(PEER4 if version == 4 else PEER6, 5000, node="192.0.2.7")
        message = udp(1450 - (20 if version == 4 else 40) - 8 + excess)
        packet = ipv4(POD4, PEER4, message) if version == 4 else ipv6(POD6, PEER6, message)
        result = datapath.run("cil_from_container", from_pod(packet))
        assert (result.retval, result.data) == (verdict, from_pod(packet))


def test_fragments_that_do_not_fit_go_to_the_stack_too() -> None:
    """Each by its own length, though the later ones are of the same datagram as those that fit."""
    defines = (("ENABLE_IPV4_FRAGMENTS", "1"),)
    with loaded(Build("bpf_lxc.c", tunnel=True, defines=defines)) as datapath:
        datapath.add_identity(PEER4, 5000, node="192.0.2.7")
        verdicts = [
            datapath.run("cil_from_container", from_pod(ipv4(POD4, PEER4, payload, fragment=bits))).retval
            for bits, payload in (
                (frames.MORE_FRAGMENTS, udp(1448 - 20 - 8)),
                (frames.MORE_FRAGMENTS | 177, bytes(1456 - 20)),
                (359, bytes(8)),
            )
        ]
    assert verdicts == [REDIRECT, PASS, REDIRECT]


SEGMENTS = {
    "tcp": (frames.TCP, frames.tcp(40000, 80, frames.ACK), 20),
    "tcp with options": (frames.TCP, frames.tcp(40000, 80, frames.ACK, options=12), 32),
    "udp": (frames.UDP, udp(0), 8),
}


@pytest.mark.parametrize(("excess", "verdict"), [(0, REDIRECT), (1, PASS)], ids=["fits", "too big"])
@pytest.mark.parametrize(("protocol", "header", "length"), SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("version", [4, 6])
def test_of_a_packet_that_stands_for_several_each_must_fit(
    version: int, protocol: int, header: bytes, length: int, excess: int, verdict: int
) -> None:
    with loaded(Build("bpf_lxc.c", tunnel=True)) as datapath:
        datapath.add_identity(PEER4 if version == 4 else PEER6, 5000, node="192.0.2.7")
        payload = header + bytes(3000)
        packet = (
            ipv4(POD4, PEER4, payload, protocol=protocol)
            if version == 4
            else ipv6(POD6, PEER6, payload, next_header=protocol)
        )
        segment = 1450 - (20 if version == 4 else 40) - length + excess
        assert datapath.run("cil_from_container", from_pod(packet), gso_size=segment).retval == verdict


# --- into the pod ---


def into_pod(version: int) -> bytes:
    packet = ipv4(WORLD4, POD4, udp()) if version == 4 else ipv6(WORLD6, POD6, udp())
    return eth(POD.mac, POD.node_mac, ETH_P_IP if version == 4 else ETH_P_IPV6, packet)


IDENTITY = 0x12ABCD
IDENTITY_MARK = 0xABCD_0F12


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mark", "ingress_ifindex", "known", "identity"),
    [
        (IDENTITY_MARK, 1, None, IDENTITY),
        (IDENTITY_MARK, 1, 600, IDENTITY),
        (0, 0, 600, 1),
        (0xC00, 1, 600, 1),
        (0, 1, 600, 600),
        (0, 1, 1, 2),
        (0, 1, None, 2),
    ],
    ids=[
        "mark",
        "mark before ipcache",
        "sent by the host",
        "marked as the host's",
        "ipcache",
        "masqueraded",
        "nobody knows",
    ],
)
def test_to_container_finds_the_source(
    on: Datapath, version: int, mark: int, ingress_ifindex: int, known: int | None, identity: int
) -> None:
    if known is not None:
        on.add_identity(WORLD4 if version == 4 else WORLD6, known)
    on.allow(identity)
    frame = into_pod(version)
    result = on.run("cil_to_container", frame, mark=mark, ingress_ifindex=ingress_ifindex)
    assert (result.retval, result.data) == (PASS, frame)
    assert on.allowed(identity) == 1
    assert on.metrics() == {(PLAINTEXT, INGRESS): 1, (FORWARDED, INGRESS): 1}
    tails = (Program[f"IPV{version}_{name}"] for name in ("CT_INGRESS", "TO_ENDPOINT"))
    assert programs(on) == dict.fromkeys((Program.TO_CONTAINER, *tails), 1)


def test_to_container_lets_arp_pass(on: Datapath) -> None:
    frame = frames.arp(1, frames.BROADCAST, POD.node_mac, (POD.node_mac, ROUTER4), ("00:00:00:00:00:00", POD4))
    result = on.run("cil_to_container", frame)
    assert (result.retval, result.data) == (PASS, frame)


def test_to_container_lets_neighbour_discovery_pass(on: Datapath) -> None:
    frame = frames.solicitation(POD.node_mac, ROUTER6, POD6, options=frames.source_option(POD.node_mac))
    result = on.run("cil_to_container", frame)
    assert (result.retval, result.data) == (PASS, frame)


@pytest.mark.parametrize("version", [4, 6])
def test_the_rule_for_everybody_counts_where_no_rule_names_the_source(on: Datapath, version: int) -> None:
    on.allow(0)
    on.run("cil_to_container", into_pod(version), mark=IDENTITY_MARK)
    assert on.allowed(0) == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("build", "counted"), [(OFF, 1), (ON, 0)], ids=["off", "on"])
def test_policy_program_enforces_only_where_no_egress_program_does(build: Build, counted: int, version: int) -> None:
    """While a node is switched over, senders call the policy program of a pod that has its egress program already."""
    with loaded(build) as datapath:
        datapath.allow(IDENTITY)
        result = datapath.run("handle_policy", into_pod(version), cb=(IDENTITY, 1, 0, 0, 0))
        assert result.retval == REDIRECT
        assert datapath.allowed(IDENTITY) == counted


@pytest.mark.parametrize("from_tunnel", [0, 1])
@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_remembers_that_it_came_through_the_tunnel(off: Datapath, version: int, from_tunnel: int) -> None:
    off.run("handle_policy", into_pod(version), cb=(IDENTITY, 1, 0, 0, from_tunnel))
    (value,) = (value for _, value in off.map(f"cilium_ct_any{version}_global").items())
    entry = CtEntry.unpack(value)
    assert ("from_tunnel" in entry.names, entry.src_sec_id) == (bool(from_tunnel), IDENTITY)


# --- identities that mean something on one node only ---


RANGE = 1 << 24 | 1  # of a CIDR; cut to 24 bits it would be the host's


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("known", [RANGE, 600], ids=["range", "pod"])
def test_who_is_outside_is_the_same_on_both_sides_of_a_pods_device(on: Datapath, version: int, known: int) -> None:
    """With endpoint routes a native device's program leaves the identity in the mark, which has room for 24 bits."""
    address = WORLD4 if version == 4 else WORLD6
    defines = (("ENABLE_HOST_ROUTING", "1"),)
    with loaded(Build("bpf_host.c", endpoint_routes=True, defines=defines)) as host:
        host.add_endpoint(POD4 if version == 4 else POD6)
        host.add_identity(address, known)
        arrived = host.run("cil_from_netdev", into_pod(version))
    assert arrived.retval == REDIRECT
    on.add_identity(address, known)
    on.allow(known)
    on.allow(1)
    delivered = on.run("cil_to_container", arrived.data, mark=mark_of(arrived))
    assert (delivered.retval, mark_of(delivered)) == (PASS, 0)
    assert (on.allowed(known), on.allowed(1)) == (1, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_a_policy_program_passes_such_an_identity_on_as_the_world(on: Datapath, version: int) -> None:
    result = on.run("handle_policy", into_pod(version), cb=(RANGE, 1, 0, 0, 0))
    assert (result.retval, mark_of(result)) == (REDIRECT, 0x0002_0F00)
    result = on.run("handle_policy", into_pod(version), cb=(IDENTITY, 1, 0, 0, 0))
    assert mark_of(result) == IDENTITY_MARK


@pytest.mark.parametrize("version", [4, 6])
def test_what_goes_to_the_stack_has_the_pods_identity(on: Datapath, version: int) -> None:
    result = on.run("cil_from_container", to_peer(version))
    assert mark_of(result) == (POD.identity & 0xFFFF) << 16 | POD.identity >> 16 | 0xF00
