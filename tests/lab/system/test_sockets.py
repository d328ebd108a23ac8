"""What the kernel tells of sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lab.system.sockets import Address, bound_socket, disconnect, is_closed
from lab.traffic import connections
from lab.traffic.connections import TcpConnections
from lab.traffic.delays import DelayRecorder, Pauses
from lab.traffic.flows import Flow
from lab.traffic.payload import Payloads
from lab.traffic.poller import Poller
from tests.lab.wires import veth_pair

pytestmark = pytest.mark.privileged

Ends = tuple[Flow, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A flow over a wire, and what listens at its target."""
    with veth_pair() as pair, ExitStack() as stack:
        flow = Flow("f", pair.a, "10.9.0.1", pair.b, "10.9.0.2", protocol="tcp", port=7998, fresh=True)
        target = Address(flow.target_ns, flow.target_ip, flow.port)
        listener = stack.enter_context(bound_socket(target, socket.SOCK_STREAM, time.monotonic() + 10))
        listener.listen()
        listener.settimeout(10)
        yield flow, listener


def test_a_socket_is_closed_when_both_ends_are(ends: Ends) -> None:
    flow, listener = ends
    with bound_socket(Address(flow.source_ns, flow.source_ip, 0), socket.SOCK_STREAM, time.monotonic() + 10) as source:
        assert is_closed(source)
        source.connect((flow.target_ip, flow.port))
        target, _ = listener.accept()
        assert not is_closed(source)
        source.shutdown(socket.SHUT_WR)
        assert not is_closed(source)
        target.close()
        deadline = time.monotonic() + 10
        while not is_closed(source):
            assert time.monotonic() < deadline
        port = source.getsockname()[1]
        disconnect(source)
        source.connect((flow.target_ip, flow.port))
        assert source.getsockname()[1] != port


def test_a_connection_that_is_being_closed_is_not_reset_for_the_next_one(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, listener = ends
    monkeypatch.setattr(connections, "_POOL", 1)
    poller = Poller()
    stream: Any = TcpConnections(flow, Payloads(1, 0, (64,)), DelayRecorder(Pauses(), 10**9))
    stream.open(poller, time.monotonic() + 10)
    (first,) = stream._spare
    first.connect_ex((flow.target_ip, flow.port))
    target, _ = listener.accept()
    first.shutdown(socket.SHUT_WR)
    with stream._take() as other:
        assert other is not first
    # The end of the other side finds its socket, and no reset.
    target.close()
    deadline = time.monotonic() + 10
    while not is_closed(first):
        assert time.monotonic() < deadline
    assert stream._take() is first
    first.close()
    poller.close()
