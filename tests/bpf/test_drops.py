"""Every line of the C sources that decides to drop a packet is run, and says so: counter, direction, event, place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import pytest

from datapath.kernel.uapi import TestRun
from lab.abi.notifications import NOTIFY_DROP, DropNotify, source_file
from lab.abi.policymap import PolicyKey
from scenarios import frames
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, ICMP, ICMPV6, TCP, UDP, eth, icmp, ipv4, ipv6, tcp, udp
from tests.bpf import perf
from tests.bpf.faults import Helper, failing, missing
from tests.bpf.loaded import (
    CILIUM_HOST_MAC,
    DROP,
    GATEWAY6,
    LIBRARY,
    PASS,
    PEER4,
    PEER6,
    POD,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    XDP_DROP,
    Build,
    Datapath,
    loaded,
)
from tests.bpf.pod import ARP_REQUEST, EGRESS, INGRESS, ON, POD4, POD6, from_pod, to_peer
from tests.bpf.tunnel import tunnelled
from tests.bpf.vlan import tagged
from tests.bpf.xdp import deny_prefixes

REMOTE4 = IPv4Address("10.2.0.5")
DENIED_PORT = 666
Reason = str
Place = tuple[str, int, Reason]


def _numbers() -> dict[Reason, int]:
    found = re.findall(r"^#define (DROP_\w+)\s+DROP_HERE\((\d+)\)", (LIBRARY / "lib/drop.h").read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


NUMBERS = _numbers()
HIDDEN = {"FRAGMENTS4_ERROR": "DROP_FRAG_NOSUPPORT", "FRAGMENTS6_ERROR": "DROP_FRAG_NOSUPPORT"}
"""What stands in the sources for a reason, where an option decides whether it is one."""


def places() -> set[Place]:
    """Return every line that decides on a drop, as file, line and reason."""
    word = re.compile(rf"(?:return|=|\?)[^;]*?\b({'|'.join([*NUMBERS, *HIDDEN])})\b")
    return {
        (file.name, number, HIDDEN.get(found[1], found[1]))
        for file in [*LIBRARY.glob("*.c"), *LIBRARY.glob("lib/*.h")]
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if file.name != "drop.h" and (found := word.search(line))
    }


def none(datapath: Datapath) -> AbstractContextManager[None]:
    return nullcontext()


def fault(program: str, helper: Helper, **which: int | str) -> Callable[[Datapath], AbstractContextManager[None]]:
    return lambda datapath: failing(datapath, program, helper, **which)  # type: ignore[arg-type]


def empty(slot: int) -> Callable[[Datapath], AbstractContextManager[None]]:
    return lambda datapath: missing(datapath, slot)


@dataclass(frozen=True, slots=True)
class Case:
    """A frame for a program, and the drop that it meets; `during` makes it so."""

    reason: Reason
    direction: int
    program: str
    frame: bytes
    during: Callable[[Datapath], AbstractContextManager[None]] = none
    verdict: int = DROP
    cb: tuple[int, ...] = (0,) * 5
    ingress_ifindex: int = 1
    vni: int | None = None
    vlan: int | None = None

    def run(self, datapath: Datapath) -> TestRun:
        with self.during(datapath):
            if self.vlan is not None:
                with tagged(datapath, self.program, self.vlan) as wire:
                    return wire.run(self.frame)
            if self.vni is None:
                return datapath.run(self.program, self.frame, cb=self.cb, ingress_ifindex=self.ingress_ifindex)
            with tunnelled(datapath, self.vni) as out:
                return out.run(self.frame)


def sent(reason: Reason, packet: bytes, during: Callable[[Datapath], AbstractContextManager[None]] = none) -> Case:
    """Return the case of what the pod sends, from its entry program on."""
    return Case(reason, EGRESS, "cil_from_container", from_pod(packet), during)


def straight(reason: Reason, program: str, packet: bytes) -> Case:
    """Return that of an IP packet cut off, which BPF_PROG_TEST_RUN makes under another EtherType only."""
    return Case(reason, EGRESS, program, eth(POD.node_mac, POD.mac, 0x88CC, packet))


def into(packet: bytes) -> bytes:
    return eth(POD.mac, POD.node_mac, ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6, packet)


LLDP, NO_ETHERNET_II = (eth(POD.node_mac, POD.mac, kind, bytes(46)) for kind in (0x88CC, 0x0026))
OUT4, OUT6 = ipv4(POD4, WORLD4, udp()), ipv6(POD6, WORLD6, udp())
IN4, IN6 = into(ipv4(WORLD4, POD4, udp())), into(ipv6(WORLD6, POD6, udp()))
CUT_FRAGMENT = ipv6(POD6, WORLD6, bytes(7), next_header=frames.FRAGMENT)


def options(count: int) -> bytes:
    payload, following = udp(), UDP
    for _ in range(count):
        payload, following = frames.extension(following, payload), frames.DESTINATION
    return ipv6(POD6, WORLD6, payload, next_header=following)


# Those of a step without the one before come first: later there is something in the buffer.
CHAIN = [
    Case("DROP_INVALID_TC_BUFFER", EGRESS, "tail_ipv4_ct_egress", from_pod(OUT4)),
    Case("DROP_INVALID_TC_BUFFER", EGRESS, "tail_handle_ipv4_cont", from_pod(OUT4)),
    Case("DROP_INVALID_TC_BUFFER", INGRESS, "tail_ipv4_policy", IN4),
    *(
        Case(reason, direction, program, frame)
        for reason, frame in (("DROP_UNKNOWN_L3", LLDP), ("DROP_UNSUPPORTED_L2", NO_ETHERNET_II))
        for program, direction in (
            ("cil_from_container", EGRESS),
            ("cil_to_container", INGRESS),
            ("handle_policy", INGRESS),
        )
    ),
    *(
        Case("DROP_MISSED_TAIL_CALL", EGRESS, "cil_from_container", frame, empty(slot))
        for slot, frame in (
            *((slot, from_pod(OUT4)) for slot in (7, 29, 25)),
            *((slot, from_pod(OUT6)) for slot in (10, 32)),
            (6, ARP_REQUEST),
            (4, frames.solicitation(POD.mac, POD6, GATEWAY6)),
        )
    ),
    *(
        Case("DROP_MISSED_TAIL_CALL", INGRESS, program, frame, empty(slot))
        for program, slot, frame in (
            ("cil_to_container", 27, IN4),
            ("cil_to_container", 13, IN4),
            ("cil_to_container", 30, IN6),
            ("handle_policy", 28, IN4),
            ("handle_policy", 31, IN6),
        )
    ),
    # Policy programs that are not there: the host's, in both directions, and another pod's.
    sent("DROP_MISSED_TAIL_CALL", ipv4(POD4, ROUTER4, udp())),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_to_container", IN4, ingress_ifindex=0),
    Case("DROP_MISSED_TAIL_CALL", EGRESS, "cil_from_container", to_peer(4)),
    sent(
        "DROP_INVALID_TC_BUFFER",
        OUT4,
        fault("tail_handle_ipv4", Helper.MAP_LOOKUP_ELEM, map_="cilium_tail_call_buffer4"),
    ),
    sent(
        "DROP_INVALID_TC_BUFFER",
        OUT6,
        fault("tail_handle_ipv6", Helper.MAP_LOOKUP_ELEM, map_="cilium_tail_call_buffer6"),
    ),
    Case(
        "DROP_INVALID_TC_BUFFER",
        INGRESS,
        "cil_to_container",
        IN4,
        fault("tail_ipv4_ct_ingress", Helper.MAP_LOOKUP_ELEM, map_="cilium_tail_call_buffer4"),
    ),
]

HEADERS = [
    sent("DROP_INVALID_SIP", ipv4(PEER4, WORLD4, udp())),
    sent("DROP_INVALID_SIP", ipv6(PEER6, WORLD6, udp())),
    straight("DROP_INVALID", "tail_handle_ipv4", OUT4[:19]),
    straight("DROP_INVALID", "tail_handle_ipv6", OUT6[:39]),
    sent("DROP_INVALID", ipv4(POD4, WORLD4, udp(), total=19)),
    sent("DROP_INVALID", ipv6(POD6, WORLD6, udp(), length=200)),
    sent("DROP_INVALID", CUT_FRAGMENT),
    sent("DROP_INVALID", ipv6(POD6, WORLD6, b"\0", next_header=frames.DESTINATION)),
    sent("DROP_INVALID_EXTHDR", options(4)),
    sent("DROP_INVALID_EXTHDR", ipv6(POD6, WORLD6, bytes(8), next_header=frames.NO_NEXT_HEADER)),
    Case("DROP_INVALID", EGRESS, "cil_from_container", to_peer(4, ttl=1)),
    sent("DROP_CT_INVALID_HDR", ipv4(POD4, WORLD4, bytes(3))),
    sent("DROP_CT_INVALID_HDR", ipv4(POD4, WORLD4, bytes(7), protocol=ICMP)),
    sent("DROP_CT_INVALID_HDR", ipv4(POD4, WORLD4, bytes(13), protocol=TCP)),
    sent("DROP_CT_UNKNOWN_PROTO", ipv4(POD4, WORLD4, icmp(8), protocol=ICMPV6)),
    sent("DROP_CT_UNKNOWN_PROTO", ipv4(POD4, WORLD4, bytes(20), protocol=47)),
    sent("DROP_FRAG_NOT_FOUND", ipv4(POD4, WORLD4, bytes(24), fragment=185)),
    sent("DROP_POLICY", ipv4(POD4, WORLD4, tcp(40000, 80, frames.SYN), protocol=TCP)),
    sent("DROP_POLICY_DENY", ipv4(POD4, WORLD4, udp(dport=DENIED_PORT))),
    straight("DROP_INVALID", "tail_icmp6_handle_ns", bytes(50)),
    *(
        Case("DROP_INVALID", EGRESS, "cil_from_container", frames.solicitation(POD.mac, POD6, target, hops=hops))
        for target, hops in ((GATEWAY6, 64), (IPv6Address("ff02::1"), 255))
    ),
]

# Where a helper fails that never does with such packets.
LAST4, LAST6, NS = "tail_handle_ipv4_cont", "tail_handle_ipv6_cont", "tail_icmp6_handle_ns"
HELPERS = [
    Case(
        "DROP_WRITE_ERROR", EGRESS, "cil_from_container", ARP_REQUEST, fault("tail_handle_arp", Helper.SKB_STORE_BYTES)
    ),
    *(
        Case(
            reason,
            EGRESS,
            "cil_from_container",
            frames.solicitation(POD.mac, POD6, GATEWAY6),
            fault(NS, helper, **which),
        )
        for reason, helper, which in (
            ("DROP_INVALID", Helper.SKB_LOAD_BYTES, {"size": frames.ETH_LEN}),
            ("DROP_WRITE_ERROR", Helper.SKB_CHANGE_TAIL, {}),
            ("DROP_WRITE_ERROR", Helper.SKB_STORE_BYTES, {}),
        )
    ),
    *(
        Case(reason, EGRESS, "cil_from_container", to_peer(version), fault(program, helper, **which))
        for reason, version, program, helper, which in (
            ("DROP_CSUM_L3", 4, LAST4, Helper.L3_CSUM_REPLACE, {}),
            ("DROP_WRITE_ERROR", 4, LAST4, Helper.SKB_STORE_BYTES, {"size": 1}),
            ("DROP_WRITE_ERROR", 6, LAST6, Helper.SKB_STORE_BYTES, {"size": 1}),
            ("DROP_WRITE_ERROR", 6, LAST6, Helper.SKB_STORE_BYTES, {"size": 12}),
        )
    ),
    sent("DROP_WRITE_ERROR", OUT4, fault(LAST4, Helper.SKB_STORE_BYTES)),
    sent("DROP_WRITE_ERROR", ipv4(POD4, REMOTE4, udp()), fault(LAST4, Helper.SKB_SET_TUNNEL_KEY)),
    sent(
        "DROP_CT_CREATE_FAILED",
        ipv4(POD4, WORLD4, udp(sport=9)),
        fault(LAST4, Helper.MAP_UPDATE_ELEM, map_="cilium_ct_any4_global"),
    ),
]

FRAGMENTS = [
    sent("DROP_FRAG_NOSUPPORT", ipv4(POD4, WORLD4, udp(), fragment=frames.MORE_FRAGMENTS)),
    sent("DROP_FRAG_NOSUPPORT", CUT_FRAGMENT),
]

TO_PEER4, TO_PEER6 = (
    eth(CILIUM_HOST_MAC, CILIUM_HOST_MAC, ETH_P_IP, ipv4(ROUTER4, PEER4, udp())),
    eth(CILIUM_HOST_MAC, CILIUM_HOST_MAC, ETH_P_IPV6, ipv6(ROUTER6, PEER6, udp())),
)
# Of what the host itself sends, a packet that is counted as missed goes on.
HOST = [
    Case("DROP_UNROUTABLE", INGRESS, "cil_from_host", TO_PEER4),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_from_host", TO_PEER4, empty(22), verdict=PASS),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_from_host", TO_PEER6, empty(23), verdict=PASS),
    Case("DROP_MISSED_TAIL_CALL", EGRESS, "handle_lxc_traffic", TO_PEER4, cb=(POD.id, 0, 0, 1, 0)),
    Case("DROP_UNKNOWN_L3", INGRESS, "handle_lxc_traffic", LLDP),
    Case("DROP_VLAN_FILTERED", INGRESS, "cil_from_netdev", TO_PEER4, vlan=5),
    Case("DROP_VLAN_FILTERED", EGRESS, "cil_to_netdev", TO_PEER6, vlan=0xE005),
]
OVERLAY = [
    Case("DROP_NO_TUNNEL_KEY", INGRESS, "cil_from_overlay", TO_PEER4),
    Case("DROP_INVALID_IDENTITY", INGRESS, "cil_from_overlay", TO_PEER4, vni=1),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_from_overlay", TO_PEER4, empty(7)),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_from_overlay", TO_PEER6, empty(10)),
]
XDP = [
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_xdp_entry", TO_PEER4, empty(7), verdict=XDP_DROP),
    Case("DROP_MISSED_TAIL_CALL", INGRESS, "cil_xdp_entry", TO_PEER6, empty(10), verdict=XDP_DROP),
    Case("DROP_INVALID", INGRESS, "cil_xdp_entry", TO_PEER4[:33], verdict=XDP_DROP),
    Case("DROP_POLICY_DENY", INGRESS, "cil_xdp_entry", IN4, verdict=XDP_DROP),
]
DEFINES = tuple((f"ENABLE_{name}", "1") for name in ("HOST_FIREWALL", "IPV4_FRAGMENTS", "IPV6_FRAGMENTS"))


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share an object."""

    build: Build
    cases: list[Case] = field(repr=False)


