"""Malformed packets into every entry program: nothing gets through that a model of the headers does not let through."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.build.templates import TemplateCache
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import BpfError
from datapath.object.reachability import pruned
from lab.system.cache import cache_directory
from scenarios import frames
from scenarios.frames import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, TCP, UDP, eth, icmp, ipv4, ipv6, tcp, udp
from tests.bpf.loaded import (
    DROP,
    GATEWAY6,
    HOST,
    NODE,
    PASS,
    POD,
    REDIRECT,
    ROUTER4,
    WORLD4,
    WORLD6,
    Build,
    Datapath,
    loaded,
    loaded_spec,
)
from tests.bpf.pod import ARP_REQUEST, LINK_LOCAL, POD4, POD6

pytestmark = pytest.mark.privileged

FRAMES = 800
ICMP, ICMPV6, SCTP = frames.ICMP, frames.ICMPV6, frames.SCTP
HEADER_LENGTH = {TCP: 14, UDP: 4, SCTP: 4, ICMP: 8, ICMPV6: 8}
"""How much of the upper layer must be there, up to the last byte that is looked at."""

OPTIONS = (frames.HOP_BY_HOP, 43, 51, frames.DESTINATION)
HOUSEKEEPING = (131, 132, 133, 135, 136, 143)


def seeds(source4: IPv4Address, source6: IPv6Address, target4: IPv4Address, target6: IPv6Address) -> list[bytes]:
    payloads = ((TCP, tcp(1, 80, frames.SYN)), (UDP, udp()), (SCTP, udp()), (47, bytes(30)))
    v4 = [ipv4(source4, target4, payload, protocol=number) for number, payload in payloads]
    v4 += [ipv4(source4, target4, icmp(kind, quoted=v4[0]), protocol=ICMP) for kind in (0, 3, 5, 8)]
    v4 += [ipv4(source4, target4, udp(), fragment=bits) for bits in (frames.MORE_FRAGMENTS, 3)]
    v4 += [ipv4(source4, target4, bytes(12) + udp(), first=0x48)]
    v6 = [ipv6(source6, target6, payload, next_header=number) for number, payload in payloads]
    v6 += [ipv6(source6, target6, icmp(kind, quoted=v6[0]), next_header=ICMPV6) for kind in (1, 2, 128, 135, 136)]
    v6 += [ipv6(source6, target6, frames.extension(UDP, udp()), next_header=kind) for kind in (*OPTIONS, 44)]
    v6 += [ipv6(LINK_LOCAL, IPv6Address("ff02::2"), icmp(133), next_header=ICMPV6, hops=255)]
    found = [eth(POD.node_mac, POD.mac, ETH_P_IP, packet) for packet in v4]
    found += [eth(POD.node_mac, POD.mac, ETH_P_IPV6, packet) for packet in v6]
    vlan = [frame[:12] + b"\x81\x00\x00\x05" + frame[12:] for frame in found[:2]]
    return [*found, *vlan, ARP_REQUEST, frames.solicitation(POD.mac, POD6, GATEWAY6)]


def malformed(kind: random.Random, bases: list[bytes]) -> Iterator[bytes]:
    """Yield frames: cut off, with bytes changed or added, and noise."""
    for _ in range(FRAMES):
        frame = bytearray(kind.choice(bases))
        for _ in range(kind.choice((0, 0, 1, 2, 5))):
            # Mostly in the headers, which end at about 80.
            frame[kind.randrange(12, min(len(frame), 80))] = kind.choice((0, 1, 0x45, 0x60, 0xFF, kind.randrange(256)))
        if kind.random() < 0.4:
            del frame[kind.randrange(14, len(frame)) :]
        if kind.random() < 0.2:
            frame += kind.randbytes(kind.randrange(60))
        yield bytes(frame) if kind.random() < 0.95 else kind.randbytes(kind.randrange(14, 120))


def upper_is_known(packet: bytes, protocol: int, at: int, wanted: int) -> bool:
    """Tell whether the upper layer is one that is tracked, and its header there."""
    return protocol in {TCP, UDP, SCTP, wanted} and len(packet) >= at + HEADER_LENGTH[protocol]


def valid4(packet: bytes) -> bool:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return False
    header, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    if header < 20 or not header <= total <= len(packet) or fragment:
        return False
    return upper_is_known(packet, packet[9], header, ICMP)


def upper6(packet: bytes) -> tuple[int, int] | None:
    """Return protocol and place of the upper layer; None if there is none that may pass."""
    if len(packet) < 40 or packet[0] >> 4 != 6 or 40 + int.from_bytes(packet[4:6], "big") > len(packet):
        return None
    following, at = packet[6], 40
    for _ in range(4):
        if following not in OPTIONS:
            return None if following in (44, 59) else (following, at)
        if len(packet) < at + 2:
            return None
        size = (packet[at + 1] + 2) * 4 if following == 51 else (packet[at + 1] + 1) * 8
        following, at = packet[at], at + size
    return None


def may_leave(frame: bytes) -> bool:
    """Tell whether a pod's frame may get anywhere, whatever the policy: its own address, and headers in order."""
    kind, packet = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == ETH_P_ARP:
        return True
    if kind == ETH_P_IP:
        return valid4(packet) and packet[12:16] == POD4.packed
    upper = upper6(packet) if kind == ETH_P_IPV6 else None
    if upper is None:
        return False
    source, target = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    is_icmp = upper[0] == ICMPV6 and len(packet) > upper[1]
    if is_icmp and packet[upper[1]] == 135 and upper[1] == 40:
        return True  # answered, whoever asks
    if source == POD6:
        return upper_is_known(packet, *upper, ICMPV6)
    on_link = target.is_multicast or target.is_link_local
    return (
        (source.is_link_local or source == IPv6Address(0))
        and on_link
        and is_icmp
        and (packet[upper[1]] in HOUSEKEEPING)
    )


