"""live.py: a look tells what reloads say that they did, and leaves no trace in a running node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.endpoint import Attachment
from datapath.errors import ToolMissing
from datapath.kernel.tcx import is_supported
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent
from lab.errors import LabNotFound
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.following import Follower, Reloaded, last_reload
from lab.watch.live import Hook, Look, Looker
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    spec = NodeSpec(unique_name(), pods=1, tunnel=True, devices=("eth0",), xdp="generic")
    with Node(spec) as node, Agent(node) as agent:
        agent.start()
        yield agent


def hooks(look: Look) -> dict[tuple[str, str], Hook]:
    return {(each.name, hook.hook): hook for each in look.interfaces for hook in each.hooks}


@pytest.mark.parametrize("attach", [Attachment.TC, Attachment.TCX], ids=str)
def test_hooks_have_the_programs_and_the_number_of_the_last_load(agent: Agent, attach: Attachment) -> None:
    if attach is Attachment.TCX and not is_supported():
        pytest.skip("no tcx before Linux 6.6")
    looker = Looker(Node.open(agent.node.name))
    looker.look()
    agent.configure(attach=attach)
    try:
        before = time.time_ns()
        outcomes = [agent.reload(subject) for subject in agent.subjects]
    finally:
        agent.configure(attach=Attachment.TC)
    now = looker.look()
    told = {
        (each.ifname, each.direction): (each.program, each.program_id, outcome.generation)
        for outcome in outcomes
        for each in outcome.attached
    }
    found = hooks(now)
    assert len(told) >= 8
    assert {place: (hook.program, hook.program_id, hook.generation) for place, hook in found.items()} == told
    # The two clocks were read one after the other.
    assert all(before - 10**7 <= hook.loaded_ns <= now.time_ns for hook in found.values())
    assert now.loads == max(outcome.generation for outcome in outcomes)
    assert {each.subject for each in now.interfaces if each.hooks} == {*agent.subjects} - {"xdp"}


def test_a_reload_is_told_once_when_it_is_over(agent: Agent) -> None:
    looker, follower = Looker(Node.open(agent.node.name)), Follower()
    told: list[tuple[Reloaded, ...]] = []
    assert follower.follow(looker.look()) == ()

    class Watching:
        def before(self, step: Step, work: Workspace) -> None:
            pass

        def after(self, step: Step, work: Workspace) -> None:
            look = looker.look()
            told.append(follower.follow(look))
            if step.name == "attach ingress":
                assert [(each.subject, each.pids) for each in look.under_way] == [("pod-1", (os.getpid(),))]

    outcome = agent.reload("pod-1", observer=Watching())
    told.append(follower.follow(looker.look()))
    (found,) = [each for reloads in told for each in reloads]
    (attached,) = outcome.attached
    assert (found.subject, found.generation) == ("pod-1", outcome.generation)
    assert found.programs == (attached.program_id,)
    assert follower.follow(looker.look()) == ()
    assert last_reload(looker.look()) == found


def test_a_look_holds_nothing_and_changes_nothing(agent: Agent) -> None:
    looker = Looker(Node.open(agent.node.name))
    looker.look()
    descriptors, files = os.listdir("/proc/self/fd"), state_of(agent.node.root)
    first, second = looker.look(), looker.look()
    assert os.listdir("/proc/self/fd") == descriptors
    assert state_of(agent.node.root) == files
    assert hooks(first) == hooks(second) != {}


def state_of(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, time of change and size of everything in a lab."""
    found = {}
    for at, directories, files in os.walk(root):
        for name in (*directories, *files):
            status = os.lstat(os.path.join(at, name))
            found[os.path.join(at, name)] = status.st_ino, status.st_ctime_ns, status.st_size
    return found


def test_objects_that_do_not_tell_their_load_have_none(agent: Agent) -> None:
    looker = Looker(Node.open(agent.node.name))
    path = agent.node.root / "state" / str(agent.node.pod("pod-1").endpoint_id) / "bpf_lxc.o"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:1000])
        assert hooks(looker.look())[agent.node.pod("pod-1").ifname, "ingress"].generation is None
        path.unlink()
        assert hooks(looker.look())[agent.node.pod("pod-1").ifname, "ingress"].generation is None
    finally:
        path.write_bytes(content)
    assert hooks(looker.look())[agent.node.pod("pod-1").ifname, "ingress"].generation is not None


def test_a_lab_that_is_taken_down_is_told_as_such() -> None:
    with Node(NodeSpec(unique_name(), pods=0)) as node:
        looker = Looker(Node.open(node.name))
        empty = looker.look()
        assert (hooks(empty), empty.packets, empty.loads) == ({}, {}, None)
    with pytest.raises(LabNotFound):
        looker.look()
