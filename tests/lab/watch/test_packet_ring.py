"""Packets around the times of findings, as files that the usual tools open."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.system.netns import enter
from lab.system.tools import run
from lab.watch import packet_ring
from lab.watch.packet_ring import SNAPLEN, WINDOW_NS, PacketRing
from lab.watch.pcapng import encode
from tests.lab.pcapng import Read, read
from tests.lab.wires import Pair, veth_pair

pytestmark = pytest.mark.privileged

PORT = 7997


@pytest.fixture
def pair() -> Iterator[Pair]:
    with veth_pair() as pair:
        yield pair


@pytest.fixture
def ring(pair: Pair) -> Iterator[PacketRing]:
    with PacketRing({"a": Path(pair.a), "b": Path(pair.b)}, size=4 << 20) as ring:
        yield ring


def send(pair: Pair, payload: bytes) -> int:
    """Send a datagram from a to b; return a time just before it."""
    with enter(Path(pair.a)):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        before = time.monotonic_ns()
        sock.sendto(payload, ("10.9.0.2", PORT))
    return before


def write(ring: PacketRing, path: Path, around: list[int]) -> int:
    """Write the packets around these times, if there are some; return how many there are."""
    packets = ring.packets(around)
    if packets:
        path.write_bytes(encode(packets))
    return len(packets)


def quiet() -> None:
    """Let more time pass than a finding's packets may lie apart from it."""
    time.sleep(3 * WINDOW_NS / 1e9)


def payloads(found: Read) -> list[tuple[str, bool, bytes]]:
    """Return interface, direction and payload of the datagrams."""
    return [(p.interface, p.outgoing, p.data[42:]) for p in found if p.data[12:14] == b"\x08\x00" and p.data[23] == 17]


def test_only_packets_around_the_time_of_a_finding_are_written(pair: Pair, ring: PacketRing, tmp_path: Path) -> None:
    send(pair, b"early")
    quiet()
    at = send(pair, b"wanted")
    quiet()
    send(pair, b"late")
    path = tmp_path / "found.pcapng"
    assert write(ring, path, [at]) == len(read(path))
    found = payloads(read(path))
    assert sorted(set(found)) == [("a:eth0", True, b"wanted"), ("b:eth0", False, b"wanted")]
    assert [p.comment for p in read(path) if p.comment] == ["reloadlab: the time of a finding"]


def test_packets_are_cut_off_and_keep_their_length(pair: Pair, ring: PacketRing, tmp_path: Path) -> None:
    at = send(pair, bytes(1000))
    path = tmp_path / "found.pcapng"
    write(ring, path, [at])
    (packet, *_) = [p for p in read(path) if p.length == 1042]
    assert len(packet.data) == SNAPLEN
    assert abs(packet.time_ns - time.time_ns()) < 60e9


def test_the_oldest_packets_make_room(pair: Pair, tmp_path: Path) -> None:
    with PacketRing({"a": Path(pair.a)}, size=1 << 20) as ring:
        first = send(pair, b"first")
        quiet()
        deadline = time.monotonic() + 30
        path = tmp_path / "found.pcapng"
        while write(ring, path, [first]):
            assert time.monotonic() < deadline
            for _ in range(2000):
                send(pair, bytes(200))
        # The flood has filled the ring, which gets room again a moment later.
        while not (write(ring, path, [send(pair, b"last")]) and ("a:eth0", True, b"last") in payloads(read(path))):
            assert time.monotonic() < deadline


def test_without_a_finding_there_are_no_packets(ring: PacketRing) -> None:
    assert ring.packets([]) == []
    assert ring.packets([time.monotonic_ns() - 3600 * 10**9]) == []


def test_packets_that_come_too_fast_are_counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_ring, "_RETIRE_MS", 60_000)
    with PacketRing({"a": Path(pair.a)}, size=1 << 19) as ring:
        send(pair, b"first")
        assert ring.gaps == []
        for _ in range(3000):
            send(pair, bytes(200))
        (gap,) = ring.gaps
        (again,) = ring.gaps
    match = re.fullmatch(r"([\d,]+) packets not captured: too many came at once", gap)
    assert match is not None
    assert 0 < int(match[1].replace(",", "")) <= 3000 + 10
    assert again == gap


def test_a_capture_that_has_ended_early_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def broken(_: object) -> None:
        ended.set()
        raise ValueError("injected")

    with PacketRing({"a": Path(pair.a)}, size=1 << 20) as ring:
        monkeypatch.setattr(packet_ring._Ring, "make_room", broken)
        assert ended.wait(10)
        while not ring.gaps:
            time.sleep(0.01)
        assert ring.gaps == ["packets were not captured to the end: ValueError('injected')"]


@pytest.mark.parametrize("tool", ["tcpdump", "tshark", "capinfos"])
def test_the_usual_tools_open_the_file(pair: Pair, ring: PacketRing, tmp_path: Path, tool: str) -> None:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    path = tmp_path / "found.pcapng"
    write(ring, path, [send(pair, b"wanted")])
    argv = {"tcpdump": ["-n", "-r", str(path)], "tshark": ["-n", "-r", str(path)], "capinfos": ["-I", str(path)]}
    shown = run([found, *argv[tool]], timeout=60)
    assert "a:eth0" in shown if tool == "capinfos" else "10.9.0.2" in shown
