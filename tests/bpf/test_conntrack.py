"""lib/conntrack.h: what is a new connection, what an answer, how long it lasts, and what goes out and in by it.

The pod may open connections and nobody may open one to it, unless a test says otherwise: an answer is what comes in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from datapath.endpoint import WORLD_ID
from lab.abi import conntrack, policymap
from scenarios import frames
from scenarios.frames import ACK, FIN, ICMP, RST, SCTP, SYN, TCP, UDP, icmp, tcp, udp
from tests.bpf.flow import PORT, SERVICE, Peer
from tests.bpf.loaded import DROP, PASS, PEER4, PEER6, POD, WORLD4, Build, Datapath, loaded
from tests.bpf.pod import EGRESS, INGRESS, ON, POD4, POD6

pytestmark = pytest.mark.privileged

DENIED = {(133, INGRESS): 1}
CLOSE, SYN_TIMEOUT, TCP_LIFETIME, OTHER_LIFETIME = 10, 60, 21600, 60


def allow(datapath: Datapath, *, egress: bool) -> None:
    datapath.policy.update(policymap.policy_key_any(egress=egress), policymap.POLICY_ENTRY_ALLOW)


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with loaded(ON, allow=False) as datapath:
        allow(datapath, egress=True)
        yield Peer(datapath, request.param)


def lasts(entry: conntrack.CtEntry | None) -> int:
    """Return how long an entry holds from now on, in seconds; the clock may be at the end of one."""
    assert entry is not None
    return entry.lifetime - int(time.clock_gettime(time.CLOCK_MONOTONIC))


def out(peer: Peer, flags: int) -> int:
    return peer.out(TCP, tcp(PORT, SERVICE, flags)).retval


def into(peer: Peer, flags: int) -> int:
    return peer.into(TCP, tcp(SERVICE, PORT, flags)).retval


PAIRS = {
    "tcp": (TCP, tcp(PORT, SERVICE, SYN), tcp(SERVICE, PORT, SYN | ACK)),
    "udp": (UDP, udp(sport=PORT, dport=SERVICE), udp(sport=SERVICE, dport=PORT)),
    "sctp": (SCTP, udp(sport=PORT, dport=SERVICE), udp(sport=SERVICE, dport=PORT)),
}


@pytest.mark.parametrize(("protocol", "question", "answer"), PAIRS.values(), ids=PAIRS)
def test_an_answer_passes_where_no_rule_allows_it(peer: Peer, protocol: int, question: bytes, answer: bytes) -> None:
    assert peer.into(protocol, answer).retval == DROP
    assert peer.entry(protocol, SERVICE, PORT, out=False) is None, "a packet that is dropped begins no connection"
    assert peer.out(protocol, question).retval == PASS
    assert peer.into(protocol, answer).retval == PASS
    assert peer.datapath.drops() == DENIED


def test_an_echo_and_its_reply(peer: Peer) -> None:
    request, reply = (8, 0) if peer.version == 4 else (128, 129)
    assert peer.out(peer.icmp, icmp(request, ident=77)).retval == PASS
    assert peer.into(peer.icmp, icmp(reply, ident=77)).retval == PASS
    assert peer.into(peer.icmp, icmp(reply, ident=78)).retval == DROP
    assert peer.into(peer.icmp, icmp(request, ident=77)).retval == DROP
    assert peer.entry(peer.icmp, 77, 0, out=True) is not None


def test_accounting(peer: Peer) -> None:
    assert out(peer, SYN) == into(peer, SYN | ACK) == out(peer, ACK) == PASS
    entry = peer.entry(TCP, PORT, SERVICE, out=True)
    assert entry is not None
    length = frames.ETH_LEN + (frames.IPV4_LEN if peer.version == 4 else frames.IPV6_LEN) + 20
    assert (entry.tx_packets, entry.tx_length) == (2, 2 * length)
    assert (entry.rx_packets, entry.rx_length) == (1, length)
    assert (entry.tx_flags_seen, entry.rx_flags_seen) == (SYN | ACK, SYN | ACK)
    assert entry.src_sec_id == POD.identity


STEPS = {
    "syn": ([("out", SYN)], set(), SYN_TIMEOUT),
    "syn answered": ([("out", SYN), ("into", SYN | ACK)], set(), SYN_TIMEOUT),
    "established": ([("out", SYN), ("into", SYN | ACK), ("out", ACK)], {"seen_non_syn"}, TCP_LIFETIME),
    "simultaneous open": ([("out", SYN), ("into", SYN), ("out", SYN | ACK)], set(), SYN_TIMEOUT),
    "half closed": ([("out", SYN), ("out", FIN | ACK)], {"seen_non_syn", "tx_closing"}, TCP_LIFETIME),
    "half closed by the peer": ([("out", SYN), ("into", FIN | ACK)], {"seen_non_syn", "rx_closing"}, TCP_LIFETIME),
    "closed": (
        [("out", SYN), ("out", FIN | ACK), ("into", FIN | ACK), ("out", ACK)],
        {"seen_non_syn", "rx_closing", "tx_closing"},
        CLOSE,
    ),
    "reset": ([("out", SYN), ("out", ACK), ("into", RST)], {"seen_non_syn", "rx_closing", "tx_closing"}, CLOSE),
    "refused": ([("out", SYN), ("into", RST | ACK)], {"seen_non_syn", "rx_closing", "tx_closing"}, CLOSE),
    "reset by a SYN": ([("out", SYN), ("out", SYN | RST)], {"seen_non_syn", "rx_closing", "tx_closing"}, CLOSE),
    "reset by somebody else": (
        [("out", SYN), ("into", RST), ("into", SYN | ACK), ("out", ACK)],
        {"seen_non_syn"},
        TCP_LIFETIME,
    ),
    "reset by somebody else when half closed": (
        [("out", SYN), ("out", FIN | ACK), ("into", RST), ("into", ACK)],
        {"seen_non_syn", "tx_closing"},
        TCP_LIFETIME,
    ),
    "reset by somebody else when half closed by the peer": (
        [("out", SYN), ("into", FIN | ACK), ("into", RST), ("into", ACK)],
        {"seen_non_syn", "rx_closing"},
        TCP_LIFETIME,
    ),
    "reset by somebody else, then by us": (
        [("out", SYN), ("into", RST), ("into", ACK), ("out", RST), ("into", ACK)],
        {"seen_non_syn", "rx_closing", "tx_closing"},
        CLOSE,
    ),
    "picked up": ([("out", ACK)], {"seen_non_syn"}, TCP_LIFETIME),
}


@pytest.mark.parametrize(("packets", "flags", "lifetime"), STEPS.values(), ids=STEPS)
def test_states_of_tcp(peer: Peer, packets: list[tuple[str, int]], flags: set[str], lifetime: int) -> None:
    for way, bits in packets:
        assert (out if way == "out" else into)(peer, bits) == PASS
    entry = peer.entry(TCP, PORT, SERVICE, out=True)
    assert entry is not None
    assert entry.names == flags
    assert lifetime - 2 <= lasts(entry) <= lifetime


def test_what_is_no_tcp_lasts_a_minute(peer: Peer) -> None:
    peer.out(UDP, udp(sport=PORT, dport=SERVICE))
    assert OTHER_LIFETIME - 2 <= lasts(peer.entry(UDP, PORT, SERVICE, out=True)) <= OTHER_LIFETIME


def test_the_answer_to_a_closed_connection_still_passes(peer: Peer) -> None:
    for way, flags in ((out, SYN), (out, FIN | ACK), (into, FIN | ACK), (out, ACK), (into, ACK)):
        assert way(peer, flags) == PASS


def test_what_comes_after_the_end_keeps_the_entry(peer: Peer) -> None:
    """Something was lost at the end, and is sent again."""
    for way, flags in ((out, SYN), (out, FIN | ACK), (into, FIN | ACK)):
        way(peer, flags)
    for way in (out, into):
        entry = peer.entry(TCP, PORT, SERVICE, out=True)
        assert entry is not None
        peer.change(TCP, PORT, SERVICE, replace(entry, lifetime=entry.lifetime - CLOSE // 2), out=True)
        assert way(peer, ACK) == PASS
        assert CLOSE - 2 <= lasts(peer.entry(TCP, PORT, SERVICE, out=True)) <= CLOSE


def test_an_entry_whose_time_is_over_is_none(peer: Peer) -> None:
    out(peer, SYN)
    entry = peer.entry(TCP, PORT, SERVICE, out=True)
    assert entry is not None
    peer.change(TCP, PORT, SERVICE, replace(entry, lifetime=entry.lifetime - SYN_TIMEOUT - 1), out=True)
    assert into(peer, SYN | ACK) == DROP
    assert peer.datapath.drops() == DENIED


@pytest.mark.parametrize(
    "closing", [(out,), (into,), (out, into), ()], ids=["closed by us", "by them", "by both", "given up"]
)
def test_a_syn_opens_a_connection_again(peer: Peer, closing: tuple[object, ...]) -> None:
    """With the same ports: it is held against the policy, and everything begins anew."""
    out(peer, SYN)
    out(peer, ACK)
    for side in closing:
        (out if side is out else into)(peer, FIN | ACK)
    assert out(peer, SYN) == PASS
    entry = peer.entry(TCP, PORT, SERVICE, out=True)
    assert entry is not None
    assert (set(entry.names), entry.tx_packets, entry.rx_packets) == (set(), 1, 0)
    out(peer, FIN | ACK)
    peer.datapath.policy.delete(policymap.policy_key_any(egress=True))
    assert out(peer, SYN) == DROP
    assert peer.datapath.drops() == {(133, EGRESS): 1}


def test_a_syn_that_comes_in_on_an_open_connection_changes_nothing(peer: Peer) -> None:
    """It may be forged, and the policy is asked about every packet."""
    allow(peer.datapath, egress=False)
    for flags in (SYN, ACK):
        assert into(peer, flags) == PASS
    assert into(peer, SYN) == PASS
    entry = peer.entry(TCP, SERVICE, PORT, out=False)
    assert entry is not None
    assert (set(entry.names), entry.rx_packets) == ({"seen_non_syn"}, 3)
    assert lasts(entry) > SYN_TIMEOUT
    peer.datapath.policy.delete(policymap.policy_key_any(egress=False))
    assert into(peer, SYN) == DROP


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "given up"])
def test_an_old_connection_does_not_let_the_peer_open_one(peer: Peer, closed: bool) -> None:
    for way, flags in ((out, SYN), (out, ACK), *(((out, FIN | ACK), (into, FIN | ACK)) if closed else ())):
        way(peer, flags)
    assert into(peer, SYN) == DROP
    allow(peer.datapath, egress=False)
    assert into(peer, SYN) == PASS
    assert peer.entry(TCP, SERVICE, PORT, out=False) is not None


def test_policy_meets_what_goes_out_once_and_what_comes_in_always(peer: Peer) -> None:
    allow(peer.datapath, egress=False)
    for _ in range(3):
        peer.out(UDP, udp(sport=PORT, dport=SERVICE))
        peer.into(UDP, udp(sport=SERVICE, dport=PORT))  # answers
        peer.into(UDP, udp(sport=9, dport=9))
    counted = [
        policymap.PolicyEntry.unpack(value).packets
        for egress in (True, False)
        if (value := peer.datapath.policy.lookup(policymap.policy_key_any(egress=egress))) is not None
    ]
    assert counted == [1, 3]


def test_a_connection_into_the_pod_and_its_answer(peer: Peer) -> None:
    peer.datapath.policy.delete(policymap.policy_key_any(egress=True))
    allow(peer.datapath, egress=False)
    assert peer.into(UDP, udp(sport=5, dport=6)).retval == PASS
    assert peer.out(UDP, udp(sport=6, dport=5)).retval == PASS
    assert peer.out(UDP, udp(sport=6, dport=7)).retval == DROP
    entry = peer.entry(UDP, 5, 6, out=False)
    assert entry is not None
    assert (entry.rx_packets, entry.tx_packets, entry.src_sec_id) == (1, 1, WORLD_ID)


# --- errors about a connection ---


ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_errors_about_a_connection_pass(peer: Peer, protocol: str) -> None:
    number, question, _ = PAIRS[protocol]
    quoted = peer.packet(number, question, out=True)
    quoted = quoted[: len(quoted) - len(question) + 8]  # as little as RFC 792 asks for
    for kind in ERRORS[peer.version]:
        assert peer.into(peer.icmp, icmp(kind, quoted=quoted)).retval == DROP
    peer.out(number, question)
    for kind in ERRORS[peer.version]:
        assert peer.into(peer.icmp, icmp(kind, quoted=quoted)).retval == PASS
    assert peer.datapath.drops() == {(133, INGRESS): len(ERRORS[peer.version])}


def test_errors_about_something_else_do_not_pass(peer: Peer) -> None:
    peer.out(UDP, udp(sport=PORT, dport=SERVICE))
    kind = ERRORS[peer.version][0]
    quoted = {
        "other port": peer.packet(UDP, udp(sport=PORT, dport=81), out=True),
        "not from the pod": peer.packet(UDP, udp(sport=PORT, dport=SERVICE), out=False),
        "cut off": peer.packet(UDP, udp(sport=PORT, dport=SERVICE), out=True)[:18],
        "nothing": b"",
    }
    for what, packet in quoted.items():
        assert peer.into(peer.icmp, icmp(kind, quoted=packet)).retval == DROP, what
    assert peer.datapath.drops() == {(133, INGRESS): len(quoted)}


@pytest.mark.parametrize(("count", "verdict"), [(1, PASS), (3, PASS), (4, DROP)], ids=["one", "most", "too many"])
def test_errors_about_packets_with_extension_headers(count: int, verdict: int) -> None:
    question = udp(sport=PORT, dport=SERVICE)
    payload, following = question[:8], UDP
    for _ in range(count):
        payload, following = frames.extension(following, payload), frames.DESTINATION
    with loaded(ON, allow=False) as datapath:
        allow(datapath, egress=True)
        peer = Peer(datapath, 6)
        quoted = peer.packet(following, payload, out=True)
        assert peer.into(frames.ICMPV6, icmp(1, quoted=quoted)).retval == DROP
        peer.out(UDP, question)
        assert peer.into(frames.ICMPV6, icmp(1, quoted=quoted)).retval == verdict


def test_an_error_about_the_connection_of_another_pod_does_not_pass(peer: Peer) -> None:
    """All pods share the tables; only who sent a packet is told what became of it."""
    peer.out(UDP, udp(sport=PORT, dport=SERVICE))
    entry = peer.entry(UDP, PORT, SERVICE, out=True)
    assert entry is not None
    own, other = (POD4, PEER4) if peer.version == 4 else (POD6, PEER6)
    key = peer.key(UDP, PORT, SERVICE, out=True).replace(own.packed, other.packed)
    peer.table(UDP).update(key, entry.pack())
    quoted = peer.packet(UDP, udp(sport=PORT, dport=SERVICE), out=True).replace(own.packed, other.packed)
    assert peer.into(peer.icmp, icmp(ERRORS[peer.version][0], quoted=quoted)).retval == DROP
    assert peer.datapath.drops() == DENIED


def test_the_pod_may_complain_about_what_came_in(peer: Peer) -> None:
    peer.datapath.policy.delete(policymap.policy_key_any(egress=True))
    allow(peer.datapath, egress=False)
    came = peer.packet(UDP, udp(sport=5, dport=6), out=False)
    assert peer.out(peer.icmp, icmp(ERRORS[peer.version][0], quoted=came)).retval == DROP
    peer.send_in(came)
    assert peer.out(peer.icmp, icmp(ERRORS[peer.version][0], quoted=came)).retval == PASS


def test_an_error_that_a_rule_allows_begins_no_connection(peer: Peer) -> None:
    assert peer.out(peer.icmp, icmp(ERRORS[peer.version][0])).retval == PASS
    assert peer.entry(peer.icmp, 0, 0, out=True) is None


# --- what cannot be tracked ---


@pytest.mark.parametrize(
    ("protocol", "payload", "reason"),
    [(TCP, bytes(13), 135), (TCP, bytes(3), 135), (UDP, bytes(3), 135), (47, bytes(20), 137), (50, bytes(20), 137)],
    ids=["tcp without flags", "tcp without ports", "udp", "gre", "esp"],
)
def test_headers_that_are_not_tracked(peer: Peer, protocol: int, payload: bytes, reason: int) -> None:
    assert peer.out(protocol, payload).retval == DROP
    assert peer.into(protocol, payload).retval == DROP
    assert peer.datapath.drops() == {(reason, EGRESS): 1, (reason, INGRESS): 1}


def test_icmp_of_the_other_family_is_unknown(peer: Peer) -> None:
    other = frames.ICMPV6 if peer.version == 4 else ICMP
    assert peer.out(other, icmp(8)).retval == DROP
    assert peer.datapath.drops() == {(137, EGRESS): 1}


def test_icmp_cut_off(peer: Peer) -> None:
    assert peer.into(peer.icmp, bytes(7)).retval == DROP
    assert peer.datapath.drops() == {(135, INGRESS): 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_table_that_is_full_refuses_new_connections(version: int) -> None:
    """Only as a hash; the LRU that it is otherwise makes room."""
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=(("CT_MAP_TYPE", "BPF_MAP_TYPE_HASH"),))) as datapath:
        peer = Peer(datapath, version)
        verdicts = [peer.out(UDP, udp(sport=port, dport=53)).retval for port in range(1000, 1300)]
        assert verdicts == [PASS] * 256 + [DROP] * 44
        assert datapath.drops() == {(155, EGRESS): 44}
        assert peer.out(UDP, udp(sport=1000, dport=53)).retval == PASS, "a known connection goes on"


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_lru_makes_room(version: int) -> None:
    with loaded(ON) as datapath:
        peer = Peer(datapath, version)
        assert {peer.out(UDP, udp(sport=port, dport=53)).retval for port in range(1000, 1600)} == {PASS}


@pytest.mark.parametrize("slot", [25, 26, 29, 32, 11, 12, 13, 14])
def test_a_step_without_the_one_before_it(slot: int) -> None:
    """Nothing lies in the tail call buffer."""
    with loaded(ON) as datapath:
        name = next(p.name for p in datapath.collection.spec.programs.values() if p.slot == (2, slot))
        direction = EGRESS if slot > 20 else INGRESS
        frame = frames.eth(POD.mac, POD.node_mac, 0x0800, frames.ipv4(WORLD4, POD4, udp()))
        assert datapath.run(name, frame).retval == DROP
        assert datapath.drops() == {(184, direction): 1}
