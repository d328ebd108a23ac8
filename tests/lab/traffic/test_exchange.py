"""One exchange on wires whose packets are seen, dropped or changed by the test."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lab.system.netns import NamespaceNotFound
from lab.system.sockets import Address
from lab.traffic.exchange import ETHERNET, ExchangeError, Probe, Result, exchange
from tests.lab.wires import Wire, wire

pytestmark = pytest.mark.privileged

MTU = 1500
ENDS = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}


@pytest.fixture(scope="module")
def shared() -> Iterator[Wire]:
    with wire() as made:
        yield made


@pytest.fixture
def seen(shared: Wire) -> list[tuple[bytes, bool]]:
    """What was sent by the exchange, and whether by the source; both ends may talk, unless a test says otherwise."""
    packets: list[tuple[bytes, bool]] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if not is_housekeeping(packet):
            packets.append((packet, to_b))
        return [packet]

    shared.judge = judge
    return packets


def is_housekeeping(packet: bytes) -> bool:
    """Router solicitations and multicast reports, of the kernel itself."""
    return packet[0] >> 4 == 6 and packet[24] == 0xFF


def is_fin(packet: bytes) -> bool:
    """Tell whether a TCP segment over IPv4 says that its sender is done."""
    return bool(packet[33] & 1)


def ask(shared: Wire, probe: Probe, version: int = 4, **options: object) -> Result:
    source, target = ENDS[version]
    ends = Address(shared.pair.a, source, 40000), Address(shared.pair.b, target, probe.port)
    return exchange(*ends, probe, **options)  # type: ignore[arg-type]


def lose(shared: Wire, *, requests: bool) -> list[bytes]:
    lost: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if to_b is requests and not is_housekeeping(packet):
            lost.append(packet)
            return []
        return [packet]

    shared.judge = judge
    return lost


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "probe",
    [
        Probe("icmp", count=3),
        Probe("icmp", size=1400),
        Probe("udp", 53, size=1),
        Probe("udp", 53, size=4000, fragments=True),
        Probe("icmp", size=3001, count=1, fragments=True),
    ],
    ids=str,
)
def test_frames_are_those_on_the_wire(shared: Wire, seen: list[tuple[bytes, bool]], version: int, probe: Probe) -> None:
    assert ask(shared, probe, version) == Result(probe.count, probe.count)
    requests = [packet for packet, to_b in seen if to_b]
    assert probe.frames(version, MTU) == (len(requests), sum(ETHERNET + len(packet) for packet in requests))


@pytest.mark.parametrize("version", [4, 6])
def test_segments_are_those_on_the_wire(shared: Wire, seen: list[tuple[bytes, bool]], version: int) -> None:
    result = ask(shared, Probe("tcp", 80, count=3), version)
    assert result == Result(1, 3, "", sum(to_b for _, to_b in seen))
    assert result.segments > 4


def test_a_last_segment_that_is_sent_again_is_one_of_them(shared: Wire) -> None:
    seen: list[bytes] = []
    held: list[bytes] = []

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        if is_housekeeping(packet):
            return [packet]
        if to_b:
            seen.append(packet)
        elif is_fin(seen[-1]) and not held:
            # The answer to its FIN, which the source then sends again.
            held.append(packet)
            return []
        return [packet]

    shared.judge = judge
    result = ask(shared, Probe("tcp", 80))
    time.sleep(0.5)
    assert is_fin(seen[-2])
    assert is_fin(seen[-1])
    assert result.segments == len(seen)


@pytest.mark.parametrize("probe", [Probe("icmp"), Probe("udp", 53), Probe("tcp", 80)], ids=str)
def test_requests_that_are_lost(shared: Wire, probe: Probe) -> None:
    """Who knows that they are lost need not wait."""
    lost = lose(shared, requests=True)
    number = 1 if probe.protocol == "tcp" else probe.count
    result = ask(shared, probe, settled=lambda: len(lost) == number, timeout=60)
    assert result == Result(segments=probe.protocol == "tcp")


@pytest.mark.parametrize("probe", [Probe("icmp"), Probe("udp", 53)], ids=str)
def test_answers_that_are_lost(shared: Wire, probe: Probe) -> None:
    lost = lose(shared, requests=False)
    assert ask(shared, probe, settled=lambda: len(lost) == probe.count, timeout=60) == Result(probe.count, 0)


def test_nobody_says_that_it_is_lost(shared: Wire) -> None:
    lose(shared, requests=True)
    assert ask(shared, Probe("tcp", 80), timeout=0.05).answered == 0
    assert ask(shared, Probe("udp", 53), timeout=0.05) == Result()


@pytest.mark.parametrize("version", [4, 6])
def test_too_large(shared: Wire, seen: list[tuple[bytes, bool]], version: int) -> None:
    room = MTU - (28 if version == 4 else 48)
    for protocol, port in (("udp", 53), ("icmp", 0)):
        assert ask(shared, Probe(protocol, port, room, 1), version) == Result(1, 1)  # type: ignore[arg-type]
        assert ask(shared, Probe(protocol, port, room + 1), version) == Result(error="EMSGSIZE")  # type: ignore[arg-type]
    assert len(seen) == 4


def test_changed_on_the_way(shared: Wire) -> None:
    """Neither taken for ours, nor passed over: the checksum of UDP is off (zero), so that the socket gets it."""

    def judge(packet: bytes, to_b: bool) -> Sequence[bytes]:
        return [packet[:26] + bytes(2) + bytes([packet[28] ^ 1]) + packet[29:]] if to_b else [packet]

    shared.judge = judge
    with pytest.raises(ExchangeError, match="64 bytes arrived that nobody sent"):
        ask(shared, Probe("udp", 53))


def test_bad_questions(shared: Wire) -> None:
    end = Address(shared.pair.a, "10.9.0.1", 0)
    with pytest.raises(ExchangeError, match="port 0"):
        exchange(end, Address(shared.pair.b, "10.9.0.2", 0), Probe("udp"))
    with pytest.raises(NamespaceNotFound):
        exchange(Address(str(Path("/nowhere")), "10.9.0.1", 0), end, Probe("icmp"))
