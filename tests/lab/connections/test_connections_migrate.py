"""The maps of connections are replaced while pods talk, under a policy that lets answers pass and nothing else."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from datapath.base.mapnames import CT_MAPS
from datapath.errors import ReloadlabError
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.watch import metrics
from tests.lab.agent.test_collector import udp
from tests.lab.labs import receives, unique_name

pytestmark = pytest.mark.privileged

ONE_WAY = {"name": "one way", "endpoint": "pod-2", "ingress": [{}]}
SMALLER = (("CT_MAP_SIZE_TCP", "4096"), ("CT_MAP_SIZE_ANY", "4096"))
SWITCHING = ("attach egress", "insert policy", "attach ingress", "routes", "detach egress", "commit")
DENIED = (133, metrics.INGRESS)

Begun = list[tuple[str, socket.socket]]


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_whenever_they_began(endpoint_routes: bool) -> None:
    """Connections that begin at every step of every reload live on when all is done.

    Their answers come through at any time, of those that began before the first program of the reload was switched.
    While old and new programs are side by side, each half has another table: what begins right then has its answers
    dropped, and counted, until the commit.
    """
    spec = NodeSpec(unique_name("migrate"), pods=2, endpoint_routes=endpoint_routes)
    with Node(spec) as node, Agent(node) as agent, ExitStack() as stack:
        agent.start()
        agent.apply_policies(ONE_WAY)
        servers = {version: udp(stack, node, "pod-1", 7500, version) for version in (4, 6)}
        begun: dict[int, Begun] = {4: [], 6: []}
        between: dict[int, Begun] = {4: [], 6: []}

        def begin(where: str) -> None:
            for version, server in servers.items():
                for began, connection in [each for each in begun[version] if not each[0].endswith(SWITCHING)][-1:]:
                    server.sendto(b"meanwhile", connection.getsockname())
                    assert receives(connection), f"{where}: no answer to what began before {began}"
                made = udp(stack, node, "pod-2", 0, version)
                made.sendto(b"question", server.getsockname())
                assert server.recvfrom(64)[1][:2] == made.getsockname()[:2]
                server.sendto(b"answer", made.getsockname())
                (begun if receives(made, within=0.3) else between)[version].append((where, made))

        before = metrics.read(node)
        agent.configure(defines=SMALLER)
        migrated: list[str] = []
        for subject in agent.subjects:
            gate = Gate(lambda step, _: begin(f"{subject}: {step.name}"), before="*")  # noqa: B023 - called before the next
            migrated += agent.reload(subject, observer=gate).migrated
        assert sorted(migrated) == sorted(CT_MAPS)
        halfway = ["pod-2: insert policy"] * endpoint_routes + ["pod-2: attach ingress"]
        assert [[where for where, _ in each] for each in between.values()] == [halfway, halfway]
        dropped = {DENIED: 2 * len(halfway)}
        assert metrics.read(node).drops_since(before) == dropped
        for version, server in servers.items():
            for where, connection in begun[version] + between[version]:
                server.sendto(b"another", connection.getsockname())
                assert receives(connection), f"IPv{version} connection that began before {where}"
        assert metrics.read(node).drops_since(before) == dropped


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_pod_inherits_no_connection_from_a_replaced_table(version: int) -> None:
    """Programs that are not reloaded yet know connections of a removed pod in the table that another has replaced.

    What the next pod with its address sends is no answer, neither before nor after their reload.
    """
    with Node(NodeSpec(unique_name("migrate"), pods=2)) as node, Agent(node) as agent, ExitStack() as stack:
        agent.start()
        agent.apply_policies(ONE_WAY)
        agent.add_pod("late")
        server, client = udp(stack, node, "late", 7500, version), udp(stack, node, "pod-2", 7600, version)
        client.sendto(b"question", server.getsockname())
        assert receives(server)
        agent.configure(defines=SMALLER)
        agent.reload("pod-1")
        agent.remove_pod("late")
        agent.add_pod("late")
        before, answerer = metrics.read(node), udp(stack, node, "late", 7500, version)
        assert answerer.getsockname() == server.getsockname()
        for number, reloaded in enumerate(([], ["pod-2"], ["pod-2"]), start=1):
            for subject in reloaded:
                agent.reload(subject)
            answerer.sendto(b"no answer", client.getsockname())
            assert not receives(client, within=0.2)
            assert metrics.read(node).drops_since(before) == {DENIED: number}


class _Injected(ReloadlabError):
    """Fails a reload at a gate."""


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_of_a_reload_that_failed(endpoint_routes: bool) -> None:
    """What began under the new programs lives on under the old ones, which come back."""
    spec = NodeSpec(unique_name("failed"), pods=2, endpoint_routes=endpoint_routes)
    with Node(spec) as node, Agent(node) as agent, ExitStack() as stack:
        agent.start()
        agent.apply_policies(ONE_WAY)
        servers = {version: udp(stack, node, "pod-1", 7500, version) for version in (4, 6)}
        begun: dict[int, socket.socket] = {}

        def begin(*_: object) -> None:
            for version, server in servers.items():
                begun[version] = udp(stack, node, "pod-2", 0, version)
                begun[version].sendto(b"question", server.getsockname())
                assert server.recvfrom(64)[1][:2] == begun[version].getsockname()[:2]
            raise _Injected("after the attach")

        before = metrics.read(node)
        agent.configure(defines=SMALLER)
        for subject in agent.subjects:
            if subject != "pod-2":
                agent.reload(subject)
        with pytest.raises(_Injected):
            agent.reload("pod-2", observer=Gate(begin, after="attach ingress"))
        for version, server in servers.items():
            server.sendto(b"answer", begun[version].getsockname())
            assert receives(begun[version]), f"IPv{version}: no answer to what began before the rollback"
        assert metrics.read(node).drops_since(before) == {}
