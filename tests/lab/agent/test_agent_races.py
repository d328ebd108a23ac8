"""Several commands at once, each a process: none of them undoes what another does, and the node ends in one state."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from datapath.kernel.hooks import Direction
from datapath.kernel.map import open_pin
from lab.abi import layouts
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.invariants import baseline, check
from lab.watch.snapshot import take
from tests.exhaustive import EXHAUSTIVE
from tests.lab.labs import cli, killed_at, python, removed, start, unique_name
from tests.lab.nodes import differences

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

PODS = """
import sys
from lab.agent.agent import Agent
from lab.node.node import Node
with Agent(Node.open(sys.argv[1])) as agent:
    for number in range(int(sys.argv[3])):
        agent.add_pod(f"{sys.argv[2]}-{number}")
        if number:
            agent.remove_pod(f"{sys.argv[2]}-{number - 1}")
"""
ROUNDS = 5


@pytest.fixture
def name() -> Iterator[str]:
    """A node that is up and loaded."""
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    with removed(unique_name()) as name:
        with Agent(Node.up(NodeSpec(name, pods=1, tunnel=True))) as agent:
            agent.start()
        yield name


def known_pods(node: Node) -> set[str]:
    """Return the pods of a node that its maps know."""
    with open_pin(node.datapath_config().globals / "cilium_lxc") as pinned:
        keys = {key for key, _ in pinned.items()}
    return {pod.name for pod in node.pods if layouts.endpoint_key(pod.ipv4).ljust(len(next(iter(keys))), b"\0") in keys}


def test_pods_come_and_go_by_two_processes_while_a_third_reloads(name: str) -> None:
    one, two = python(PODS, name, "left", str(ROUNDS)), python(PODS, name, "right", str(ROUNDS))
    reloads = 0
    while one.poll() is None or two.poll() is None:
        with start(
            cli("reload", *(f"{name}/{subject}" for subject in ("pod-1", "health", "host", "overlay")))
        ) as process:
            _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, "")
        reloads += 1
    assert [one.communicate()[1], two.communicate()[1]] == ["", ""]
    assert reloads > 0
    node = Node.open(name)
    pods = {"pod-1", f"left-{ROUNDS - 1}", f"right-{ROUNDS - 1}"}
    assert {pod.name for pod in node.pods} == pods
    assert known_pods(node) == pods
    attached = {device for device, _ in take(node).filters}
    assert {pod.ifname for pod in node.pods} <= attached


def test_reload_waits_for_the_switch_of_another_process(name: str) -> None:
    """Both know the node as it was before: whoever comes second loads programs for what the first has made of it."""
    with Agent(Node.open(name)) as late, Agent(Node.open(name)) as first:
        first.set_mtu(1400)
        first.set_tunnel_port(9000)
        assert late.config.node.mtu == 1500
        late.reload("pod-1")
        assert late.config.node == first.config.node
        assert (late.config.node.mtu, late.config.node.tunnel_port) == (1400, 9000)
        first.set_endpoint_routes(True)
        late.reload("pod-1")
        assert late.endpoint_routes
        assert late.node.endpoint("pod-1").require_egress_prog


def test_two_switches_at_once_end_in_one_mode(name: str) -> None:
    processes = [start(cli("reload", name, "--mtu", str(mtu))) for mtu in (1400, 1450)]
    processes += [start(cli("reload", name, "--endpoint-routes")), start(cli("reload", name, "--tunnel-port", "9000"))]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == [""] * len(processes)
    node = Node.open(name)
    assert node.spec.mtu in (1400, 1450)
    assert (node.spec.endpoint_routes, node.spec.tunnel_port) == (True, 9000)
    filters = take(node).filters
    for pod in (node.facts.health, *node.pods):
        assert {direction for device, direction in filters if device == pod.ifname} == set(Direction)


def queues(path: Path, pid: int) -> bool:
    """Tell whether a process waits for the fair lock of this path: it holds the queue until it has the lock itself."""
    queue = path.with_name(f"{path.name}.queue").stat()
    file = f"{os.major(queue.st_dev):02x}:{os.minor(queue.st_dev):02x}:{queue.st_ino}"
    # "1: FLOCK  ADVISORY  WRITE 1234 00:2a:77 0 EOF", see proc_locks(5).
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1:2] == ["FLOCK"] and words[4:6] == [str(pid), file] for words in locks)


def test_cancelled_reload_does_not_wait_for_a_switch(name: str) -> None:
    holder = python(
        "import sys, time\nfrom lab.agent.agent import Agent\nfrom lab.node.node import Node\n"
        "with Agent(Node.open(sys.argv[1])) as agent, agent._mode.take(exclusive=True):\n"
        "    print(flush=True)\n    time.sleep(120)\n",
        name,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with start(cli("reload", f"{name}/pod-1")) as process:
            deadline = time.monotonic() + 30
            while not queues(Node.open(name).datapath_config().state / "mode.lock", process.pid):
                assert process.poll() is None, "it did not wait"
                assert time.monotonic() < deadline, "it does not wait for the mode"
                time.sleep(0.01)
            process.terminate()
            assert (process.communicate(timeout=10)[1], process.returncode) == ("reloadlab: interrupted\n", 130)
        holder.kill()


ADD, REMOVE = "add_pod", "remove_pod"
PLACES = {
    (ADD, "sendto"): (1, 4, 2, 6),
    (ADD, "bpf"): (9, 40, 130, 1, 90),
    (ADD, "rename"): (1, 4, 2),
    (REMOVE, "sendto"): (1, 3, 2),
    (REMOVE, "bpf"): (6, 12, 1),
    (REMOVE, "unlink"): (1, 3, 5),
}
KILLS = [(*what, nth) for what, places in PLACES.items() for nth in (places if EXHAUSTIVE else places[:2])]
"""A process that adds or removes a pod is killed at these calls, the first two of a kind or with EXHAUSTIVE all."""


def come_or_go(what: str, name: str) -> None:
    with Agent(Node.open(name)) as agent:
        (agent.add_pod if what == ADD else agent.remove_pod)("late")


def test_killed_while_a_pod_comes_or_goes(name: str) -> None:
    """Whatever a killed process has left: the next one that removes the pod leaves nothing of it."""
    wrong, survived = [], []
    with Agent(Node.open(name)) as agent:
        before = baseline(agent)
    for code, call, nth in KILLS:
        with Agent(Node.open(name)) as agent:
            if code == REMOVE:
                agent.add_pod("late")
        if not killed_at(call, nth, partial(come_or_go, code, name)):
            survived.append((code, call, nth))
        with Agent(Node.open(name)) as agent:
            agent.sync()
            # Nobody delivers to a pod that is not whole.
            whole = {pod.name for pod in agent.node.pods} - {*agent.node.facts.unloaded}
            assert known_pods(agent.node) == whole
            if "late" in agent.subjects:
                agent.reload("late")
                agent.remove_pod("late")
            wrong += [f"{code} killed at {call} {nth}: {found}" for found in check(agent, before)]
            wrong += [f"{code} killed at {call} {nth}: {found}" for found in differences(name)]
            pins = take(agent.node).pins.keys() ^ before.snapshot.pins.keys()
            wrong += [f"{code} killed at {call} {nth}: pin {found}" for found in pins]
    assert wrong == []
    killed = {(code, call) for code, call, nth in KILLS if (code, call, nth) not in survived}
    assert killed == {(code, call) for code, call, _ in KILLS}, survived