GROUPS: Mapping[str, Group] = {
    "pod": Group(Build("bpf_lxc.c", tunnel=True, defines=DEFINES), CHAIN + HEADERS + HELPERS),
    "pod without fragments": Group(ON, FRAGMENTS),
    "host": Group(Build("bpf_host.c", defines=DEFINES[:1]), HOST),
    "overlay": Group(Build("bpf_overlay.c"), OVERLAY),
    "XDP": Group(Build("bpf_xdp.c"), XDP),
    "overlay without IPv4": Group(
        Build("bpf_overlay.c", options=(("ENABLE_IPV4", "0"),)),
        [Case("DROP_UNKNOWN_L3", INGRESS, "cil_from_overlay", TO_PEER4)],
    ),
    "overlay without IPv6": Group(
        Build("bpf_overlay.c", options=(("ENABLE_IPV6", "0"),)),
        [Case("DROP_UNKNOWN_L3", INGRESS, "cil_from_overlay", TO_PEER6)],
    ),
}


@contextmanager
def prepared(build: Build) -> Iterator[Datapath]:
    """Load an object whose peer lives here without a program, and which may speak UDP and ICMP."""
    with loaded(build, allow=False) as datapath:
        if build.source == "bpf_lxc.c":
            for address in (PEER4, PEER6):
                datapath.add_endpoint(address, lxc_id=124)
            datapath.add_endpoint(ROUTER4, host=True)
            datapath.add_identity(REMOTE4, 5000, node="192.0.2.7")
            for key, deny in ((PolicyKey(0, True, UDP), False), (PolicyKey(0, True, UDP, DENIED_PORT), True)):
                datapath.policy.update(key.pack(), key.entry(deny=deny).pack())
        if build.source == "bpf_xdp.c":
            deny_prefixes(datapath, f"{WORLD4}/32")
        yield datapath


