"""bpf_lxc.c, one packet at a time through BPF_PROG_TEST_RUN: verdict, rewritten bytes, counters."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.abi.layouts import Program
from scenarios import frames
from scenarios.frames import ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import (
    DROP,
    GATEWAY4,
    GATEWAY6,
    PASS,
    PEER4,
    PEER6,
    POD,
    REDIRECT,
    ROUTER4,
    WORLD4,
    WORLD6,
    Build,
    Datapath,
    loaded,
)
from tests.bpf.pod import (
    ARP_REQUEST,
    EGRESS,
    FORWARDED,
    INGRESS,
    LINK_LOCAL,
    LINK_LOCAL_PEER,
    OFF,
    ON,
    POD4,
    POD6,
    STALE_MAC,
    from_pod,
    programs,
    to_peer,
)

pytestmark = pytest.mark.privileged

# --- ARP ---


@pytest.mark.parametrize("asked", [GATEWAY4, PEER4, WORLD4], ids=["gateway", "pod", "world"])
@pytest.mark.parametrize("dst", [frames.BROADCAST, POD.node_mac], ids=["broadcast", "unicast"])
def test_arp_is_answered_for_any_address(off: Datapath, asked: IPv4Address, dst: str) -> None:
    request = frames.arp(1, dst, POD.mac, (POD.mac, POD4), ("00:00:00:00:00:00", asked))
    result = off.run("cil_from_container", request)
    assert result.retval == REDIRECT
    assert result.data == frames.arp(2, POD.mac, POD.node_mac, (POD.node_mac, asked), (POD.mac, POD4))
    assert programs(off) == {Program.FROM_CONTAINER: 1, Program.LXC_ARP: 1}
    assert off.metrics() == {(FORWARDED, INGRESS): 1}


@pytest.mark.parametrize(
    "frame",
    [
        frames.arp(1, frames.BROADCAST, POD.mac, (POD.mac, IPv4Address(0)), ("00:00:00:00:00:00", POD4)),
        frames.arp(2, POD.node_mac, POD.mac, (POD.mac, POD4), (POD.node_mac, ROUTER4)),
        frames.arp(1, STALE_MAC, POD.mac, (POD.mac, POD4), ("00:00:00:00:00:00", GATEWAY4)),
        frames.arp(1, frames.BROADCAST, POD.mac, (POD.mac, POD4), ("00:00:00:00:00:00", GATEWAY4))[:40],
    ],
    ids=["own address", "reply", "to somebody else", "cut off"],
)
def test_other_arp_goes_to_the_stack_untouched(off: Datapath, frame: bytes) -> None:
    result = off.run("cil_from_container", frame)
    assert (result.retval, result.data) == (PASS, frame)
    assert off.metrics() == {(FORWARDED, EGRESS): 1}


def test_arp_passthrough() -> None:
    with loaded(Build("bpf_lxc.c", defines=(("ENABLE_ARP_PASSTHROUGH", "1"),))) as datapath:
        result = datapath.run("cil_from_container", ARP_REQUEST)
        assert (result.retval, result.data) == (PASS, ARP_REQUEST)
        assert programs(datapath) == {Program.FROM_CONTAINER: 1}


# --- neighbour discovery ---


@pytest.mark.parametrize("asked", [GATEWAY6, PEER6, LINK_LOCAL_PEER], ids=["gateway", "pod", "link-local"])
@pytest.mark.parametrize("source", [POD6, LINK_LOCAL], ids=["global", "link-local"])
@pytest.mark.parametrize(
    "options",
    [frames.source_option(POD.mac), b"", frames.source_option(POD.mac) + bytes((14, 1)) + bytes(6)],
    ids=["source option", "no option", "two options"],
)
def test_solicitation_is_answered(off: Datapath, asked: IPv6Address, source: IPv6Address, options: bytes) -> None:
    result = off.run("cil_from_container", frames.solicitation(POD.mac, source, asked, options=options))
    option = bytes((2, 1)) + bytes.fromhex(POD.node_mac.replace(":", ""))
    advert = frames.icmp6(asked, source, bytes((136, 0, 0, 0, 0xE0, 0, 0, 0)) + asked.packed + option)
    expected = eth(POD.mac, POD.node_mac, ETH_P_IPV6, ipv6(asked, source, advert, next_header=58, hops=255))
    assert (result.retval, result.data) == (REDIRECT, expected)
    assert programs(off) == {Program.FROM_CONTAINER: 1, Program.IPV6_FROM_LXC: 1, Program.LXC_ICMP6_NS: 1}


@pytest.mark.parametrize(
    ("source", "asked"),
    [(LINK_LOCAL, POD6), (IPv6Address(0), LINK_LOCAL), (IPv6Address(0), POD6)],
    ids=["own address", "duplicate detection, link-local", "duplicate detection, global"],
)
def test_solicitation_that_is_not_ours_to_answer(off: Datapath, source: IPv6Address, asked: IPv6Address) -> None:
    frame = frames.solicitation(POD.mac, source, asked)
    result = off.run("cil_from_container", frame)
    assert (result.retval, result.data) == (PASS, frame)


@pytest.mark.parametrize(
    ("asked", "hops", "code"),
    [(GATEWAY6, 64, 0), (GATEWAY6, 255, 1), (IPv6Address("ff02::1"), 255, 0)],
    ids=["from afar", "with a code", "for a group"],
)
def test_invalid_solicitation_is_dropped(off: Datapath, asked: IPv6Address, hops: int, code: int) -> None:
    frame = frames.solicitation(POD.mac, POD6, asked, hops=hops, code=code)
    assert off.run("cil_from_container", frame).retval == DROP
    assert off.drops() == {(134, EGRESS): 1}


@pytest.mark.parametrize("source", [LINK_LOCAL, IPv6Address(0)], ids=["link-local", "unspecified"])
@pytest.mark.parametrize("kind", [133, 143], ids=["router solicitation", "multicast report"])
def test_what_the_pod_says_to_its_link_passes(off: Datapath, source: IPv6Address, kind: int) -> None:
    group = IPv6Address("ff02::16" if kind == 143 else "ff02::2")
    message = frames.icmp6(source, group, bytes((kind, 0)) + bytes(6))
    packet = (
        ipv6(source, group, frames.extension(58, message), next_header=frames.HOP_BY_HOP, hops=1)
        if kind == 143
        else ipv6(source, group, message, next_header=58, hops=255)
    )
    frame = from_pod(packet)
    result = off.run("cil_from_container", frame)
    assert (result.retval, result.data) == (PASS, frame)
    assert off.drops() == {}


# --- what is dropped ---


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(PEER4, WORLD4, udp()),
        ipv4(IPv4Address(0), WORLD4, udp()),
        ipv6(PEER6, WORLD6, udp()),
        ipv6(LINK_LOCAL, WORLD6, udp()),
        ipv6(LINK_LOCAL, LINK_LOCAL_PEER, udp()),
        ipv6(LINK_LOCAL, PEER6, frames.icmp6(LINK_LOCAL, PEER6, bytes((143, 0)) + bytes(6)), next_header=58),
    ],
    ids=["v4", "v4 unspecified", "v6", "v6 link-local", "v6 link-local, UDP on the link", "v6 report to a pod"],
)
@pytest.mark.parametrize("build", [OFF, ON], ids=["off", "on"])
def test_wrong_source_address(build: Build, packet: bytes) -> None:
    with loaded(build) as datapath:
        assert datapath.run("cil_from_container", from_pod(packet)).retval == DROP
        assert datapath.metrics() == {(132, EGRESS): 1}


FRAGMENTS = {
    "v4 first": ipv4(POD4, WORLD4, udp(), fragment=frames.MORE_FRAGMENTS),
    "v4 later": ipv4(POD4, WORLD4, bytes(24), fragment=185),
    "v6": ipv6(POD6, WORLD6, frames.extension(17, udp()), next_header=frames.FRAGMENT),
    "v6 behind options": ipv6(
        POD6, WORLD6, frames.extension(frames.FRAGMENT, frames.extension(17, udp())), next_header=frames.DESTINATION
    ),
}


@pytest.mark.parametrize("packet", FRAGMENTS.values(), ids=FRAGMENTS)
def test_fragments_are_dropped(off: Datapath, packet: bytes) -> None:
    assert off.run("cil_from_container", from_pod(packet)).retval == DROP
    assert off.metrics() == {(157, EGRESS): 1}


@pytest.mark.parametrize(
    ("packet", "reason", "program"),
    [
        (ipv4(POD4, WORLD4, udp(), first=0x65), 134, "tail_handle_ipv4"),
        (ipv4(POD4, WORLD4, udp(), first=0x44), 134, "tail_handle_ipv4"),
        (ipv4(POD4, WORLD4, udp(), total=19), 134, "tail_handle_ipv4"),
        (ipv4(POD4, WORLD4, udp(), total=200), 134, "tail_handle_ipv4"),
        (ipv4(POD4, WORLD4, udp(), first=0x4F, total=48), 134, "tail_handle_ipv4"),
        (ipv4(POD4, WORLD4)[:19], 134, "tail_handle_ipv4"),
        (ipv6(POD6, WORLD6, udp(), version=5), 134, "tail_handle_ipv6"),
        (ipv6(POD6, WORLD6, udp(), length=200), 134, "tail_handle_ipv6"),
        (ipv6(POD6, WORLD6)[:39], 134, "tail_handle_ipv6"),
        (ipv6(POD6, WORLD6, b"", next_header=frames.DESTINATION), 134, "tail_handle_ipv6"),
        (ipv6(POD6, WORLD6, bytes(8), next_header=frames.NO_NEXT_HEADER), 156, "tail_handle_ipv6"),
    ],
    ids=[
        "v4 version",
        "v4 header length",
        "v4 total length below the header",
        "v4 total length beyond the frame",
        "v4 header beyond the packet",
        "v4 cut off",
        "v6 version",
        "v6 length beyond the frame",
        "v6 cut off",
        "v6 extension cut off",
        "v6 no next header",
    ],
)
def test_invalid_headers(off: Datapath, packet: bytes, reason: int, program: str) -> None:
    # Straight into the tail program, under another EtherType: BPF_PROG_TEST_RUN makes no IP frame that is cut off.
    assert off.run(program, eth(POD.node_mac, POD.mac, 0x88CC, packet)).retval == DROP
    assert off.metrics() == {(reason, EGRESS): 1}


@pytest.mark.parametrize(("count", "verdict"), [(3, PASS), (4, DROP)], ids=["as many as are followed", "one more"])
def test_chain_of_extension_headers(off: Datapath, count: int, verdict: int) -> None:
    payload, following = udp(), frames.UDP
    for _ in range(count):
        payload, following = frames.extension(following, payload, words=1), frames.DESTINATION
    packet = ipv6(POD6, WORLD6, payload, next_header=following)
    assert off.run("cil_from_container", from_pod(packet)).retval == verdict
    assert off.drops() == ({} if verdict == PASS else {(156, EGRESS): 1})


@pytest.mark.parametrize(
    ("ethertype", "reason"), [(0x88CC, 139), (0x0026, 166), (0x05FF, 166)], ids=["LLDP", "802.3", "largest length"]
)
@pytest.mark.parametrize(
    ("program", "direction"),
    [("cil_from_container", EGRESS), ("cil_to_container", INGRESS), ("handle_policy", INGRESS)],
)
def test_no_protocol_of_ours(on: Datapath, program: str, direction: int, ethertype: int, reason: int) -> None:
    assert on.run(program, eth(POD.node_mac, POD.mac, ethertype, bytes(46))).retval == DROP
    assert on.drops() == {(reason, direction): 1}


@pytest.mark.parametrize(
    ("program", "slots", "frame", "direction"),
    [
        ("cil_from_container", [6], ARP_REQUEST, EGRESS),
        ("cil_from_container", [7], to_peer(4), EGRESS),
        ("cil_from_container", [10], to_peer(6), EGRESS),
        ("cil_from_container", [4], frames.solicitation(POD.mac, POD6, GATEWAY6), EGRESS),
        ("cil_from_container", [29], to_peer(4), EGRESS),
        ("cil_from_container", [32], to_peer(6), EGRESS),
        ("cil_from_container", [25], to_peer(4), EGRESS),
        ("cil_from_container", [26], to_peer(6), EGRESS),
        ("cil_to_container", [27], to_peer(4), INGRESS),
        ("cil_to_container", [30], to_peer(6), INGRESS),
        ("cil_to_container", [13], to_peer(4), INGRESS),
        ("cil_to_container", [14], to_peer(6), INGRESS),
        ("handle_policy", [28], to_peer(4), INGRESS),
        ("handle_policy", [31], to_peer(6), INGRESS),
        ("handle_policy", [11], to_peer(4), INGRESS),
        ("handle_policy", [12], to_peer(6), INGRESS),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("build", [OFF, ON], ids=["off", "on"])
def test_missed_tail_call(build: Build, program: str, slots: list[int], frame: bytes, direction: int) -> None:
    with loaded(build) as datapath:
        for slot in slots:
            datapath.empty(slot)
        assert datapath.run(program, frame).retval == DROP
        assert datapath.drops() == {(140, direction): 1}
