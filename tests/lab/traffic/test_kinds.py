"""Each kind of flow on a real wire: silent while all is well, and a finding for each fault of the wire."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lab.system.tools import run
from lab.traffic.flows import Flow
from lab.traffic.neighbours import Neighbours
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import Traffic
from tests.lab.wires import Pair, Wire, ip, pass_all, rechecked, veth_pair, wire
from tests.netns import nsenter

ICMP, TCP, UDP = 1, 6, 17


@pytest.fixture
def pair() -> Iterator[Pair]:
    with veth_pair() as made:
        refuse_without_limit(made)
        yield made


@pytest.fixture
def tapped() -> Iterator[Wire]:
    with wire() as made:
        refuse_without_limit(made.pair)
        yield made


def refuse_without_limit(pair: Pair) -> None:
    for netns in (pair.a, pair.b):
        run(nsenter(netns, "sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratemask=127"))


def flow(pair: Pair, version: int = 4, **changes: object) -> Flow:
    ends = ("10.9.0.1", "10.9.0.2") if version == 4 else ("fd09::1", "fd09::2")
    return replace(Flow("flow", pair.a, ends[0], pair.b, ends[1]), **changes)  # type: ignore[arg-type]


def every_kind(pair: Pair) -> list[Flow]:
    """UDP, TCP and ICMP, old and fresh, both versions, with sizes from the header alone over the MTU to GSO."""
    made = []
    for version, headers in ((4, 28), (6, 48)):
        datagrams = (64, 20, 1500 - headers)
        records = (64, 1500 - headers - 24 + 1, 64, 65000)
        for fresh in (False, True):
            name = f"{'new' if fresh else 'old'} v{version}"
            made += [
                flow(pair, version, name=f"udp {name}", fresh=fresh, sizes=datagrams),
                flow(pair, version, name=f"tcp {name}", fresh=fresh, sizes=records, protocol="tcp", port=7008),
                flow(pair, version, name=f"icmp {name}", fresh=fresh, sizes=datagrams, protocol="icmp"),
                flow(pair, version, name=f"refused {name}", fresh=fresh, port=7009, refused=True),
            ]
    return made


def kinds(report: TrafficReport) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in report.findings():
        found.setdefault(finding.flow, set()).add(finding.kind)
    return found


def wait_for_packets(traffic: Traffic, count: int) -> None:
    deadline = time.monotonic() + 30
    while traffic.snapshot().sent < count:
        assert time.monotonic() < deadline, f"{count} packets were not sent within 30 s"
        time.sleep(0.05)


# Without a fault


@pytest.mark.privileged
def test_every_kind_of_flow_is_silent_without_a_fault(pair: Pair) -> None:
    with Traffic(every_kind(pair), rate=2000) as traffic:
        assert all(burst.complete for burst in traffic.burst_all(100, timeout=10))
        wait_for_packets(traffic, 2000)
        report = traffic.stop()
    assert report.findings() == []
    assert report.lost == 0
    for each in report.flows:
        assert each.sent == each.received == each.delays.count > 0, each.name
        assert 0 < each.delays.p50_ns <= each.delays.p999_ns
        assert report.started_ns <= each.delays.worst_sent_ns <= report.stopped_ns


@pytest.mark.privileged
def test_busy_processes_beside_it_raise_no_false_alarm(pair: Pair) -> None:
    count = 2 * len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        with Traffic(every_kind(pair), rate=2000) as traffic:
            wait_for_packets(traffic, 6000)
            report = traffic.stop(drain=5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert report.findings() == []


# New connections


def source_port(packet: bytes) -> int:
    return int.from_bytes(packet[20:22], "big")


def connection_of(packet: bytes) -> int:
    """Return the source port of an IPv4 packet, or the id of an echo request."""
    return int.from_bytes(packet[24:26] if packet[9] == ICMP else packet[20:22], "big")


@pytest.mark.privileged
@pytest.mark.parametrize(("protocol", "number"), [("udp", UDP), ("tcp", TCP), ("icmp", ICMP)])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
def test_a_fresh_flow_begins_a_new_connection_for_each_packet(
    tapped: Wire, protocol: str, number: int, fresh: bool
) -> None:
    seen: set[int] = set()

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == number:
            seen.add(connection_of(packet))
        return [packet]

    with Traffic([flow(tapped.pair, protocol=protocol, fresh=fresh)], rate=0) as traffic:
        seen.clear()
        tapped.judge = judge
        for _ in range(20):
            assert traffic.burst("flow", 1).complete
        assert traffic.stop().findings() == []
    # The kernel chooses ports at random: now and then one twice.
    assert len(seen) in (range(17, 21) if fresh else (1,))


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("protocol", "bursts", "count"),
    [
        pytest.param("udp", 200, 1, id="udp"),
        pytest.param("icmp", 200, 1, id="icmp"),
        pytest.param("icmp", 1, 200, id="icmp at once"),
    ],
)
def test_fresh_packets_share_connections_when_too_many_would_be_new(
    tapped: Wire, protocol: str, bursts: int, count: int
) -> None:
    """An entry of connection tracking lives for a minute: however many packets come, they must not fill its map."""
    number, seen = {"udp": UDP, "icmp": ICMP}[protocol], set[int]()

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[0] >> 4 == 4 and packet[9] == number:
            seen.add(connection_of(packet))
        return [packet]

    with Traffic([flow(tapped.pair, protocol=protocol, fresh=True)], rate=0) as traffic:
        tapped.judge = judge
        began = time.monotonic()
        assert all(traffic.burst("flow", count, timeout=10).complete for _ in range(bursts))
        seconds = time.monotonic() - began
        assert traffic.stop().findings() == []
    # Each of four sockets has its first connection for nothing.
    assert 30 <= len(seen) <= 4 + 40 + 10 * seconds + 1


@pytest.mark.privileged
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
def test_lost_echo_requests_are_lost(tapped: Wire, fresh: bool) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [] if packet[9] == ICMP and to_b else [packet]

    with Traffic([flow(tapped.pair, protocol="icmp", fresh=fresh)], rate=0) as traffic:
        assert traffic.burst("flow", 3).complete
        tapped.judge = judge
        assert traffic.burst("flow", 3, timeout=0.1).answered == 0
        tapped.judge = pass_all
        assert traffic.burst("flow", 3).complete
        (found,) = traffic.stop(drain=0.1).findings()
    assert str(found) == "flow: 3 of 9 packets lost, the first is exchange 3"


@pytest.mark.privileged
def test_a_connection_that_cannot_be_opened_is_lost(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        # SYN alone: the connections before may still be closing.
        return [] if packet[9] == TCP and to_b and packet[33] & 2 else [packet]

    with Traffic([flow(tapped.pair, protocol="tcp", fresh=True)], rate=0) as traffic:
        assert traffic.burst("flow", 3).complete
        before = time.monotonic_ns()
        tapped.judge = judge
        assert traffic.burst("flow", 3, timeout=0.1).answered == 0
        (found,) = traffic.stop(drain=0.1).findings()
    assert str(found) == "flow: 3 of 6 packets lost, the first is exchange 3"
    assert all(before < at < time.monotonic_ns() for at in found.at)


@pytest.mark.privileged
def test_a_connection_that_nobody_accepts_is_lost_with_the_errno(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == TCP and packet[33] & 2:
            return [to_port(packet, 9)]
        return [from_port(packet, 7007)] if not to_b and packet[9] == TCP else [packet]

    with Traffic([flow(tapped.pair, protocol="tcp", fresh=True)], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("flow", 1, timeout=0.1).answered == 0
        tapped.judge = pass_all
        assert traffic.burst("flow", 1).complete
        (found,) = traffic.stop(drain=0.1).findings()
    assert str(found) == "flow: 1 of 2 packets lost (ECONNREFUSED), the first is exchange 0"


def to_port(packet: bytes, port: int) -> bytes:
    return rechecked(packet[:22] + port.to_bytes(2, "big") + packet[24:])


def from_port(packet: bytes, port: int) -> bytes:
    return rechecked(packet[:20] + port.to_bytes(2, "big") + packet[22:])


@pytest.mark.privileged
def test_a_lost_segment_of_a_new_connection_is_a_finding_though_tcp_mends_it(tapped: Wire) -> None:
    dropped: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == TCP and packet[33] & 8 and not dropped:
            dropped.append(packet)
            return []
        return [packet]

    with Traffic([flow(tapped.pair, protocol="tcp", fresh=True)], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("flow", 1, timeout=10).complete
        report = traffic.stop()
    assert kinds(report)["flow"] >= {"lost", "retransmit"}
    assert report.lost == 1


# Refusals


@pytest.mark.privileged
@pytest.mark.parametrize("version", [4, 6])
def test_a_refusal_that_does_not_come_is_a_loss(tapped: Wire, version: int) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
        return [] if not to_b and protocol in (ICMP, 58) else [packet]

    with Traffic([flow(tapped.pair, version, port=7009, refused=True)], rate=0) as traffic:
        assert traffic.burst("flow", 3).complete
        tapped.judge = judge
        assert traffic.burst("flow", 3, timeout=0.1).answered == 0
        (found,) = traffic.stop(drain=0.1).findings()
    assert str(found) == "flow: 3 of 6 packets lost, the first is request 3"


@pytest.mark.privileged
def test_a_packet_that_is_answered_instead_of_refused_is_a_loss(pair: Pair) -> None:
    with Traffic([flow(pair, name="listener"), flow(pair, name="knocking", refused=True)], rate=0) as traffic:
        assert traffic.burst("knocking", 3, timeout=0.1).answered == 0
        report = traffic.stop(drain=0.1)
    assert kinds(report) == {"knocking": {"lost"}}


# Denied flows


@pytest.mark.privileged
@pytest.mark.parametrize(("protocol", "number"), [("udp", UDP), ("icmp", ICMP)])
def test_what_arrives_though_it_is_denied_is_a_finding_with_its_time(tapped: Wire, protocol: str, number: int) -> None:
    judged: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == number:
            judged.append(packet)
            # The sixth and the seventh pass.
            return [packet] if 6 <= len(judged) <= 7 else []
        return [packet]

    def send(traffic: Traffic, count: int) -> None:
        wanted, deadline = len(judged) + count, time.monotonic() + 10
        assert traffic.burst("flow", count).sent == count
        while len(judged) < wanted:
            assert time.monotonic() < deadline, "the packets have not left"
            time.sleep(0.01)

    tapped.judge = judge
    with Traffic([flow(tapped.pair, protocol=protocol, denied=True, fresh=True)], rate=0) as traffic:
        send(traffic, 5)
        assert traffic.snapshot().findings() == []
        before = time.monotonic_ns()
        send(traffic, 2)
        after = time.monotonic_ns()
        send(traffic, 5)
        report = traffic.stop(drain=0.1)
    (found,) = report.findings()
    assert (found.kind, str(found)) == ("leaked", "flow: 2 of 12 packets passed although they are denied")
    assert all(before < at < after for at in found.at)
    assert report.denied == {"flow": 10}
    assert report.lost == 0


@pytest.mark.privileged
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_new_connections_without_a_way_are_lost_with_the_errno(pair: Pair, protocol: str) -> None:
    """A route that is gone for a moment ends no traffic: what comes behind it is answered."""
    fresh = flow(pair, protocol=protocol, fresh=True)
    with Traffic([fresh], rate=0) as traffic:
        assert traffic.burst(fresh.name, 8).complete
        ip(pair.a, "route", "add", "prohibit", f"{fresh.target_ip}/32", "table", "77")
        ip(pair.a, "rule", "add", "pref", "0", "to", fresh.target_ip, "lookup", "77")
        assert traffic.burst(fresh.name, 8, timeout=0.1).answered == 0
        ip(pair.a, "rule", "del", "pref", "0", "to", fresh.target_ip, "lookup", "77")
        assert traffic.burst(fresh.name, 8).complete
        report = traffic.stop(drain=0).flow(fresh.name)
    assert [(packet.number, packet.error) for packet in report.lost] == [(n, "EACCES") for n in range(8, 16)]


def test_new_connections_of_an_address_that_is_gone_are_lost_with_the_errno(pair: Pair) -> None:
    """More than there are sockets of connections before."""
    fresh = flow(pair, protocol="tcp", fresh=True)
    with Traffic([fresh], rate=0) as traffic:
        ip(pair.a, "addr", "del", f"{fresh.source_ip}/24", "dev", "eth0")
        assert traffic.burst(fresh.name, 12, timeout=0.1).answered == 0
        ip(pair.a, "addr", "add", f"{fresh.source_ip}/24", "dev", "eth0")
        assert traffic.burst(fresh.name, 8).complete
        report = traffic.stop(drain=0).flow(fresh.name)
    assert [packet.number for packet in report.lost] == list(range(12))
    assert {packet.error for packet in report.lost[8:]} == {"EADDRNOTAVAIL"}


def test_what_is_denied_and_could_not_even_be_sent_was_dropped_by_no_policy(pair: Pair) -> None:
    with Traffic([flow(pair, denied=True)], rate=0) as traffic:
        ip(pair.a, "link", "set", "eth0", "down")
        assert traffic.burst("flow", 3, timeout=0.1).complete
        report = traffic.stop(drain=0.1)
    assert report.denied == {"flow": 0}
    assert [finding.kind for finding in report.findings()] == ["lost"]


# Content


@pytest.mark.privileged
@pytest.mark.parametrize(("protocol", "number"), [("udp", UDP), ("icmp", ICMP)])
def test_a_packet_with_other_bytes_is_corrupted(tapped: Wire, protocol: str, number: int) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        # Two words changed places: the checksum is the same.
        swapped = packet[:-4] + packet[-2:] + packet[-4:-2]
        return [swapped if to_b and packet[9] == number else packet]

    with Traffic([flow(tapped.pair, protocol=protocol)], rate=0) as traffic:
        assert traffic.burst("flow", 1).complete
        tapped.judge = judge
        before = time.monotonic_ns()
        assert traffic.burst("flow", 1).complete
        (found,) = traffic.stop().findings()
    assert found.kind == "corrupted"
    assert min(found.at) > before


# Time


@pytest.mark.privileged
@pytest.mark.parametrize(("protocol", "number"), [("udp", UDP), ("icmp", ICMP), ("tcp", TCP)])
def test_a_packet_that_is_held_is_late_with_the_time_of_its_sending(tapped: Wire, protocol: str, number: int) -> None:
    held: list[bytes] = []

    def hold(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == number:
            held.append(packet)
            return []
        return [packet]

    def release(packet: bytes, to_b: bool) -> Sequence[bytes]:
        released, held[:] = [*held], []
        return [*released, packet]

    with Traffic([flow(tapped.pair, protocol=protocol), flow(tapped.pair, 6, name="six")], rate=0) as traffic:
        assert traffic.burst("flow", 2).complete
        tapped.judge = hold
        before = time.monotonic_ns()
        assert traffic.burst("flow", 1, timeout=1.0).answered == 0
        after = before + 500_000_000
        tapped.judge = release
        assert traffic.burst("six", 1).complete
        report = traffic.stop(drain=5)
    late = [finding for finding in report.findings() if finding.kind == "late"]
    assert [finding.flow for finding in late] == ["flow"]
    assert all(before < at < after for at in late[0].at)
    assert report.flow("flow").delays.worst_ns > 900_000_000
    assert before < report.flow("flow").delays.worst_sent_ns < after


@pytest.mark.privileged
def test_a_bound_that_is_declared_takes_the_place_of_the_default(tapped: Wire) -> None:
    def slow(packet: bytes, to_b: bool) -> Sequence[bytes]:
        time.sleep(0.02 if packet[9] == UDP else 0)
        return [packet]

    with Traffic([flow(tapped.pair)], rate=0, late_after=0.01, warm_up=False) as traffic:
        tapped.judge = slow
        assert traffic.burst("flow", 3).complete
        (found,) = traffic.stop().findings()
    assert found.kind == "late"


# Sending


@pytest.mark.privileged
def test_flows_in_focus_get_every_other_packet(pair: Pair) -> None:
    names = [f"flow {number}" for number in range(5)]
    with Traffic([flow(pair, name=name) for name in names], rate=1000) as traffic:
        before = traffic.snapshot()
        traffic.focus(names[:1])
        wait_for_packets(traffic, before.sent + 500)
        after = traffic.snapshot()
        sent = [after.flow(name).sent - before.flow(name).sent for name in names]
        traffic.focus([])
        assert traffic.stop().findings() == []
    assert sent[0] > sum(sent[1:])
    assert min(sent[1:]) > 0


# Neighbours


@pytest.mark.privileged
def test_a_neighbour_that_does_not_answer_any_more_is_noticed(pair: Pair) -> None:
    """What an empty ARP slot looks like: packets pass as long as the neighbour is known."""
    with Traffic([flow(pair)], rate=100) as traffic:
        wait_for_packets(traffic, 50)
        known = traffic.snapshot()
        run(nsenter(pair.b, "sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=8"))
        wait_for_packets(traffic, known.sent + 200)
        report = traffic.stop(drain=0.1)
    assert known.findings() == []
    assert kinds(report)["flow"] & {"lost", "late"}


@pytest.mark.privileged
def test_neighbours_that_are_never_forgotten_hide_it(pair: Pair) -> None:
    with Traffic([flow(pair)], rate=100, forget_every=0) as traffic:
        wait_for_packets(traffic, 50)
        run(nsenter(pair.b, "sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=8"))
        wait_for_packets(traffic, 150)
        assert traffic.stop().findings() == []


@pytest.mark.privileged
def test_a_neighbour_that_is_forgotten_is_not_deleted(pair: Pair) -> None:
    """Whoever has just looked up an entry that is deleted has its packet dropped."""
    with Traffic([flow(pair)], rate=0, forget_every=0) as traffic:
        assert traffic.burst("flow", 1).complete
    neighbours = Neighbours()
    neighbours.open([pair.a])
    neighbours.start(0.01)
    try:
        deadline = time.monotonic() + 10
        while not ip(pair.a, "neighbour", "show", "to", "10.9.0.2", "nud", "none"):
            neighbours.check()
            assert time.monotonic() < deadline, ip(pair.a, "neighbour", "show", "nud", "all")
            time.sleep(0.02)
    finally:
        neighbours.close()


INTERFACES_COME_AND_GO = """
for pair in $(seq 600); do echo "link add a$pair group 7 type veth peer name b$pair"; done >"$1"
for round in 1 2 3; do
    ip -batch "$1"
    date +%s%N
    ip link del group 7
    date +%s%N
done
"""
"""With the kernel's lock of all interfaces held for as long as a group of them takes to be deleted."""


@pytest.mark.privileged
def test_interfaces_that_go_elsewhere_do_not_keep_the_traffic_from_running(pair: Pair, tmp_path: Path) -> None:
    with Traffic([flow(pair)], rate=500, forget_every=0.01) as traffic:
        wait_for_packets(traffic, 50)
        script = ("sh", "-c", INTERFACES_COME_AND_GO, "sh", str(tmp_path / "batch"))
        times = [int(time) for time in run(["unshare", "--net", *script]).split()]
        report = traffic.stop()
    held_ns = sum(end - start for start, end in zip(times[::2], times[1::2], strict=True))
    starved_ns = sum(pause.end_ns - pause.start_ns for pause in report.starved)
    assert len(times) == 6
    assert starved_ns < held_ns / 2, f"starved for {starved_ns / 1e6:.0f} ms of {held_ns / 1e6:.0f}"


SLOTS = {4: 7, 6: 9}
