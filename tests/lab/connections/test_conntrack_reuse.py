"""Connection tracking and the kernel's TCP over time: the same ports again, reloads, policies that change.

The server may open no connection and the client may let none in, as in test_conntrack_tcp.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from lab.system.sockets import tcp_info
from tests.lab.conversations import (
    BULK,
    CLIENT,
    CLOSE,
    CLOSED,
    DEADLINE,
    DENIED_IN,
    DENIED_OUT,
    OPEN,
    SERVER,
    TCP_LIFETIME,
    Conversation,
    Pods,
    attempt,
    close,
    deaf,
    receive,
    reset,
    transfer,
    vanish,
)

pytestmark = pytest.mark.privileged


# --- the same ports again ---


def given_up(talk: Conversation, first: str) -> int:
    """Let both ends of a connection vanish, the entries stay; return the client's port."""
    ends = (talk.client, talk.server) if first == CLIENT else (talk.server, talk.client)
    for end in ends:
        vanish(end)
    return talk.flow.sport


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_opened_again_with_the_same_ports(pods: Pods, first: str) -> None:
    """Who has closed first is in TIME_WAIT, and lets the new connection in; of the old one nothing is left."""
    listener = pods.listen()
    talk = pods.connect(listener)
    transfer(talk.client, talk.server, BULK)
    again = pods.connect(listener, close(talk, first))
    assert again.flow == talk.flow
    again.talk()
    for out in (True, False):
        again.settled(out=out, names=OPEN, lifetime=TCP_LIFETIME)
        assert again.entry(out=out).rx_packets + again.entry(out=out).tx_packets < 10
    pods.reload()
    again.talk()


@pytest.mark.parametrize("first", [CLIENT, SERVER])
@pytest.mark.parametrize(
    ("denied", "reason"), [({"client_out": False}, DENIED_OUT), ({"server_in": False}, DENIED_IN)], ids=["out", "in"]
)
def test_not_opened_again_where_it_is_denied_by_then(
    pods: Pods, first: str, denied: dict[str, bool], reason: tuple[int, int]
) -> None:
    """What is left of the old connection opens no new one."""
    listener = pods.listen()
    port = close(pods.connect(listener), first)
    client = pods.bound(CLIENT, port)
    with pods.allowed(**denied), pods.dropping(reason):
        attempt(client, listener)


@pytest.mark.parametrize("closed", [False, True], ids=["open", "half closed"])
def test_a_connection_that_was_given_up_lets_no_other_pass(pods: Pods, closed: bool) -> None:
    """Both ends have vanished and the entries stay: a SYN on them is that of a new connection."""
    listener = pods.listen()
    talk = pods.connect(listener)
    talk.talk()
    if closed:
        talk.server.shutdown(socket.SHUT_WR)
        assert talk.client.recv(1) == b""
    for end in (talk.client, talk.server):
        vanish(end)
    client = pods.bound(CLIENT, talk.flow.sport)
    arrived = talk.entry(out=False).rx_packets
    with pods.allowed(client_out=False), pods.dropping(DENIED_OUT):
        attempt(client, listener)
    assert talk.entry(out=False).rx_packets == arrived
    client.close()
    pods.connect(listener, talk.flow.sport).talk()


@pytest.mark.parametrize("end", [close, given_up], ids=["closed", "given up"])
def test_the_other_side_opens_none_with_the_same_ports(pods: Pods, end: Callable[[Conversation, str], int]) -> None:
    """What the client has opened does not let the server's SYN pass as an answer."""
    for allowed, reason in (({}, DENIED_OUT), ({"server_out": True}, DENIED_IN)):
        listener = pods.listen()
        target = pods.bound(CLIENT, end(pods.connect(listener), CLIENT))
        target.listen()
        port = listener.getsockname()[1]
        listener.close()
        with pods.allowed(**allowed), pods.dropping(reason):
            attempt(pods.bound(SERVER, port), target)


def test_opened_again_against_what_the_server_still_has(both: tuple[Pods, Pods]) -> None:
    """It does not know that the old connection is over: says so, is told with a reset, and lets the next SYN in.

    Either it has never got the client's reset, or the client has sent none.
    """
    talks = []
    for pods in both:
        for loud in (True, False):
            listener = pods.listen()
            talk = pods.connect(listener)
            with deaf(talk.server):
                (reset if loud else vanish)(talk.client)
                talk.settled(out=False, names=CLOSED if loud else OPEN, lifetime=CLOSE if loud else TCP_LIFETIME)
            client = pods.bound(CLIENT, talk.flow.sport)
            attempt(client, listener)
            talks.append((talk, client, listener))
    for talk, client, listener in talks:
        with pytest.raises(ConnectionResetError):
            talk.server.recv(1)
        accept_again(talk, client, listener)


def accept_again(talk: Conversation, client: socket.socket, listener: socket.socket) -> None:
    """Wait until the new connection stands, and see that nothing is left of the old one."""
    server, _ = listener.accept()
    with server:
        server.settimeout(DEADLINE)
        again = Conversation(talk.pods, client, server, talk.flow)
        again.talk()
        for out in (True, False):
            again.settled(out=out, names=OPEN, lifetime=TCP_LIFETIME)


def test_time_wait_that_takes_the_syn_for_an_old_one(both: tuple[Pods, Pods]) -> None:
    """So many bytes were sent that the new sequence number lies behind: the server answers with an ACK, not a SYN."""
    many = BULK * 16
    talks = []
    both[0].sysctl(CLIENT, tcp_timestamps=0)
    try:
        for pods in both:
            listener = pods.listen()
            talk = pods.connect(listener)
            transfer(talk.client, talk.server, many)
            client = pods.bound(CLIENT, close(talk, SERVER))
            attempt(client, listener)
            talks.append((talk, client, listener))
        for talk, client, listener in talks:
            accept_again(talk, client, listener)
            assert tcp_info(client).retransmits > 0, "the first SYN was none to the server"
    finally:
        both[0].sysctl(CLIENT, tcp_timestamps=1)


# --- while other things change ---


def test_reloads_between_all_that_happens(pods: Pods) -> None:
    with pods.dropping():
        talk = pods.connect(pods.listen())
        pods.reload()
        transfer(talk.client, talk.server, BULK)
        pods.reload()
        transfer(talk.server, talk.client, BULK)
        talk.client.shutdown(socket.SHUT_WR)
        assert receive(talk.server) == b""
        pods.reload()
        transfer(talk.server, talk.client, BULK)
        for out, names in ((True, OPEN | {"tx_closing"}), (False, OPEN | {"rx_closing"})):
            talk.settled(out=out, names=names, lifetime=TCP_LIFETIME)
        pods.reload()
        talk.server.close()
        assert receive(talk.client) == b""
        for out in (True, False):
            talk.settled(out=out, names=CLOSED, lifetime=CLOSE)


def test_permission_to_send_is_asked_for_once(pods: Pods) -> None:
    """As Cilium: a connection that stands goes out even when the policy would not let it be opened any more."""
    talk = pods.connect(pods.listen())
    with pods.allowed(client_out=False), pods.dropping():
        talk.talk()


def test_permission_to_be_sent_to_is_asked_for_with_each_packet(pods: Pods) -> None:
    """And is back before TCP gives up; until then only what the other side sends arrives, which are answers."""
    talk = pods.connect(pods.listen())
    with pods.allowed(server_in=False), pods.dropping(DENIED_IN):
        talk.client.sendall(b"question")
        talk.server.sendall(b"answer")
        assert talk.client.recv(64) == b"answer"
    assert talk.server.recv(64) == b"question"
