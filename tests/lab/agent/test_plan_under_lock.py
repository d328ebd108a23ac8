"""A reload is planned when it has the lock of its endpoint: what another does before that, it knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datapath.kernel.hooks import Direction
from datapath.reload.outcome import Outcome
from datapath.reload.unload import endpoint_lock
from lab.agent.agent import Agent
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HOST, HOST_ENDPOINT, NODE
from lab.scenario.gate import Gate
from lab.system.tools import run
from lab.watch.snapshot import take
from tests.datapath.support import until
from tests.lab.labs import loaded_node
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    templates = tmp_path_factory.mktemp("templates")
    with loaded_node("planned", templates, pods=1) as node:
        yield node, templates


@pytest.fixture
def agents(lab: tuple[Node, Path]) -> Iterator[tuple[Agent, Agent]]:
    """Two agents of one node, as two processes have them."""
    node, templates = lab
    with (
        Agent(Node.open(node.name), templates=templates) as one,
        Agent(Node.open(node.name), templates=templates) as other,
    ):
        yield one, other


def openings(path: Path) -> int:
    """Return how often this process has a file open: each is somebody who has its lock, or waits for it."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}") == str(path)
        except FileNotFoundError:
            continue
    return found


def test_a_pod_that_goes_while_its_reload_waits_is_unknown(agents: tuple[Agent, Agent]) -> None:
    """Nothing is written for it: a restore would find an endpoint in its directory."""
    one, other = agents
    one.add_pod("late")
    with other.reloading():
        lock = endpoint_lock(other.config, other.node.pod("late").endpoint_id)
    with ThreadPoolExecutor(2) as pool:
        with one.loader.lock_maps():
            removal = pool.submit(other.remove_pod, "late")
            until(lambda: openings(lock) == 1, "the removal has the lock")
            until(
                lambda: not take(other.node).filters.get((other.node.pod("late").ifname, Direction.INGRESS)), "detached"
            )
            reload = pool.submit(one.reload, "late")
            until(lambda: openings(lock) == 2, "the reload waits for the lock")
        removal.result(20)
        with pytest.raises(UnknownTarget):
            reload.result(20)
    assert not lock.parent.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pod_that_goes_while_all_is_reloaded_is_left_out(agents: tuple[Agent, Agent], workers: int) -> None:
    """Nobody has named it. Its turn has not come when another process removes it."""
    one, other = agents
    one.add_pod("late")
    reload = one.reload

    def remove_first(subject: str, **options: Any) -> Outcome:
        if subject == "health":
            other.remove_pod("late")
        if subject == "late":
            until(lambda: "late" not in [pod.name for pod in Node.open(one.node.name).pods], "the pod is gone")
        return reload(subject, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "reload", remove_first)
        outcomes = one.reload_all(workers=workers)
    assert {outcome.subject for outcome in outcomes} == {"host", "health", "pod-1"}


def test_devices_are_those_that_there_are_when_the_reload_begins(agents: tuple[Agent, Agent]) -> None:
    """One that appears while a reload of the host waits for another is loaded, and not left out."""
    one, other = agents
    lock, netns = endpoint_lock(one.config, HOST_ENDPOINT), one.node.netns(NODE)
    for agent in agents:
        agent.configure(devices=("eth0", "d0"))
    with ThreadPoolExecutor(1) as pool:
        waiting = []

        def appear(*_: object) -> None:
            waiting.append(pool.submit(other.reload, HOST))
            until(lambda: openings(lock) == 2, "the second reload waits for the lock")
            run(nsenter(netns, "ip", "link", "add", "d0", "type", "veth", "peer", "name", "p0"))

        missing = "device d0 does not exist: left out"
        assert one.reload(HOST, observer=Gate(appear, before="commit")).warnings == (missing,)
        try:
            assert waiting[0].result(20).warnings == ()
            found = {direction for name, direction in take(one.node).filters if name == "d0"}
            assert found == {Direction.INGRESS, Direction.EGRESS}
        finally:
            run(nsenter(netns, "ip", "link", "del", "d0"))
    one.configure(devices=())
    one.reload(HOST)
