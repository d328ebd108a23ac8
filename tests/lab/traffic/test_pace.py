"""Bursts, exchanges and frames are waited for as long as the machine is slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lab.system.pace import SLOWNESS_VARIABLE
from lab.system.sockets import Address
from lab.traffic.exchange import Probe, exchange
from lab.traffic.flows import Flow
from lab.traffic.framesocket import FrameSocket
from lab.traffic.traffic import BURST_TIMEOUT, Traffic
from tests.lab.wires import Wire, veth_pair, wire

pytestmark = pytest.mark.privileged

FACTOR = 2
UDP = 17


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv(SLOWNESS_VARIABLE, str(FACTOR))
    with wire() as made:
        yield made


def seconds(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def drop_udp(packet: bytes, to_b: bool) -> Sequence[bytes]:
    return [] if packet[0] >> 4 == 4 and packet[9] == UDP else [packet]


def test_a_burst_that_is_not_answered(slow: Wire) -> None:
    flow = Flow("flow", slow.pair.a, "10.9.0.1", slow.pair.b, "10.9.0.2")
    with Traffic([flow], rate=0) as traffic:
        slow.judge = drop_udp
        assert seconds(lambda: traffic.burst("flow", 1)) >= FACTOR * BURST_TIMEOUT


def test_an_exchange_that_is_not_answered(slow: Wire) -> None:
    slow.judge = drop_udp
    here, there = Address(slow.pair.a, "10.9.0.1", 40000), Address(slow.pair.b, "10.9.0.2", 53)
    assert seconds(lambda: exchange(here, there, Probe("udp", 53, count=1))) >= FACTOR * 2.0


def test_a_frame_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, str(FACTOR))
    with veth_pair() as pair, FrameSocket(Path(pair.a), "eth0") as device:
        assert seconds(lambda: device.receive(lambda frame: False)) >= FACTOR * 2.0
