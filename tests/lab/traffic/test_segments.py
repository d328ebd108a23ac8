"""The account of TCP's segments: it tells what was lost from what was only late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lab.traffic.flows import Flow
from lab.traffic.traffic import Traffic
from lab.watch import net_counters
from tests.lab.wires import TCP, Wire, pass_all, payload, rechecked, wire

pytestmark = pytest.mark.privileged


@pytest.fixture
def tapped() -> Iterator[Wire]:
    with wire() as made:
        yield made


def connection(tapped: Wire, *, fresh: bool = False) -> Flow:
    return Flow("flow", tapped.pair.a, "10.9.0.1", tapped.pair.b, "10.9.0.2", "tcp", 7008, fresh=fresh)


def hold_until_sent_again(tapped: Wire, concerned: Callable[[bytes, bool], bool]) -> list[bytes]:
    """Keep the next packet that is concerned until another one is, and let both pass; return those held so far."""
    held: list[bytes] = []

    def hold(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if not concerned(packet, to_b):
            return [packet]
        held.append(packet)
        if len(held) < 2:
            return []
        tapped.judge = pass_all
        return held

    tapped.judge = hold
    return held


def is_syn(packet: bytes) -> bool:
    """Tell whether an IPv4 packet without options is the first of a connection or the answer to it."""
    return packet[9] == TCP and bool(packet[33] & 2)


def test_a_lost_acknowledgement_is_a_lost_segment_though_nothing_is_sent_again(tapped: Wire) -> None:
    dropped: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b and packet[9] == TCP and not payload(packet, TCP) and not dropped:
            dropped.append(packet)
            return []
        return [packet]

    with Traffic([connection(tapped)], rate=0) as traffic:
        tapped.judge = judge
        deadline = time.monotonic() + 10
        while not dropped:
            assert time.monotonic() < deadline, "the source has acknowledged nothing by itself"
            assert traffic.burst("flow", 1).complete
            time.sleep(0.1)
        assert traffic.burst("flow", 1).complete
        (found,) = traffic.stop().findings()
    assert (found.kind, found.text.split(",")[0]) == ("lost", "1 segment lost")


def test_segments_that_are_late_and_sent_again_are_not_lost(tapped: Wire) -> None:
    """What a busy machine looks like: the kernel sends again what has arrived, and the receiver says so (DSACK)."""
    with Traffic([connection(tapped)], rate=0, late_after=5.0) as traffic:
        assert traffic.burst("flow", 3).complete
        # Not an acknowledgement that was still to come.
        hold_until_sent_again(tapped, lambda packet, to_b: to_b and bool(payload(packet, TCP)))
        assert traffic.burst("flow", 1, timeout=10).complete
        assert traffic.burst("flow", 3).complete
        report = traffic.stop()
    assert report.findings() == []
    found = report.flow("flow").connections
    assert found is not None
    assert found.retransmits == found.spurious >= 1


@pytest.mark.parametrize("to_b", [True, False], ids=["SYN", "SYN-ACK"])
def test_a_handshake_that_is_late_and_sent_again_has_lost_nothing(tapped: Wire, to_b: bool) -> None:
    """Both ends send theirs again after a second, which counts differently at each of them."""
    with Traffic([connection(tapped, fresh=True)], rate=0, late_after=5.0) as traffic:
        assert traffic.burst("flow", 3).complete
        before = net_counters.read({"a": Path(tapped.pair.a), "b": Path(tapped.pair.b)})
        held = hold_until_sent_again(tapped, lambda packet, way: way == to_b and is_syn(packet))
        assert traffic.burst("flow", 1, timeout=10).complete
        assert len(held) == 2
        assert traffic.burst("flow", 3).complete
        report = traffic.stop()
        lost = net_counters.moved(before, net_counters.read({"a": Path(tapped.pair.a), "b": Path(tapped.pair.b)}))
    assert report.findings() == []
    found = report.flow("flow").connections
    assert found is not None
    assert found.retransmits == found.spurious >= 1
    assert lost == {}


@pytest.mark.parametrize("to_b", [True, False], ids=["SYN", "SYN-ACK"])
def test_a_handshake_that_is_lost_is_one_segment(tapped: Wire, to_b: bool) -> None:
    def drop(packet: bytes, packet_to_b: bool) -> Sequence[bytes]:
        if packet_to_b == to_b and is_syn(packet):
            tapped.judge = pass_all
            return []
        return [packet]

    with Traffic([connection(tapped, fresh=True)], rate=0, late_after=5.0) as traffic:
        assert traffic.burst("flow", 3).complete
        tapped.judge = drop
        assert traffic.burst("flow", 1, timeout=10).complete
        assert traffic.burst("flow", 3).complete
        report = traffic.stop()
    (lost,) = report.flow("flow").lost
    assert lost.direction == ("request" if to_b else "reply")
    assert {found.kind for found in report.findings()} == {"lost", "retransmit"}


@pytest.mark.parametrize("fresh", [False, True], ids=["old", "fresh"])
def test_a_segment_that_arrives_twice_is_a_duplicate(tapped: Wire, fresh: bool) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [packet] * (2 if to_b and payload(packet, TCP) else 1)

    with Traffic([connection(tapped, fresh=fresh)], rate=0) as traffic:
        assert traffic.burst("flow", 1).complete
        tapped.judge = judge
        before = time.monotonic_ns()
        # Several: a new connection may be over before its second copy arrives.
        assert traffic.burst("flow", 10).complete
        tapped.judge = pass_all
        assert traffic.burst("flow", 1).complete
        report = traffic.stop()
    (found,) = report.findings()
    assert found.kind == "duplicate"
    assert min(found.at) > before
    assert report.lost == 0


def test_a_closed_window_is_told_once(tapped: Wire) -> None:
    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b or packet[9] != TCP:
            return [packet]
        # The receiver's window, bytes 14 and 15 of the header.
        return [rechecked(packet[:34] + bytes(2) + packet[36:])]

    with Traffic([connection(tapped)], rate=0) as traffic:
        assert traffic.burst("flow", 1).complete
        tapped.judge = judge
        assert traffic.burst("flow", 1).complete
        before = time.monotonic_ns()
        assert traffic.burst("flow", 1, timeout=0.1).answered == 0
        traffic.burst("flow", 1, timeout=0.1)
        tapped.judge = pass_all
        assert traffic.burst("flow", 1, timeout=10).complete
        report = traffic.stop()
    (found,) = [finding for finding in report.findings() if finding.kind == "zero-window"]
    assert len(found.at) == 1
    assert found.at[0] > before
