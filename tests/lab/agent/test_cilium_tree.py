"""A checkout of Cilium takes the place of our own programs, unchanged: its bpf/ is named by RELOADLAB_CILIUM_BPF."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.node.topology import NodeSpec
from lab.scenario.scenario import Scenario
from tests.lab.conversations import CLIENT, SERVER, Pods, loaded, receive, reset, transfer
from tests.lab.labs import unique_name

TREE = os.environ.get("RELOADLAB_CILIUM_BPF")

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(TREE is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout"),
]


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_reloads_lose_nothing(endpoint_routes: bool) -> None:
    """Pods talk through Cilium's own programs, its conntrack and its policy included, while they are reloaded."""
    spec = NodeSpec(unique_name("cilium"), pods=2, endpoint_routes=endpoint_routes)
    with Scenario(spec, library=Path(TREE or "")) as scenario:
        for _ in range(3):
            scenario.reload()
    assert scenario.sent > scenario.lost == 0


def test_switched_on_and_off() -> None:
    """The routing mode changes under way."""
    with Scenario(NodeSpec(unique_name("cilium"), pods=2), library=Path(TREE or "")) as scenario:
        scenario.set_endpoint_routes(True)
        scenario.set_endpoint_routes(False)


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_connections_of_the_kernel(endpoint_routes: bool) -> None:
    """What our own conntrack is held to, as far as Cilium's does the same: opened, half closed, reset, opened again."""
    with loaded(endpoint_routes=endpoint_routes, library=Path(TREE or "")) as agent:
        # With endpoint routes it takes its own neighbour advertisements for the world's, which may not come in.
        for version in (4,) if endpoint_routes else (4, 6):
            with ExitStack() as stack:
                converse(Pods(agent, version, stack))


def converse(pods: Pods) -> None:
    data = bytes(1 << 20)
    listener = pods.listen()
    with pods.dropping():
        talk = pods.connect(listener)
        transfer(talk.client, talk.server, data)
        for subject in (CLIENT, SERVER):
            pods.agent.reload(subject)
        talk.server.shutdown(socket.SHUT_WR)
        assert receive(talk.client) == b""
        transfer(talk.client, talk.server, data)
        talk.client.close()
        assert receive(talk.server) == b""
        talk.server.close()
        again = pods.connect(listener, talk.flow.sport)
        again.talk()
        reset(again.server)
        with pytest.raises(ConnectionResetError):
            again.client.recv(1)
        again.client.close()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            pods.bound(CLIENT).connect((str(pods.address(SERVER)), talk.flow.dport))
        client, server = pods.bound(CLIENT, kind=socket.SOCK_DGRAM), pods.bound(SERVER, kind=socket.SOCK_DGRAM)
        client.connect(server.getsockname()[:2])
        server.close()
        client.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