def may_enter(frame: bytes) -> bool:
    """Tell whether a frame may get into a pod, whatever the policy."""
    kind, packet = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == ETH_P_IPV6:
        upper = upper6(packet)
        return upper is not None and upper_is_known(packet, *upper, ICMPV6)
    return kind == ETH_P_ARP or (kind == ETH_P_IP and valid4(packet))


def verdicts(datapath: Datapath, program: str, bases: list[bytes], seed: int) -> Iterator[tuple[bytes, int]]:
    for frame in malformed(random.Random(seed), bases):
        try:
            yield frame, datapath.run(program, frame).retval
        except BpfError as error:
            # BPF_PROG_TEST_RUN makes no IP frame that is shorter than its header.
            if error.errno != errno.EINVAL:
                raise


OUT = seeds(POD4, POD6, WORLD4, WORLD6)
IN = seeds(WORLD4, WORLD6, POD4, POD6)


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["off", "on"])
def test_from_the_pod(endpoint_routes: bool) -> None:
    passed = dropped = 0
    with loaded(Build("bpf_lxc.c", endpoint_routes)) as datapath:
        for frame, verdict in verdicts(datapath, "cil_from_container", OUT, 1):
            assert verdict in (PASS, DROP, REDIRECT)
            passed, dropped = passed + (verdict != DROP), dropped + (verdict == DROP)
            assert verdict == DROP or may_leave(frame), frame.hex()
        assert sum(datapath.drops().values()) == dropped
        assert not {why for why, _ in datapath.drops()} & {140, 184}
    assert passed > 100
    assert dropped > 100


@pytest.mark.parametrize(("program", "endpoint_routes"), [("cil_to_container", True), ("handle_policy", False)])
def test_into_the_pod(program: str, endpoint_routes: bool) -> None:
    passed = dropped = 0
    with loaded(Build("bpf_lxc.c", endpoint_routes)) as datapath:
        for frame, verdict in verdicts(datapath, program, IN, 2):
            passed, dropped = passed + (verdict != DROP), dropped + (verdict == DROP)
            assert verdict == DROP or may_enter(frame), frame.hex()
        assert sum(datapath.drops().values()) == dropped
    assert passed > 100
    assert dropped > 100


@pytest.mark.parametrize(
    ("program", "bases"), [("cil_from_container", OUT), ("cil_to_container", IN)], ids=["out", "in"]
)
def test_where_nothing_is_allowed_no_ip_passes_but_of_the_link(program: str, bases: list[bytes]) -> None:
    with loaded(Build("bpf_lxc.c", endpoint_routes=True), allow=False) as datapath:
        for frame, verdict in verdicts(datapath, program, bases, 3):
            kind, packet = int.from_bytes(frame[12:14], "big"), frame[14:]
            upper = upper6(packet) if kind == ETH_P_IPV6 else None
            link = upper is not None and upper[0] == ICMPV6 and packet[upper[1]] in (*HOUSEKEEPING, 134, 137)
            assert verdict == DROP or kind == ETH_P_ARP or link, frame.hex()


@pytest.mark.parametrize("program", ["cil_from_host", "cil_from_netdev", "cil_to_netdev", "cil_to_host"])
@pytest.mark.parametrize("firewall", [False, True], ids=["plain", "firewall"])
def test_nothing_gets_past_the_host_s_policy(program: str, firewall: bool) -> None:
    """What is not for the host's policy is its stack's to refuse; with it, nothing for the host gets past."""
    defines = (("ENABLE_HOST_FIREWALL", "1"),) if firewall else ()
    with loaded(Build("bpf_host.c", defines=defines), allow=False) as datapath:
        datapath.add_identity(ROUTER4, 1)
        own = seeds(WORLD4, WORLD6, ROUTER4, GATEWAY6)
        for frame, verdict in verdicts(datapath, program, own, 4):
            assert verdict in (PASS, DROP)
            to_host = frame[12:14] == b"\x08\x00" and valid4(frame[14:]) and frame[30:34] == ROUTER4.packed
            if firewall and to_host and program in ("cil_to_host", "cil_from_netdev"):
                assert verdict == DROP, frame.hex()
            if program in ("cil_to_netdev", "cil_to_host") and not firewall:
                assert verdict == PASS


