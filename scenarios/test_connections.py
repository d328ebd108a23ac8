"""What the programs remember of a connection, from its first packet to its end, and what passes because of it."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from reloadlab import METRIC_EGRESS, Address, PodFacts, Scenario, bound_socket, conntrack_rows, is_ours, slowness
from scenarios.frames import (
    DESTINATION,
    ETH_LEN,
    ICMP,
    ICMPV6,
    IPV4_LEN,
    IPV6_LEN,
    UDP,
    datagram,
    icmp,
    ipv4,
    ipv6,
)
from scenarios.neighbours import known_neighbours
from scenarios.rawframes import PORT, SOURCE_PORT, raw_frames
from scenarios.tables import PODS, POLICY, SILENT

pytestmark = pytest.mark.node(policy=None)

ESTABLISHED, SYN_ONLY, CLOSED, OTHER = 21600, 60, 10, 60
"""Seconds for which a connection is remembered (bpf/lib/config.h)."""
SLACK = 30
"""Seconds that this test may take between a packet and the look at its entry."""
SEGMENTS = struct.Struct("=136xII")
"""tcpi_segs_out and tcpi_segs_in of struct tcp_info (uapi's tcp.h)."""
UDP_LEN = 8
PARAMETER_PROBLEM, UNREACHABLE4 = 4, 3
MUST_UNDERSTAND = bytes((0x9E, 4)) + bytes(4)
"""An option whose sender wants to be told by who does not know it (RFC 8200, 4.2)."""

Row = dict[str, Any]


def network(name: str, **options: Any) -> Any:
    return pytest.param(name, marks=pytest.mark.node(pods=PODS, **options))


NETWORKS = (network("off"), network("endpoint-routes", endpoint_routes=True))


@dataclass(frozen=True, slots=True)
class Remembered:
    """The entries of the client's connection from SOURCE_PORT, in one IP version."""

    scenario: Scenario
    protocol: str
    version: int

    def rows(self) -> dict[str, Row]:
        """Return the entries by the side that they belong to: egress the client's, ingress the server's."""
        pod = self.scenario.node.pod("client")
        here = pod.ipv4 if self.version == 4 else pod.ipv6
        rows = conntrack_rows(self.scenario.node, address=here, port=SOURCE_PORT)
        return {row["direction"]: row for row in rows if row["protocol"].lower() == self.protocol}

    def become(self, egress: Sequence[str], ingress: Sequence[str], seconds: int) -> None:
        """Wait until the entries have these states and a lifetime: the last packets may still be on their way."""
        wanted = {"egress": sorted(egress), "ingress": sorted(ingress)}

        def reached() -> bool:
            rows = self.rows()
            return {side: row["state"] for side, row in rows.items()} == wanted and all(
                lasts(row, seconds) for row in rows.values()
            )

        assert wait_for(reached), (wanted, seconds, self.rows())

    def appear(self) -> None:
        """Wait until there is an entry."""
        assert wait_for(lambda: bool(self.rows()))

    def expire(self) -> None:
        """Wait until the time of all entries is over."""
        assert wait_for(lambda: all(row["seconds_left"] < 0 for row in self.rows().values())), self.rows()

    def count(self, client: socket.socket) -> None:
        """Wait until both entries have counted the segments that the client's kernel has sent and received."""

        def counted() -> bool:
            rows, (sent, received) = self.rows(), segments(client)
            if "packets" in rows["egress"]:
                # Since Cilium 1.16 an entry has one counter for both ways.
                return bool(rows["egress"]["packets"] == rows["ingress"]["packets"] == sent + received)
            egress = rows["egress"]["tx_packets"], rows["egress"]["rx_packets"]
            ingress = rows["ingress"]["rx_packets"], rows["ingress"]["tx_packets"]
            return bool(egress == ingress == (sent, received))

        assert wait_for(counted), (segments(client), self.rows())


@contextmanager
def sockets(
    scenario: Scenario, kind: socket.SocketKind, version: int, port: int
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a socket of the client at SOURCE_PORT, and one of the server at a port."""
    deadline = time.monotonic() + 2 * slowness()

    def opened(pod: PodFacts, number: int) -> socket.socket:
        address = str(pod.ipv4 if version == 4 else pod.ipv6)
        return bound_socket(Address(str(scenario.node.netns(pod.name)), address, number), kind, deadline)

    with (
        opened(scenario.node.pod("client"), SOURCE_PORT) as client,
        opened(scenario.node.pod("server"), port) as server,
    ):
        client.settimeout(5 * slowness())
        server.settimeout(5 * slowness())
        yield client, server


def wait_for(what: Callable[[], bool]) -> bool:
    """Wait until something holds."""
    deadline = time.monotonic() + 5 * slowness()
    while not (done := what()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return done


def lasts(row: Row, seconds: int) -> bool:
    """Tell whether an entry of the last moments has this lifetime."""
    return bool(max(seconds - SLACK, -SLACK) < row["seconds_left"] <= seconds)


ALIVE, DEAD = ("seen_non_syn",), ("rx_closing", "seen_non_syn", "tx_closing")


@pytest.mark.parametrize("network", NETWORKS)
def test_tcp(scenario: Scenario, network: str) -> None:
    """Lifetime, state and counters follow the connection; the next one with its ports is another."""
    for version in (4, 6):
        ends_noted = version == 4 or is_ours(scenario.agent.config.library)
        closed(scenario, version, ends_noted)
        for _ in range(2) if ends_noted else ():
            was_reset(scenario, version)


def closed(scenario: Scenario, version: int, ends_noted: bool) -> None:
    """Follow a connection that one side closes, then the other."""
    remembered = Remembered(scenario, "tcp", version)
    with sockets(scenario, socket.SOCK_STREAM, version, 80) as (client, listener):
        with connected(client, listener) as server:
            scenario.reload("client", "server")
            talk(client, server)
            remembered.become(ALIVE, ALIVE, ESTABLISHED)
            remembered.count(client)
            if not ends_noted:
                scenario.leave_out("the end of a TCP connection over IPv6: the entries of other C sources stay open")
                return
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            remembered.become((*ALIVE, "tx_closing"), (*ALIVE, "rx_closing"), ESTABLISHED)
        remembered.become(DEAD, DEAD, CLOSED)
    rows = remembered.rows()
    # Cilium's programs note what opens and closes a connection.
    flags = {"SYN", "ACK", "FIN"} if is_ours(scenario.agent.config.library) else {"SYN", "FIN"}
    assert flags <= set(rows["egress"]["tx_flags"]) & set(rows["ingress"]["rx_flags"])
    assert {row["identity"] for row in rows.values()} == {scenario.node.pod("client").identity}


def was_reset(scenario: Scenario, version: int) -> None:
    """Follow a connection that ends with a reset."""
    with (
        sockets(scenario, socket.SOCK_STREAM, version, 81) as (client, listener),
        connected(client, listener) as server,
    ):
        talk(client, server)
        remembered = Remembered(scenario, "tcp", version)
        remembered.become(ALIVE, ALIVE, ESTABLISHED)
        if is_ours(scenario.agent.config.library):
            remembered.count(client)
        else:
            scenario.leave_out("counters of a connection with the ports of a closed one: other C sources count on")
        reset(client)
        remembered.become(DEAD, DEAD, CLOSED)


@contextmanager
def connected(client: socket.socket, listener: socket.socket) -> Iterator[socket.socket]:
    """Connect, and yield the server's end."""
    listener.listen()
    client.connect(listener.getsockname())
    with listener.accept()[0] as server:
        server.settimeout(5 * slowness())
        yield server


def talk(client: socket.socket, server: socket.socket) -> None:
    """Say something and wait for the answer, three times."""
    for _ in range(3):
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"


def reset(client: socket.socket) -> None:
    """Close a connection with RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def segments(client: socket.socket) -> tuple[int, int]:
    """Return the segments that a socket has sent and received."""
    sent, received = SEGMENTS.unpack_from(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192))
    return sent, received


@pytest.mark.parametrize("network", NETWORKS)
def test_tcp_without_an_answer(scenario: Scenario, network: str) -> None:
    """A connection that has had nothing but SYNs is forgotten soon."""
    for version in (4, 6):
        spec = scenario.node.spec
        nobody = str(spec.outside4.network[99] if version == 4 else spec.outside6.network[99])
        with sockets(scenario, socket.SOCK_STREAM, version, 82) as (client, _):
            client.setblocking(False)
            assert client.connect_ex((nobody, 82)) == errno.EINPROGRESS
            remembered = Remembered(scenario, "tcp", version)
            remembered.appear()
            row = remembered.rows()["egress"]
            assert (row["state"], row["tx_flags"]) == ([], ["SYN"])
            assert lasts(row, SYN_ONLY)


@pytest.mark.parametrize("network", NETWORKS)
def test_udp(scenario: Scenario, network: str) -> None:
    """Both sides count packets and bytes, of both directions."""
    for version in (4, 6):
        sizes, header = (1, 100, 1000), ETH_LEN + (IPV4_LEN if version == 4 else IPV6_LEN) + UDP_LEN
        with sockets(scenario, socket.SOCK_DGRAM, version, PORT) as (client, server):
            for size in sizes:
                client.sendto(bytes(size), server.getsockname())
                data, peer = server.recvfrom(2000)
                server.sendto(data + b"!", peer)
                client.recv(2000)
                scenario.reload("client")
            sent = len(sizes), sum(sizes) + len(sizes) * header
            answered = len(sizes), sum(sizes) + len(sizes) * (header + 1)
            rows = Remembered(scenario, "udp", version).rows()
            found = {side: _counters(row) for side, row in rows.items()}
            if "packets" in rows["egress"]:
                both = [(sent[0] + answered[0], sent[1] + answered[1])]
                assert found == {"egress": both, "ingress": both}
            else:
                assert found == {"egress": [sent, answered], "ingress": [answered, sent]}
            assert all(lasts(row, OTHER) for row in rows.values())


def _counters(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return packets and bytes of each way; since Cilium 1.16 an entry has one counter for both."""
    ways = ("",) if "packets" in row else ("tx_", "rx_")
    return [(row[f"{way}packets"], row[f"{way}bytes"]) for way in ways]


@pytest.mark.own_sources
@pytest.mark.node(pods=PODS, agent={"defines": (("CT_CONNECTION_LIFETIME_NONTCP", "1"),)})
def test_answer_that_comes_too_late(scenario: Scenario) -> None:
    """A connection whose time is over is not known, whether or not it was collected."""
    nobody = {"name": "no egress", "endpointSelector": {"matchLabels": {"app": "server"}}, "egress": [{}]}
    scenario.agent.apply_policies([nobody])
    for version in (4, 6):
        with sockets(scenario, socket.SOCK_DGRAM, version, PORT) as (client, server):
            client.sendto(b"question", server.getsockname())
            _, peer = server.recvfrom(2000)
            server.sendto(b"answer", peer)
            assert client.recv(2000) == b"answer"
            remembered = Remembered(scenario, "udp", version)
            remembered.expire()
            server.sendto(b"late", peer)
            client.settimeout(0.2 * slowness())
            with pytest.raises(TimeoutError):
                client.recv(2000)
    scenario.expect(drops={(POLICY, METRIC_EGRESS): 2})
    scenario.agent.apply_policies([])


@pytest.mark.parametrize("network", NETWORKS)
def test_errors(scenario: Scenario, network: str) -> None:
    """An ICMP error about a known connection passes, in both directions; another one is a packet like any other."""
    with known_neighbours([scenario.node], scenario.agent.config.library):
        scenario.agent.apply_policies(SILENT)
        errors(scenario)
        not_related(scenario)
        scenario.agent.apply_policies([])
        no_connection(scenario)


def errors(scenario: Scenario) -> None:
    """Send errors about known packets to who has sent them."""
    for version in (4, 6):
        with sockets(scenario, socket.SOCK_DGRAM, version, PORT + 1) as (client, server):
            target = server.getsockname()[0]
            client.connect((target, PORT + 2))
            client.send(b"nobody listens")
            with pytest.raises(ConnectionRefusedError):
                client.recv(2000)
    with raw_frames(scenario, "client", "server") as frames:
        one, other = frames.client, frames.server
        tag = frames.tag()
        message = datagram(one.ipv6, other.ipv6, tag, sport=SOURCE_PORT, dport=PORT)
        packet = ipv6(one.ipv6, other.ipv6, bytes((UDP, 0)) + MUST_UNDERSTAND + message, next_header=DESTINATION)

        def problem(frame: bytes) -> bool:
            return tag in frame and frame[20] == ICMPV6 and frame[54] == PARAMETER_PROBLEM

        frames.expect_answer("parameter problem", frames.frame(packet), problem)


def unreachable(sender: PodFacts, receiver: PodFacts, quoted: bytes) -> bytes:
    return ipv4(sender.ipv4, receiver.ipv4, icmp(UNREACHABLE4, quoted=quoted), protocol=ICMP)


def not_related(scenario: Scenario) -> None:
    """Send an error about a known packet to somebody who has not sent that: it needs a rule."""
    client = scenario.node.pod("client")
    with raw_frames(scenario, "server", "stranger") as frames:
        server, tag = frames.client, frames.tag()
        known = ipv4(
            client.ipv4, server.ipv4, datagram(client.ipv4, server.ipv4, tag, sport=SOURCE_PORT, dport=PORT + 2)
        )
        error = frames.frame(unreachable(server, frames.server, known))
        frames.expect_refusal("error to somebody else", tag, error, (POLICY, METRIC_EGRESS))
    scenario.expect(drops=dict(frames.drops))


def no_connection(scenario: Scenario) -> None:
    """Send an error about an unknown packet, which the policy allows: it begins no connection."""
    with raw_frames(scenario, "server", "stranger") as frames:
        server, stranger, tag = frames.client, frames.server, frames.tag()
        unknown = ipv4(stranger.ipv4, server.ipv4, datagram(stranger.ipv4, server.ipv4, tag, sport=1, dport=2))
        packet = unreachable(server, stranger, unknown)
        frames.expect_arrival("error about nothing", tag, frames.frame(packet), frames.delivered(packet))
    if not is_ours(scenario.agent.config.library):
        scenario.leave_out("ICMP errors about nothing known: other C sources remember them as connections")
        return
    ends = {f"{server.ipv4}:0", f"{stranger.ipv4}:0"}
    rows = conntrack_rows(scenario.node, address=server.ipv4, port=0)
    assert not [row for row in rows if {row["source"], row["destination"]} == ends]
