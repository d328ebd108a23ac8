"""Pods that are made or removed by halves: nobody delivers to them, and the next reload makes them whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from datapath.base.mapnames import endpoint_of
from datapath.errors import CompileError
from datapath.reload.outcome import Outcome
from datapath.reload.step import Plan
from lab.abi import layouts
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.scenario.gate import Gate
from lab.watch.invariants import baseline, check
from lab.watch.snapshot import take
from tests.lab.agent.test_agent import content
from tests.lab.agent.test_collector import udp
from tests.lab.labs import ROOT, ip, receives, unique_name

pytestmark = pytest.mark.privileged

KILLED = """
import os, signal, sys
from lab.agent.agent import Agent
from lab.node.node import Node
with Agent(Node.open(sys.argv[1])) as agent:
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
"""
ADDING = KILLED + "    agent.change = die; agent.add_pod('late')\n"
REMOVING = KILLED + "    agent.forget_connections = die; agent.remove_pod('pod-2')\n"


@pytest.fixture(scope="module", params=[False, True], ids=["routes-off", "routes-on"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    spec = NodeSpec(unique_name("halves"), pods=2, endpoint_routes=request.param)
    with Node(spec) as node, Agent(node) as agent:
        agent.start()
        yield agent


def kill(code: str, agent: Agent) -> None:
    done = subprocess.run([sys.executable, "-c", code, agent.node.name], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def is_found(agent: Agent, pod: str) -> bool:
    agent.node.refresh()
    return layouts.endpoint_key(agent.node.pod(pod).ipv4) in content(agent, "cilium_lxc")


def unreachable(agent: Agent, pod: str) -> list[int]:
    """Return the IP versions over which a pod does not get what pod-1 sends."""
    found = []
    for version in (4, 6):
        with ExitStack() as stack:
            sender, receiver = (udp(stack, agent.node, *each, version) for each in (("pod-1", 0), (pod, 7800)))
            sender.sendto(b"hello", receiver.getsockname())
            if not receives(receiver):
                found.append(version)
    return found


def is_up(agent: Agent, pod: str) -> bool:
    (link,) = ip(agent.node.netns(NODE), "link", "show", "dev", agent.node.pod(pod).ifname)
    return "UP" in link["flags"]


def test_a_pod_that_another_is_making_is_not_found(agent: Agent) -> None:
    """What others write into the maps meanwhile leaves it out."""
    seen = []

    def look(plan: Plan) -> Plan:
        with Agent(Node.open(agent.node.name)) as other:
            other.sync()
            other.reload("pod-2")
        seen.append(is_found(agent, "late"))
        return plan

    agent.change = look
    try:
        agent.add_pod("late")
    finally:
        agent.change = None
    assert (seen, is_found(agent, "late"), unreachable(agent, "late")) == ([False], True, [])
    agent.remove_pod("late")


def test_a_pod_that_cannot_be_loaded_goes_again(agent: Agent) -> None:
    before = baseline(agent)

    def refused(plan: Plan) -> Plan:
        raise CompileError("bpf_lxc.o", ["clang"], "error: on purpose")

    agent.change = refused
    try:
        with pytest.raises(CompileError):
            agent.add_pod("late")
    finally:
        agent.change = None
    assert "late" not in agent.subjects
    assert check(agent, before) == []


def test_a_killed_addition_is_ended_by_the_next_reload(agent: Agent) -> None:
    kill(ADDING, agent)
    agent.sync()
    assert not is_found(agent, "late")
    assert not is_up(agent, "late"), "no program would check what it sends"
    agent.reload("late")
    assert is_found(agent, "late")
    assert unreachable(agent, "late") == []
    assert agent.node.facts.unloaded == ()
    agent.remove_pod("late")


@pytest.mark.parametrize("how", ["reload", "workers", "restore", "remove"])
def test_a_killed_removal_is_undone_or_ended(agent: Agent, how: str) -> None:
    """The removal has set the pod's interface down."""
    kill(REMOVING, agent)
    agent.sync()
    assert not is_found(agent, "pod-2")
    assert not is_up(agent, "pod-2")
    if how == "remove":
        agent.remove_pod("pod-2")
        agent.add_pod("pod-2")
    elif how == "restore":
        agent.restore()
    elif how == "workers":
        assert all(hasattr(each, "attached") for each in agent.reload_many(agent.subjects, workers=2))
    else:
        steps = [step.name for step in agent.plan("pod-2").steps]
        assert "set up" in steps
        assert "set up" not in [step.name for step in agent.plan("pod-1").steps]
        agent.reload("pod-2")
    agent.node.refresh()
    assert agent.node.facts.unloaded == ()
    assert is_up(agent, "pod-2")
    assert unreachable(agent, "pod-2") == []
    assert "set up" not in [step.name for step in agent.plan("pod-2").steps]


def test_a_reload_that_fails_leaves_such_a_pod_down(agent: Agent) -> None:
    """It has no programs that would check what it sends."""
    kill(REMOVING, agent)
    agent.node.refresh()
    before = take(agent.node).datapath()

    def fail(*_: object) -> None:
        raise CompileError("bpf_lxc.o", ["clang"], "error: on purpose")

    with pytest.raises(CompileError):
        agent.reload("pod-2", observer=Gate(fail, before="commit"))
    assert not is_up(agent, "pod-2")
    assert not is_found(agent, "pod-2")
    assert take(agent.node).datapath() == before
    agent.reload("pod-2")
    assert unreachable(agent, "pod-2") == []


def test_a_removal_marks_the_pod_when_its_turn_has_come(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload that has the endpoint before it takes a mark that is there already for a former removal's."""
    lock_endpoint, others = agent.loader.lock_endpoint, list[Outcome]()

    def late(number: int, **options: Any) -> AbstractContextManager[None]:
        if not others:
            with Agent(Node.open(agent.node.name)) as other:
                others.append(other.reload("pod-2"))
        return lock_endpoint(number, **options)

    def fail(*_: object) -> None:
        raise CompileError("bpf_lxc.o", ["clang"], "error: on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(agent.loader, "lock_endpoint", late)
        patched.setattr(agent, "forget_connections", fail)
        with pytest.raises(CompileError):
            agent.remove_pod("pod-2")
    assert not is_up(agent, "pod-2")
    assert agent.node.facts.unloaded == ("pod-2",)
    agent.reload("pod-2")
    assert is_up(agent, "pod-2")
    assert unreachable(agent, "pod-2") == []


def test_a_removal_that_waited_takes_the_pod_that_is_there_now(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has removed the pod meanwhile, and made one of its name that has another number."""
    agent.add_pod("twice")
    agent.add_pod("after")
    lock_endpoint, others = agent.loader.lock_endpoint, list[int]()

    def late(number: int, **options: Any) -> AbstractContextManager[None]:
        if not others:
            with Agent(Node.open(agent.node.name)) as other:
                other.remove_pod("twice")
                others.append(other.add_pod("twice").endpoint_id)
        return lock_endpoint(number, **options)

    with monkeypatch.context() as patched:
        patched.setattr(agent.loader, "lock_endpoint", late)
        agent.remove_pod("twice")
    (number,) = others
    assert [name for name in os.listdir(agent.config.globals) if endpoint_of(name) == number] == []
    assert not (agent.config.state / str(number)).exists()
    assert "twice" not in agent.subjects
    agent.remove_pod("after")