WAYS = [
    (Build("bpf_lxc.c"), ("cil_from_container",), 14),
    (Build("bpf_lxc.c", endpoint_routes=True), ("cil_from_container", "cil_to_container"), 19),
    (Build("bpf_host.c"), ("cil_to_host", "cil_from_host"), 4),
    (Build("bpf_host.c"), ("cil_to_host",), 1),
    (Build("bpf_host.c"), ("cil_from_netdev", "cil_to_netdev"), 4),
    (Build("bpf_host.c", defines=(("ENABLE_HOST_FIREWALL", "1"),)), ("cil_from_netdev",), 4),
    (Build("bpf_host.c", defines=(("ENABLE_HOST_FIREWALL", "1"),)), ("cil_to_host", "cil_from_host"), 7),
    (Build("bpf_overlay.c"), ("cil_from_overlay", "cil_to_overlay"), 4),
]


@pytest.mark.parametrize(("build", "entries", "programs"), WAYS, ids=[f"{b.source} {'+'.join(e)}" for b, e, _ in WAYS])
def test_what_is_not_reached_is_not_missed(build: Build, entries: tuple[str, ...], programs: int) -> None:
    """The same verdicts and packets, by the same programs, and the same drops, as with all programs of the object."""
    with loaded(build) as whole, loaded(build, entries=entries) as part:
        assert len(part.collection.programs) == programs
        for number, entry in enumerate(entries):
            frames_in = (OUT, IN, seeds(WORLD4, WORLD6, ROUTER4, GATEWAY6))
            for frame in malformed(random.Random(number), [frame for bases in frames_in for frame in bases]):
                results = [_result(datapath, entry, frame) for datapath in (whole, part)]
                assert results[0] == results[1], frame.hex()
        assert part.hits() == whole.hits()
        assert part.metrics() == whole.metrics()


TREE = os.environ.get("RELOADLAB_CILIUM_BPF")
FIREWALL = ("ENABLE_HOST_FIREWALL", "1")


@pytest.mark.skipif(TREE is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout")
@pytest.mark.parametrize(
    ("endpoint", "defines", "entries"),
    [
        (POD, (), ("cil_from_container",)),
        (POD.with_endpoint_routes(True), (), ("cil_to_container",)),
        (HOST, (), ("cil_to_host", "cil_from_host")),
        (HOST, (), ("cil_to_host",)),
        (HOST, (), ("cil_from_netdev", "cil_to_netdev")),
        (HOST, (FIREWALL,), ("cil_to_host", "cil_from_host")),
        (HOST, (FIREWALL,), ("cil_from_netdev", "cil_to_netdev")),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) and all(isinstance(v, str) for v in value) else "",
)
def test_what_is_not_reached_of_cilium_is_not_missed(
    endpoint: Endpoint, defines: tuple[tuple[str, str], ...], entries: tuple[str, ...], tmp_path: Path
) -> None:
    """The same verdicts, packets and counters with all programs of Cilium's object as with those that are reached."""
    config = DatapathConfig(
        library=Path(str(TREE)),
        state=tmp_path,
        bpffs=tmp_path,
        netns=tmp_path,
        node=NODE,
        defines=defines,
        object_cache=cache_directory(),
    )
    template = TemplateCache(config).fetch(endpoint)
    own = template.own_spec(template.image.spec, template.substitution(endpoint))
    with loaded_spec(own) as whole, loaded_spec(pruned(own, entries)) as part:
        assert len(part.collection.programs) < len(whole.collection.programs)
        for number, entry in enumerate(entries):
            frames_in = (OUT, IN, seeds(WORLD4, WORLD6, ROUTER4, GATEWAY6))
            for frame in malformed(random.Random(number), [frame for bases in frames_in for frame in bases]):
                results = [_result(datapath, entry, frame) for datapath in (whole, part)]
                assert results[0] == results[1], frame.hex()
        assert part.metrics() == whole.metrics() != {}


def _result(datapath: Datapath, program: str, frame: bytes) -> tuple[int, bytes] | None:
    try:
        result = datapath.run(program, frame)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    return result.retval, result.data


@pytest.mark.parametrize("program", ["cil_from_overlay", "cil_to_overlay"])
def test_the_overlay(program: str) -> None:
    """Without a tunnel key no IP comes out of the tunnel."""
    with loaded(Build("bpf_overlay.c")) as datapath:
        for frame, verdict in verdicts(datapath, program, IN, 5):
            is_ip = int.from_bytes(frame[12:14], "big") in (ETH_P_IP, ETH_P_IPV6)
            assert verdict == (DROP if is_ip and program == "cil_from_overlay" else PASS), frame.hex()