def check(datapath: Datapath, case: Case) -> Place:
    """Run a case, and return where the drop says that it was decided."""
    number = NUMBERS[case.reason]
    before = datapath.drops()
    with perf.opened(datapath.map("cilium_events")) as events:
        assert case.run(datapath).retval == case.verdict, case
        (drop,) = [DropNotify.unpack(message) for message in events.read() if message[0] == NOTIFY_DROP]
    counted = {key: count - before.get(key, 0) for key, count in datapath.drops().items()}
    assert {key: count for key, count in counted.items() if count} == {(number, case.direction): 1}, case
    assert drop.header.subtype == number, case
    file = source_file(drop)
    assert file is not None
    return file, drop.line, case.reason


@pytest.mark.privileged
def test_every_line_that_drops_is_run() -> None:
    """With its reason, in the direction of its program, and it is the line that the event names."""
    reached: set[Place] = set()
    for group in GROUPS.values():
        with prepared(group.build) as datapath:
            reached |= {check(datapath, case) for case in group.cases}
    assert reached == places()


def test_every_reason_stands_somewhere() -> None:
    assert {reason for _, _, reason in places()} == NUMBERS.keys()
    cases = {case.reason for group in GROUPS.values() for case in group.cases}
    assert cases == NUMBERS.keys()
