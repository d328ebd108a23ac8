"""Tables of connections that are full, on the wire: who loses his connection, what is counted, and the way out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from datapath.base.mapnames import CT_MAPS
from lab.abi.conntrack import TUPLE_F_OUT, CtEntry, CtTuple
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch import mapview, metrics
from tests.lab.agent.test_collector import pin, udp
from tests.lab.labs import receives, unique_name

pytestmark = [pytest.mark.privileged, pytest.mark.parametrize("version", [4, 6])]

SIZE = 64
ONE_WAY = {"name": "one way", "endpoint": "pod-2", "ingress": [{}]}
DENIED, NOT_CREATED = (133, metrics.INGRESS), (155, metrics.EGRESS)


class Wire:
    """Connections from a port each of pod-2, which nobody may reach, to a server in pod-1."""

    def __init__(self, agent: Agent, version: int, stack: ExitStack) -> None:
        self.agent, self.version, self.stack = agent, version, stack
        self.table = CT_MAPS[1 if version == 4 else 3]
        self.server = udp(stack, agent.node, "pod-1", 7400, version)

    def begin(self) -> socket.socket:
        """Send the first packet of a connection."""
        made = udp(self.stack, self.agent.node, "pod-2", 0, self.version)
        made.sendto(b"question", self.server.getsockname())
        return made

    def arrives(self, *, within: float = 2.0) -> bool:
        """Tell whether the server gets what was sent last."""
        return receives(self.server, within=within)

    def answered(self, connection: socket.socket, *, within: float = 2.0) -> bool:
        """Tell whether an answer of the server comes through."""
        self.server.sendto(b"answer", connection.getsockname())
        return receives(connection, within=within)

    def silent(self, connection: socket.socket) -> bool:
        """Tell whether an answer of the server does not come through."""
        return not self.answered(connection, within=0.1)

    def used(self) -> int:
        with pin(self.agent, self.table) as table:
            return sum(1 for _ in table.keys())  # noqa: SIM118 - a map of the kernel

    def knows(self, connection: socket.socket) -> bool:
        """Tell whether pod-2's own entry of a connection is there."""
        port = connection.getsockname()[1]
        with pin(self.agent, self.table) as table:
            found = [CtTuple.unpack(key) for key in table.keys()]  # noqa: SIM118
        return any(key.sport == port and key.flags == TUPLE_F_OUT for key in found)

    def end_all(self) -> None:
        """Let the lifetime of every entry be over."""
        with pin(self.agent, self.table) as table:
            for key, value in table.items():
                table.update(key, replace(CtEntry.unpack(value), lifetime=1).pack())

    def drops_since(self, before: metrics.Counters) -> dict[tuple[int, int], int]:
        return metrics.read(self.agent.node).drops_since(before)


@contextmanager
def wire(version: int, **defines: str) -> Iterator[Wire]:
    """A node with small tables, and the one-way policy."""
    macros = {"CT_MAP_SIZE_ANY": str(SIZE), **defines}
    with (
        Node(NodeSpec(unique_name("full"), pods=2)) as node,
        Agent(node, defines=tuple(macros.items())) as agent,
        ExitStack() as stack,
    ):
        agent.start()
        agent.apply_policies(ONE_WAY)
        yield Wire(agent, version, stack)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Stay on one CPU: an LRU keeps a list of what is new for each, and takes nothing from another CPU's."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_cpu")
def test_the_silent_make_room(version: int) -> None:
    """An LRU refuses nobody. Whose entry went has no connection any more: his answers meet the policy."""
    with wire(version) as lab:
        oldest = lab.begin()
        assert lab.arrives()
        assert lab.answered(oldest)
        before = metrics.read(lab.agent.node)
        # The kernel's LRU is a rough one: who has waited longest goes soon, not next.
        for _ in range(20 * SIZE):
            newest = lab.begin()
            assert lab.arrives()
            assert lab.answered(newest)
            assert lab.used() <= SIZE
            if not lab.knows(oldest):
                break
        else:
            pytest.fail("the oldest entry is there yet")
        assert lab.drops_since(before) == {}
        assert lab.silent(oldest)
        assert lab.drops_since(before) == {DENIED: 1}
        # It begins anew, like any other.
        oldest.sendto(b"question", lab.server.getsockname())
        assert lab.arrives()
        assert lab.answered(oldest)


def test_a_full_table_refuses(version: int) -> None:
    """A plain hash keeps what it has. What finds no room is dropped and counted, until the collector makes some."""
    with wire(version, CT_MAP_TYPE="BPF_MAP_TYPE_HASH") as lab:
        rules = without_counters(mapview.policy(lab.agent.node))
        before = metrics.read(lab.agent.node)
        # Both sides of a connection have an entry.
        begun = [lab.begin() for _ in range(SIZE // 2)]
        assert all(lab.arrives() for _ in begun)
        assert lab.used() == SIZE
        assert lab.drops_since(before) == {}
        refused = lab.begin()
        assert not lab.arrives(within=0.1)
        assert lab.drops_since(before) == {NOT_CREATED: 1}
        # What would be an answer is a new connection of the server's side.
        assert lab.silent(refused)
        assert lab.drops_since(before) == {NOT_CREATED: 2}
        assert all(lab.answered(each) for each in begun)
        assert without_counters(mapview.policy(lab.agent.node)) == rules
        lab.end_all()
        refused.sendto(b"question", lab.server.getsockname())
        assert not lab.arrives(within=0.1)
        assert lab.drops_since(before) == {NOT_CREATED: 3}, (
            "entries whose time is over take room until they are collected"
        )
        lab.agent.collect_connections()
        assert lab.used() == 0
        refused.sendto(b"question", lab.server.getsockname())
        assert lab.arrives()
        assert lab.answered(refused)
        assert lab.drops_since(before) == {NOT_CREATED: 3}


def without_counters(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in ("packets", "bytes")} for row in rows]
