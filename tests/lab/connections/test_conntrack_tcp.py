"""Connection tracking against the kernel's own TCP: opened, half closed, reset, opened by both at once.

The server may open no connection and the client may let none in: an answer that is not known as one does not arrive.
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

import pytest

from lab.abi.conntrack import CtEntry
from lab.system.netns import enter
from lab.system.sockets import SO_RCVBUFFORCE
from scenarios.frames import checksum
from tests.lab.conversations import (
    BULK,
    CLIENT,
    CLOSE,
    CLOSED,
    DENIED_IN,
    DENIED_OUT,
    OPEN,
    SERVER,
    SYN_TIMEOUT,
    TCP,
    TCP_LIFETIME,
    Conversation,
    Pods,
    attempt,
    back,
    close,
    deaf,
    receive,
    reset,
    segments,
    transfer,
    until,
)

pytestmark = pytest.mark.privileged

SYN, RST, ACK = 0x02, 0x04, 0x10


class Capture:
    """Counts what passes a pod's interface, before the datapath has seen it or after."""

    def __init__(self, pods: Pods, name: str, stack: ExitStack) -> None:
        with enter(pods.node.netns(name)):
            self._socket = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 * len(BULK))
        self._ports_at = 14 + (20 if pods.version == 4 else 40)
        self._counters = [0, 0, 0, 0]

    def counted(self, ports: set[int]) -> tuple[int, int, int, int]:
        """Return packets and bytes received and sent since the beginning, as in struct ct_entry."""
        counters = self._counters
        head = bytearray(128)
        while True:
            try:
                length, (_, _, kind, *_) = self._socket.recvfrom_into(head, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return counters[0], counters[1], counters[2], counters[3]
            if set(struct.unpack_from("!HH", head, self._ports_at)) == ports:
                at = 2 if kind == socket.PACKET_OUTGOING else 0
                counters[at] += 1
                counters[at + 1] += length


def counters(entry: CtEntry) -> tuple[int, int, int, int]:
    return entry.rx_packets, entry.rx_length, entry.tx_packets, entry.tx_length


# --- opened ---


def test_both_sides_know_a_connection(pods: Pods) -> None:
    with ExitStack() as stack:
        seen = {out: Capture(pods, name, stack) for out, name in ((True, CLIENT), (False, SERVER))}
        talk = pods.connect(pods.listen())
        for out, packets in ((True, (1, 2)), (False, (2, 1))):
            talk.settled(out=out, names=OPEN, lifetime=TCP_LIFETIME)
            entry = talk.entry(out=out)
            assert (entry.rx_packets, entry.tx_packets) == packets
            assert entry.tx_flags_seen == entry.rx_flags_seen == SYN | ACK
            assert entry.src_sec_id == pods.node.pod(CLIENT).identity
        assert pods.entry(back(talk.flow), out=True) is None, "it has begun nothing itself"
        transfer(talk.client, talk.server, BULK)
        transfer(talk.server, talk.client, BULK[::-1])
        ports = {talk.flow.sport, talk.flow.dport}
        for out in (True, False):
            until(lambda out=out: counters(talk.entry(out=out)) == seen[out].counted(ports), "all is counted")  # type: ignore[misc]


def test_as_many_packets_as_tcp_itself_says(pods: Pods) -> None:
    """Of single segments: those of a transfer are handed over by the dozen."""
    talk = pods.connect(pods.listen())
    for _ in range(5):
        talk.talk()
    until(lambda: (e := talk.entry(out=True)) and (e.tx_packets, e.rx_packets) == segments(talk.client))
    assert talk.entry(out=True).tx_packets >= 2 + 5


def test_syns_that_nobody_answers(both: tuple[Pods, Pods]) -> None:
    """Each counts and begins the time anew, but it is no connection before something else has been seen."""
    with ExitStack() as stack:
        listeners = [pods.listen() for pods in both]
        with deaf(*listeners):
            talks, ends = [], []
            for pods, listener in zip(both, listeners, strict=True):
                client = pods.bound(CLIENT)
                attempt(client, listener)
                talk = Conversation(pods, client, client, pods.flow(client, listener))
                for out in (True, False):
                    talk.settled(out=out, names=set(), lifetime=SYN_TIMEOUT)
                ends.append(talk.entry(out=False).lifetime)
                pods.age(talk.flow, SYN_TIMEOUT // 2)
                talks.append(talk)
            for talk, end in zip(talks, ends, strict=True):
                comes_again(talk, out=False)
                for out in (True, False):
                    talk.settled(out=out, names=set(), lifetime=SYN_TIMEOUT)
                    assert talk.entry(out=out).lifetime >= end
        for talk, listener in zip(talks, listeners, strict=True):
            stack.enter_context(listener.accept()[0]).sendall(b"welcome")
            assert talk.client.recv(64) == b"welcome"
            talk.settled(out=True, names=OPEN, lifetime=TCP_LIFETIME)


def comes_again(talk: Conversation, *, out: bool) -> None:
    """Wait for one more packet to the client (`out`) or to the server."""
    sent = talk.entry(out=out).rx_packets
    until(lambda: talk.entry(out=out).rx_packets > sent, "a packet is sent again")


def test_only_the_client_may_open(pods: Pods) -> None:
    """What the others rely on."""
    listener = pods.bound(CLIENT)
    listener.listen()
    for allowed, reason in (({}, DENIED_OUT), ({"server_out": True}, DENIED_IN)):
        with pods.allowed(**allowed), pods.dropping(reason):
            sock = pods.bound(SERVER)
            attempt(sock, listener)
        assert pods.entry(back(pods.flow(listener, sock)), out=False) is None
        sock.close()


def test_silent_for_too_long(pods: Pods) -> None:
    """Then it is none to the server, who may open no other; the client's next word makes it one again."""
    talk = pods.connect(pods.listen())
    talk.talk()
    pods.age(talk.flow, TCP_LIFETIME + 1)
    with pods.dropping(DENIED_OUT):
        talk.server.sendall(b"still there?")
    talk.client.sendall(b"yes")
    assert talk.client.recv(64) == b"still there?"
    for out in (True, False):
        talk.settled(out=out, names=OPEN, lifetime=TCP_LIFETIME)


# --- closed ---


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_one_half_is_closed(pods: Pods, first: str) -> None:
    """Who has closed still gets everything; the connection ends when the other has closed as well."""
    talk = pods.connect(pods.listen())
    talk.talk()
    closer, other = (talk.client, talk.server) if first == CLIENT else (talk.server, talk.client)
    closer.shutdown(socket.SHUT_WR)
    assert other.recv(64) == b""
    for out in (True, False):
        closing = "tx_closing" if (first == CLIENT) == out else "rx_closing"
        talk.settled(out=out, names=OPEN | {closing}, lifetime=TCP_LIFETIME)
    transfer(other, closer, BULK)
    for out in (True, False):
        assert talk.entry(out=out).names >= OPEN
        assert not talk.entry(out=out).names >= CLOSED
    other.close()
    assert receive(closer) == b""
    for out in (True, False):
        talk.settled(out=out, names=CLOSED, lifetime=CLOSE)


def test_the_last_end_is_lost_and_sent_again(pods: Pods) -> None:
    """What is sent again keeps the connection for as long as it needs."""
    talk = pods.connect(pods.listen())
    talk.client.shutdown(socket.SHUT_WR)
    assert receive(talk.server) == b""
    with deaf(talk.client):
        talk.server.sendall(b"last words")
        talk.server.close()
        for out in (True, False):
            talk.settled(out=out, names=CLOSED, lifetime=CLOSE)
        end = talk.entry(out=True).lifetime
        pods.age(talk.flow, CLOSE // 2)
        comes_again(talk, out=True)
        for out in (True, False):
            talk.settled(out=out, names=CLOSED, lifetime=CLOSE)
            assert talk.entry(out=out).lifetime >= end
    assert receive(talk.client) == b"last words"


# --- reset ---


@pytest.mark.parametrize("who", [CLIENT, SERVER])
def test_a_reset_ends_it_at_once(pods: Pods, who: str) -> None:
    talk = pods.connect(pods.listen())
    talk.talk()
    sender, other = (talk.client, talk.server) if who == CLIENT else (talk.server, talk.client)
    reset(sender)
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    for out in (True, False):
        talk.settled(out=out, names=CLOSED, lifetime=CLOSE)


def test_a_port_where_nobody_listens(pods: Pods) -> None:
    """The reset is an answer, and ends what the SYN has begun."""
    client, server = pods.bound(CLIENT), pods.bound(SERVER)
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.getsockname()[:2])
    talk = Conversation(pods, client, server, pods.flow(client, server))
    for out in (True, False):
        talk.settled(out=out, names=CLOSED, lifetime=CLOSE)


def test_a_reset_that_answers_nothing(pods: Pods) -> None:
    """It is held against the policy, as whatever comes out of the blue, of the sender and of the receiver."""
    for allowed, reason in (({}, DENIED_OUT), ({"server_out": True}, DENIED_IN)):
        talk = pods.connect(pods.listen())
        talk.talk()
        for out in (True, False):
            pods.forget(talk.flow, out=out)
        with pods.allowed(**allowed), pods.dropping(reason):
            reset(talk.server)
        assert pods.entry(talk.flow, out=True) is None
        # Nor has the client heard of it. Now it asks, and the answer to that is known as one.
        talk.client.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            talk.client.recv(1)


def test_a_reset_that_nobody_has_sent(pods: Pods) -> None:
    """TCP ignores one outside of its window: so the connection goes on, and is known on, with what was closed of it."""
    talk = pods.connect(pods.listen())
    talk.talk()
    for names in (OPEN, OPEN | {"tx_closing"}):
        for sender in (SERVER, CLIENT):
            forge(talk, sender, RST)
            for out in (True, False):
                talk.settled(out=out, names=CLOSED, lifetime=CLOSE)
            transfer(talk.server, talk.client, BULK)
        talk.settled(out=True, names=names, lifetime=TCP_LIFETIME)
        talk.client.shutdown(socket.SHUT_WR)
    talk.server.close()
    assert receive(talk.client) == b""
    for out in (True, False):
        talk.settled(out=out, names=CLOSED, lifetime=CLOSE)


def test_a_late_copy_of_the_first_answer(pods: Pods) -> None:
    """It opens nothing, and is an answer still."""
    talk = pods.connect(pods.listen())
    close(talk, CLIENT)
    before = talk.entry(out=True).rx_packets
    with pods.dropping():
        forge(talk, SERVER, SYN | ACK)
        until(lambda: talk.entry(out=True).rx_packets > before)


def forge(talk: Conversation, sender: str, flags: int) -> None:
    """Have a segment come out of a pod whose sequence number is none of the connection's."""
    pods, flow = talk.pods, talk.flow if sender == CLIENT else back(talk.flow)
    segment = bytearray(struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 0, 0, 5 << 4, flags, 0, 0, 0))
    pseudo = flow.source.packed + flow.destination.packed + struct.pack("!HH", TCP, len(segment))
    segment[16:18] = checksum(pseudo + segment).to_bytes(2, "big")
    family = socket.AF_INET if pods.version == 4 else socket.AF_INET6
    with enter(pods.node.netns(sender)), socket.socket(family, socket.SOCK_RAW, TCP) as raw:
        raw.bind((str(flow.source), 0))
        raw.sendto(segment, (str(flow.destination), 0))


# --- both at once ---


def test_simultaneous_open_where_none_may_be_opened_to(pods: Pods) -> None:
    """The SYN of each makes that of the other an answer: so both have begun, and neither let anybody in."""
    ends = pods.bound(CLIENT), pods.bound(SERVER)
    flow = pods.flow(*ends)
    with pods.allowed(server_in=False, server_out=True):
        with pods.dropping(DENIED_IN):
            attempt(ends[0], ends[1])
        ends[1].connect(ends[0].getsockname()[:2])
        talk = Conversation(pods, *ends, flow)
        transfer(talk.client, talk.server, BULK)
        transfer(talk.server, talk.client, BULK)
        talk.settled(out=True, names=OPEN, lifetime=TCP_LIFETIME)
        Conversation(pods, *ends, back(flow)).settled(out=True, names=OPEN, lifetime=TCP_LIFETIME)
        assert pods.entry(flow, out=False) is pods.entry(back(flow), out=False) is None
        for end, other in (ends, ends[::-1]):
            end.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        for side in (flow, back(flow)):
            Conversation(pods, *ends, side).settled(out=True, names=CLOSED, lifetime=CLOSE)


def test_simultaneous_open_where_only_one_may_open(pods: Pods) -> None:
    """The SYN of the one who may not is lost; the other's makes the connection all the same."""
    ends = pods.bound(CLIENT), pods.bound(SERVER)
    with pods.dropping(DENIED_OUT):
        attempt(ends[1], ends[0])
    ends[0].connect(ends[1].getsockname()[:2])
    talk = Conversation(pods, *ends, pods.flow(*ends))
    talk.talk()
    for out in (True, False):
        talk.settled(out=out, names=OPEN, lifetime=TCP_LIFETIME)
        assert pods.entry(back(talk.flow), out=out) is None
