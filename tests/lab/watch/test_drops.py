"""The watch over all drops of a node."""

from __future__ import annotations

import threading
import time

import pytest

from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.drops import Drops, Namespace
from lab.watch.monitor import Monitor
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


def test_the_namespace_of_a_new_pod_is_watched_and_keeps_its_name() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node, Agent(node) as agent:
        agent.start()
        with Drops([node], []) as drops:
            node.add_pod("late")
            inode = node.netns("late").stat().st_ino
            deadline = time.monotonic() + 5
            while inode not in drops.read().namespaces and time.monotonic() < deadline:
                time.sleep(0.02)
            node.remove_pod("late")
            assert drops.read().namespaces[inode] == Namespace(node.name, "late")


def test_what_ends_the_reading_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def broken(_: object) -> None:
        ended.set()
        raise ValueError("injected")

    with Node(NodeSpec(unique_name(), pods=0)) as node:
        drops = Drops([node], []).__enter__()
        monkeypatch.setattr(Drops, "_find_namespaces", broken)
        assert ended.wait(10)
        with pytest.raises(ValueError, match="injected"):
            drops.__exit__(None, None, None)
        with pytest.raises(ValueError, match="injected"):
            drops.read()


def test_events_that_another_process_reads_are_a_gap() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node, Agent(node) as agent:
        agent.start()
        with Monitor(node), Drops([node], []) as drops:
            (gap,) = [gap for gap in drops.read().gaps if "notifications" in gap]
        assert gap == f"drop notifications are not read: another process already reads the events of lab {node.name}"


def test_programs_that_are_not_loaded_are_a_gap() -> None:
    with Node(NodeSpec(unique_name(), pods=0)) as node, Drops([node], []) as drops:
        assert any("no map cilium_events" in gap for gap in drops.read().gaps)
