"""Load through a node without programs: the kernel forwards between the pods."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from lab.bench.load import BATCH, TTL, LoadStalled, TcpLoad, UdpLoad
from lab.bench.pairs import Pair, pair_without_programs
from lab.node.topology import NODE
from lab.system.sockets import drops
from lab.system.tools import run
from tests.lab.labs import ip, unique_name
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield pair_without_programs(stack, unique_name("load"))


def received(pair: Pair) -> int:
    """Return the packets that the second pod's device has received."""
    (link,) = ip(pair.target_node.netns(pair.target.name), "-s", "link", "show", "eth0")
    return int(link["stats64"]["rx"]["packets"])


def datagrams(pair: Pair, version: int) -> int:
    """Return the UDP packets that sockets of the second pod have received."""
    netns = pair.target_node.netns(pair.target.name)
    if version == 6:
        text = run(nsenter(netns, "cat", "/proc/net/snmp6"))
        return int(dict(line.split() for line in text.splitlines())["Udp6InDatagrams"])
    text = run(nsenter(netns, "cat", "/proc/net/snmp"))
    names, numbers = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, numbers, strict=True))["InDatagrams"])


@pytest.mark.parametrize("version", [4, 6])
def test_captured_frame_is_the_packet(pair: Pair, version: int) -> None:
    """The first that comes by is a question for the neighbour."""
    both = pair.ends(version)
    with UdpLoad(both, size=18) as load:
        frame = load.capture(pair.source_node.netns(NODE), pair.source.ifname)
    header, ttl, addresses = (20, 22, 26) if version == 4 else (40, 21, 22)
    assert len(frame) == 14 + header + 8 + 18
    assert frame[ttl] == TTL
    size = 4 if version == 4 else 16
    found = [ip_address(frame[at : at + size]) for at in (addresses, addresses + size)]
    assert [str(address) for address in found] == [both.source.ip, both.target.ip]


@pytest.mark.parametrize("version", [4, 6])
def test_every_packet_crosses_the_node(pair: Pair, version: int) -> None:
    before = datagrams(pair, version)
    with UdpLoad(pair.ends(version)) as load:
        load.run(10)
        assert datagrams(pair, version) - before == 10 * BATCH
        assert drops(load._receiver) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_crosses_the_node(pair: Pair, version: int) -> None:
    with TcpLoad(pair.ends(version)) as load:
        before = received(pair)
        load.round_trips(100)
        assert received(pair) - before >= 100
        before = received(pair)
        load.stream(1_000_000)
        assert received(pair) > before


def test_a_packet_that_does_not_arrive_stops_the_load(pair: Pair) -> None:
    with UdpLoad(pair.ends(4), timeout=0.1) as load:
        load._sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        with pytest.raises(LoadStalled, match="do not arrive: no answer"):
            load.run(1)


def test_the_error_has_the_kernels_reason(pair: Pair) -> None:
    with UdpLoad(pair.ends(4), size=1 << 16) as load, pytest.raises(LoadStalled, match="do not arrive: Message too"):
        load.run(1)
