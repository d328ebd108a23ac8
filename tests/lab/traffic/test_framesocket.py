"""Whole frames between two namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.traffic.framesocket import FrameSocket
from scenarios.frames import BROADCAST, eth
from tests.lab.wires import Pair, veth_pair

pytestmark = pytest.mark.privileged

LOCAL_EXPERIMENT = 0x88B5
"""An EtherType that no stack answers (IEEE 802)."""
MAC = "02:00:00:00:00:01"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with veth_pair() as pair:
        yield pair


def frame(text: bytes) -> bytes:
    return eth(BROADCAST, MAC, LOCAL_EXPERIMENT, text.ljust(46, b"."))


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    with FrameSocket(Path(pair.a), "eth0") as a, FrameSocket(Path(pair.b), "eth0") as b:
        a.send(frame(b"first"))
        a.send(frame(b"second"))
        assert b.receive(lambda data: b"second" in data) == frame(b"second")


def test_what_is_sent_is_not_shown_to_the_sender(pair: Pair) -> None:
    with FrameSocket(Path(pair.a), "eth0") as a, FrameSocket(Path(pair.b), "eth0") as b:
        a.send(frame(b"ours"))
        b.send(frame(b"theirs"))
        assert a.receive(lambda data: data[12:14] == LOCAL_EXPERIMENT.to_bytes(2, "big")) == frame(b"theirs")


def test_nothing_comes(pair: Pair) -> None:
    with FrameSocket(Path(pair.a), "eth0") as a:
        assert a.receive(lambda data: b"never" in data, timeout=0) is None


def test_missing_interface_is_an_error(pair: Pair) -> None:
    with pytest.raises(OSError, match="No such device"):
        FrameSocket(Path(pair.a), "eth9")
