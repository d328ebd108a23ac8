"""Traffic on real wires: what is lost, doubled, swapped, reset or stalled on purpose is in the account, exactly."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.kernel.netns import enter
from lab.system.companion import ChildError
from lab.traffic.engine import AUTOGROUP, NICENESS
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.payload import HEADER
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import Traffic
from tests.lab.wires import TCP, UDP, Pair, Wire, address, ip, namespace, pass_all, payload, reset_of, veth_pair, wire

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with veth_pair() as made:
        yield made


@pytest.fixture
def tapped() -> Iterator[Wire]:
    with wire() as made:
        yield made


def flows(pair: Pair, protocol: str = "udp") -> list[Flow]:
    v4 = Flow("four", pair.a, "10.9.0.1", pair.b, "10.9.0.2", "tcp" if protocol == "tcp" else "udp")
    return [v4, replace(v4, name="six", source_ip="fd09::1", target_ip="fd09::2")]


def told(report: TrafficReport) -> list[str]:
    return [str(finding) for finding in report.findings()]


def number_of(packet: bytes) -> int:
    """The number of a UDP probe packet; -1 if it is none."""
    data = payload(packet, UDP)
    return HEADER.unpack_from(data)[2] if len(data) >= HEADER.size else -1


# On the wire


@pytest.mark.privileged
def test_quiet_link_loses_nothing(pair: Pair) -> None:
    wanted = [*flows(pair), *(replace(flow, name=f"{flow.name}-tcp") for flow in flows(pair, "tcp"))]
    with Traffic(wanted, rate=2000, size=300) as traffic:
        for burst in traffic.burst_all(50):
            assert (burst.sent, burst.answered, burst.complete) == (50, 50, True)
        running = traffic.snapshot()
        deadline = time.monotonic() + 10
        while traffic.snapshot().sent < running.sent + 100:
            assert time.monotonic() < deadline, "nothing is sent between bursts"
            time.sleep(0.02)
        report = traffic.stop()
        assert traffic.stop() is report
    assert report.findings() == []
    assert running.sent >= 200
    assert report.sent == report.received
    assert report.lost == 0
    for flow in report.flows:
        assert flow.delivered == flow.sent
        assert flow.delays.count >= flow.sent
        if flow.connections is not None:
            assert flow.connections.bytes_sent == flow.connections.bytes_received == flow.sent * 300
    assert report.started_ns < report.stopped_ns <= time.monotonic_ns()


@pytest.mark.privileged
def test_link_down_loses_exactly_what_was_sent(pair: Pair) -> None:
    with Traffic(flows(pair)[:1], rate=0) as traffic:
        assert traffic.burst("four", 10).complete
        ip(pair.b, "link", "set", "eth0", "down")
        start = time.monotonic_ns()
        assert traffic.burst("four", 20, timeout=0.1).answered == 0
        end = time.monotonic_ns()
        ip(pair.b, "link", "set", "eth0", "up")
        assert traffic.burst("four", 10, timeout=5).complete
        report = traffic.stop()
    lost = report.flow("four").lost
    assert [(packet.number, packet.direction) for packet in lost] == [(n, "request") for n in range(10, 30)]
    assert report.lost_between(start, end) == [("four", packet) for packet in lost]
    assert (report.flow("four").sent, report.flow("four").received, report.flow("four").delivered) == (40, 20, 20)


@pytest.mark.privileged
def test_packets_that_the_kernel_refuses_are_lost_with_the_reason(pair: Pair) -> None:
    with Traffic(flows(pair)[:1], rate=0) as traffic:
        ip(pair.a, "link", "set", "eth0", "down")
        assert traffic.burst("four", 3, timeout=0.1).answered == 0
        report = traffic.stop(drain=0)
    assert [(packet.number, packet.error) for packet in report.flow("four").lost] == [
        (n, "ENETUNREACH") for n in range(3)
    ]


@pytest.mark.privileged
def test_lost_request_and_lost_reply_are_told_apart(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [] if number_of(packet) == (4 if to_b else 7) else [packet]

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("four", 10, timeout=0.2).answered == 8
        report = traffic.stop(drain=0.1).flow("four")
    assert [(packet.number, packet.direction) for packet in report.lost] == [(4, "request"), (7, "reply")]
    assert (report.sent, report.delivered, report.received, report.events) == (10, 9, 8, ())


@pytest.mark.privileged
def test_duplicates_in_both_directions(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [packet] * (3 if number_of(packet) == (2 if to_b else 5) else 1)

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("four", 10).complete
        assert traffic.burst("four", 10).complete
        report = traffic.stop().flow("four")
    assert [str(finding) for finding in report.findings()] == ["four: 4 duplicates"]
    assert (report.sent, report.received, report.lost) == (20, 20, ())


@pytest.mark.privileged
def test_packets_out_of_order(tapped: Wire) -> None:
    held: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        # Numbers 3 and 4 arrive after 5.
        if to_b and number_of(packet) in (3, 4):
            held.append(packet)
            return []
        if to_b and number_of(packet) == 5:
            return [packet, *held]
        return [packet]

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("four", 10).complete
        report = traffic.stop().flow("four")
    # Two requests late, and the replies to them as well: they are answered in the order of their arrival.
    assert [str(finding) for finding in report.findings()] == ["four: 4 reordered"]


@pytest.mark.privileged
def test_a_changed_path_shows_as_detour(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if packet[0] >> 4 == 6 and to_b:
            # One router more: the hop limit is not covered by a checksum.
            return [packet[:7] + bytes([packet[7] - 1]) + packet[8:]]
        return [packet]

    with Traffic(flows(tapped.pair), rate=0) as traffic:
        assert traffic.burst("six", 5).complete
        tapped.judge = judge
        assert traffic.burst("six", 5).complete
        assert traffic.burst("four", 5).complete
        report = traffic.stop()
    assert told(report) == ["six: 5 took another path"]


@pytest.mark.privileged
def test_icmp_refusals_cost_no_packet(tapped: Wire) -> None:
    refused: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        # Another port's packet: b refuses it, and the refusal quotes the original port again.
        if to_b and number_of(packet) == 2 and not refused:
            refused.append(packet)
            return [packet[:22] + (9).to_bytes(2, "big") + packet[24:26] + bytes(2) + packet[28:]]
        if not to_b and packet[9] == 1:
            quoted = bytearray(packet)
            quoted[50:52] = (7007).to_bytes(2, "big")
            # 9 has become 7007 in a quoted header: the ICMP checksum follows (RFC 1624).
            old = int.from_bytes(packet[22:24], "big")
            total = (~old & 0xFFFF) + (~9 & 0xFFFF) + 7007
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            quoted[22:24] = (~total & 0xFFFF).to_bytes(2, "big")
            return [bytes(quoted)]
        return [packet]

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("four", 5, timeout=0.3).answered == 4
        assert traffic.burst("four", 5).complete
        report = traffic.stop(drain=0.1).flow("four")
    assert report.count("icmp-error") == 1
    assert [packet.number for packet in report.lost] == [2]


@pytest.mark.privileged
def test_a_flow_that_is_known_to_be_silent_is_not_waited_for(tapped: Wire) -> None:
    """But for the others, and it has an answer again if it works again."""

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [] if packet[0] >> 4 == 4 else [packet]

    with Traffic(flows(tapped.pair), rate=0) as traffic:
        tapped.judge = judge
        four, six = traffic.burst_all(1, timeout=0.1)
        assert (four.answered, six.answered) == (0, 1)
        # It ends in time: nobody waits for ten minutes.
        four, six = traffic.burst_all(1, timeout=600, silent=["four"])
        assert (four.answered, six.answered) == (0, 1)
        tapped.judge = pass_all
        assert all(burst.complete for burst in traffic.burst_all(1, silent=["four"]))


@pytest.mark.privileged
def test_at_the_end_a_packet_is_waited_for_until_it_would_be_late(tapped: Wire) -> None:
    """One that has taken longer than that is a finding, lost or late."""
    held = threading.Event()

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if held.is_set() and to_b:
            held.clear()
            time.sleep(1.5)
        return [packet]

    with Traffic(flows(tapped.pair)[:1], rate=0, late_after=30) as traffic:
        tapped.judge = judge
        held.set()
        assert traffic.burst("four", 1, timeout=0.01).answered == 0
        report = traffic.stop()
    assert (report.lost, told(report)) == (0, [])


@pytest.mark.privileged
def test_tcp_reset_is_one_broken_connection(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [reset_of(packet)] if to_b and payload(packet, TCP) else [packet]

    with Traffic(flows(tapped.pair, "tcp"), rate=0) as traffic:
        assert traffic.burst("four", 5).complete
        before = time.monotonic_ns()
        tapped.judge = judge
        burst = traffic.burst("four", 5, timeout=0.2)
        assert (burst.sent, burst.answered) == (5, 0)
        assert traffic.burst("six", 5).complete
        report = traffic.stop()
    lost, reset = report.findings()
    assert str(lost) == "four: 5 of 10 packets lost (ECONNRESET), the first is exchange 5"
    assert str(reset) == "four: 1 connections broken: ECONNRESET at the target"
    assert before < min(lost.at) < max(reset.at) < report.stopped_ns


@pytest.mark.privileged
def test_tcp_stall_is_seen_while_it_lasts_and_after(tapped: Wire) -> None:
    def deaf(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return []

    with Traffic(flows(tapped.pair, "tcp")[:1], rate=0, stall_after=0.5) as traffic:
        assert traffic.burst("four", 5).complete
        tapped.judge = deaf
        assert traffic.burst("four", 5, timeout=0.8).answered == 0
        (lasting,) = traffic.snapshot().flow("four").events
        assert lasting.kind == "stall"
        tapped.judge = lambda packet, to_b: [packet]
        assert traffic.burst("four", 5, timeout=10).complete
        report = traffic.stop().flow("four")
    stall = next(event for event in report.events if event.kind == "stall")
    assert stall.at_ns == lasting.at_ns
    assert report.delays.worst_ns > 500_000_000
    assert {finding.kind for finding in report.findings()} == {"lost", "late", "stall", "retransmit"}
    assert report.connections is not None
    # The wire is a process like others: it may be late with an answer.
    assert report.connections.retransmits > report.connections.spurious
    assert report.count("lost") >= 1
    assert (report.sent, report.received, report.in_flight) == (15, 15, 0)


@pytest.mark.privileged
def test_tcp_echo_that_differs(tapped: Wire) -> None:
    # The last byte of the padding goes bad on the way back; the checksum is made to fit by the byte two before it.
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b or len(payload(packet, TCP)) != 64:
            return [packet]
        return [packet[:-4] + packet[-2:] + packet[-4:-2]]

    with Traffic(flows(tapped.pair, "tcp")[:1], rate=0) as traffic:
        tapped.judge = judge
        traffic.burst("four", 1)
        report = traffic.stop().flow("four")
    assert [str(finding) for finding in report.findings()] == ["four: 1 differ from what was sent"]


# Starting and ending


@pytest.mark.privileged
def test_a_flow_that_nobody_answers_is_named() -> None:
    with namespace() as a, namespace() as b:
        ip(a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
        address(a, "eth0", "10.9.0.1/24")
        address(b, "eth0", "10.9.0.2/24")
        address(a, "lo", "10.8.0.1/32")
        silent = Flow("silent", a, "10.8.0.1", b, "10.9.0.2")
        traffic = Traffic([silent], start_timeout=0.4)
        with pytest.raises(TrafficError, match=r"flow silent: 10\.9\.0\.2 does not answer"):
            traffic.start()
        assert traffic.pid == 0
        with Traffic([silent], rate=0, warm_up=False) as unheard:
            assert unheard.burst("silent", 3, timeout=0.1).answered == 0


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"source_ip": "10.9.0.7"}, "flow four: Cannot assign requested address", id="address"),
        pytest.param({"target_ns": "/nowhere"}, "flow four: network namespace /nowhere does not exist", id="namespace"),
        pytest.param(
            {"target_ns": "/dev/null"}, "flow four: network namespace /dev/null does not exist", id="no namespace"
        ),
    ],
)
def test_ends_that_are_not_there(pair: Pair, change: dict[str, str], words: str) -> None:
    flow = replace(flows(pair)[0], **change)  # type: ignore[arg-type]
    with pytest.raises(TrafficError, match=words):
        Traffic([flow]).start()


@pytest.mark.privileged
def test_unknown_flows_and_too_large_bursts_are_refused(pair: Pair) -> None:
    with Traffic(flows(pair)[:1], rate=0) as traffic:
        with pytest.raises(TrafficError, match="no flow seven: there are four"):
            traffic.burst("seven", 1)
        with pytest.raises(TrafficError, match="a burst has 1 to 4000 packets"):
            traffic.burst("four", 4001)
        assert traffic.burst("four", 1).complete


@pytest.mark.privileged
def test_the_engine_runs_before_other_sessions_as_well(pair: Pair) -> None:
    """Where sessions share the CPUs as equals, the niceness of a process that is alone in one says nothing."""
    with Traffic(flows(pair), rate=100) as traffic:
        assert os.getpriority(os.PRIO_PROCESS, traffic.pid) == NICENESS
        group = Path(f"/proc/{traffic.pid}/autogroup")
        if group.exists():
            assert group.read_text().endswith(f" nice {NICENESS}\n")
        ours = AUTOGROUP.read_text() if group.exists() else ""
    assert f"nice {NICENESS}" not in ours


@pytest.mark.privileged
def test_leaving_ends_the_engine_and_closes_everything(pair: Pair) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Traffic(flows(pair), rate=100) as traffic:
        pid = traffic.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildError, match="not running"):
        traffic.stop()


@pytest.mark.privileged
def test_an_engine_that_dies_is_an_error_with_its_status(pair: Pair) -> None:
    with Traffic(flows(pair), rate=0) as traffic:
        os.kill(traffic.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match=r"lab\.traffic\.engine: died with status -9"):
            traffic.stop()


PARENT = """
import sys, threading
from lab.traffic.traffic import Flow, Traffic
traffic = Traffic([Flow("f", *sys.argv[1:5])], rate=100)
thread = threading.Thread(target=traffic.start)
thread.start()
thread.join()
assert traffic.burst("f", 1).complete
print(traffic.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.privileged
def test_the_engine_dies_with_its_parent_not_with_the_thread_that_started_it(pair: Pair) -> None:
    argv = [sys.executable, "-c", PARENT, pair.a, "10.9.0.1", pair.b, "10.9.0.2"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([engine], [], [], 5)[0], "the engine has outlived its parent by five seconds"
        finally:
            os.close(engine)


@pytest.mark.privileged
def test_a_stop_that_comes_with_the_timer_is_served(pair: Pair) -> None:
    with Traffic(flows(pair)[:1], rate=10) as traffic:
        # Both wait for the engine when it goes on, the request before the timer.
        os.kill(traffic.pid, signal.SIGSTOP)
        resume = threading.Timer(0.15, os.kill, (traffic.pid, signal.SIGCONT))
        resume.start()
        report = traffic.stop()
        resume.join()
    assert report.findings() == []


@pytest.mark.privileged
@pytest.mark.parametrize("requests", [True, False], ids=["requests", "replies"])
def test_what_lies_unread_in_a_socket_is_not_lost(tapped: Wire, requests: bool) -> None:
    """The engine stands still while packets arrive that were sent long ago, and is told to stop before it goes on."""
    held: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b is requests and number_of(packet) >= 0:
            held.append(packet)
            return []
        return [packet]

    def release_all(packet: bytes, to_b: bool) -> Sequence[bytes]:
        released, held[:] = [*held], []
        return released if to_b is requests and released else [packet]

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        assert traffic.burst("four", 20, timeout=0.1).answered == 0
        os.kill(traffic.pid, signal.SIGSTOP)
        tapped.judge = release_all
        nudge(tapped, to_b=requests)
        time.sleep(0.5)
        tapped.judge = pass_all
        resume = threading.Timer(0.2, os.kill, (traffic.pid, signal.SIGCONT))
        resume.start()
        report = traffic.stop(drain=0.2)
        resume.join()
    assert report.findings() == []
    assert (report.flow("four").sent, report.flow("four").received) == (20, 20)


def nudge(tapped: Wire, *, to_b: bool) -> None:
    """Send a packet over the wire that is none of the traffic's."""
    source, target = (tapped.pair.a, "10.9.0.2") if to_b else (tapped.pair.b, "10.9.0.1")
    with enter(Path(source)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"go", (target, 9))


@pytest.mark.privileged
def test_answers_that_lie_unread_when_a_burst_is_over_count(tapped: Wire) -> None:
    held: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b or number_of(packet) < 0:
            return [packet]
        held.append(packet)
        if len(held) < 20:
            return []
        os.kill(traffic.pid, signal.SIGSTOP)
        return held

    with Traffic(flows(tapped.pair)[:1], rate=0) as traffic:
        tapped.judge = judge
        resume = threading.Timer(1.0, os.kill, (traffic.pid, signal.SIGCONT))
        resume.start()
        assert traffic.burst("four", 20, timeout=0.5).answered == 20
        resume.join()


@pytest.mark.privileged
def test_traffic_starts_once(pair: Pair) -> None:
    """A second start would leave an engine that nobody ends and whose packets nobody counts."""
    traffic = Traffic(flows(pair)[:1], rate=0)
    traffic.start()
    pid = traffic.pid
    with pytest.raises(TrafficError, match="traffic was started already"):
        traffic.start()
    with pytest.raises(TrafficError, match="traffic was started already"), traffic:
        pass
    assert traffic.pid == pid
    assert traffic.burst("four", 1).complete
    traffic.stop()
    with pytest.raises(TrafficError, match="traffic was started already"):
        traffic.start()
    assert traffic.pid == 0


def test_flows_that_make_no_sense_start_nothing() -> None:
    flow = Flow("a", "/n1", "10.0.0.1", "/n2", "10.0.0.2")
    traffic = Traffic([flow, flow])
    with pytest.raises(TrafficError, match="flow a: the name is taken twice"):
        traffic.start()
    assert traffic.pid == 0


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_that_sends_nothing_is_refused(rate: float) -> None:
    """Not a rate of 0, which is asked for: bursts only."""
    traffic = Traffic([], rate=rate)
    with pytest.raises(TrafficError, match="the rate is packets a second, 0 for bursts only, not "):
        traffic.start()
    assert traffic.pid == 0
