"""Policies that several processes change at once, while others reload: what is stored and what the maps hold agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.errors import Cancelled
from lab.agent import enforcement
from lab.agent.agent import Agent
from lab.agent.cluster import Cluster, cluster_specs
from lab.agent.exclusion import NestedReload
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.scenario.gate import Gate
from lab.system.signals import SignalEvent
from lab.watch import mapview
from tests.lab.labs import cli, python, removed, start, unique_name

pytestmark = pytest.mark.privileged

ROUNDS = 10


@pytest.fixture
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1))
        with Agent(Node.open(name)) as agent:
            agent.start()
        yield name


def document(*identities: int) -> dict[str, object]:
    return {"name": "a", "endpoint": "pod-1", "ingress": [{"fromIdentities": list(identities)}]}


def check(agent: Agent) -> None:
    """Raise AssertionError unless the policy map of pod-1 is what is stored; nobody changes either meanwhile."""
    pod = agent.node.pod("pod-1")
    wanted = enforcement.wanted(agent.node, pod.endpoint_id, enforcement.stored(agent.node) or ())
    rows = mapview.policy(agent.node, "pod-1")
    assert {(row["identity"], row["direction"]) for row in rows} == {
        (key.identity, "egress" if key.egress else "ingress") for key in wanted
    }


def apply_often(name: str, first: int) -> None:
    """Apply policies of one's own again and again; they hold as long as nobody else comes."""
    with Agent(Node.open(name)) as agent:
        for number in range(ROUNDS):
            mine = document(*range(first, first + 50 + number))
            agent.apply_policies(mine)
            with agent.updating():
                check(agent)
                agent.apply_policies(mine)
                assert enforcement.document_of(agent.node) == mine
                check(agent)


def reload_often(name: str) -> None:
    """Reload the pod, with another policy map each time: copied from the one that it replaces."""
    with Agent(Node.open(name)) as agent:
        for number in range(ROUNDS):
            agent.configure(defines=(("POLICY_MAP_SIZE", "4096"),) if number % 2 else ())
            agent.reload("pod-1")
            with agent.updating():
                check(agent)


def test_processes_take_turns(lab: str) -> None:
    """Two that apply and one that reloads; each finds what it did whole, or undone by somebody's next."""
    code = "from tests.lab.agent import test_policy_races as races; "
    calls = [f"races.apply_often({lab!r}, 1000)", f"races.apply_often({lab!r}, 9000)", f"races.reload_often({lab!r})"]
    with ExitStack() as stack:
        running = [stack.enter_context(python(code + call)) for call in calls]
        for process in running:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    with Agent(Node.open(lab)) as agent:
        check(agent)


def test_commands_at_once(lab: str, tmp_path: Path) -> None:
    """`reloadlab policy` by two users: both succeed, and one of the two documents holds, whole."""
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, first in zip(files, (1000, 9000), strict=True):
        file.write_text(json.dumps(document(*range(first, first + 400))))
    with ExitStack() as stack:
        running = [stack.enter_context(start(cli("policy", lab, str(file)))) for file in files]
        for process in running:
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode == 0
    agent = Agent(Node.open(lab))
    check(agent)
    assert enforcement.document_of(agent.node) in [json.loads(file.read_text()) for file in files]


def test_waiting_can_be_cancelled(lab: str) -> None:
    """Whoever waits for another's update gives up when told to, and has changed nothing."""
    with Agent(Node.open(lab)) as one, Agent(Node.open(lab)) as two:
        one.apply_policies(document(500))
        cancel = SignalEvent()
        cancel.set()
        with one.updating():
            for wait in (two.sync, lambda cancel: two.apply_policies(document(501), cancel=cancel)):
                with pytest.raises(Cancelled, match=r"waiting for .*maps\.lock"):
                    wait(cancel=cancel)
        assert enforcement.document_of(one.node) == document(500)
        check(one)
        two.sync(cancel=None)


def test_an_update_at_a_gate(lab: str) -> None:
    """A policy changes in the middle of a reload by the same agent, which has the maps: it does not wait for itself."""
    with Agent(Node.open(lab)) as agent:
        gate = Gate(lambda _, __: agent.apply_policies(document(500)), before="insert policy")
        agent.reload("pod-1", observer=gate)
        assert gate.passed == 1
        check(agent)
        with Agent(Node.open(lab)) as other:
            other.apply_policies([])


def test_a_reload_at_a_gate_is_refused(lab: str) -> None:
    """It would wait for the locks that its own thread holds; afterwards, and in another thread, it is none of that."""
    with Agent(Node.open(lab)) as agent:
        for subject in ("pod-1", "health"):
            gate = Gate(lambda _, __: agent.reload(subject), before="commit")  # noqa: B023 - called before the next
            with pytest.raises(NestedReload, match=f"{subject} cannot be reloaded at a gate of pod-1's reload: do it"):
                agent.reload("pod-1", observer=gate)
        agent.reload("pod-1")
        agent.reload("health")


def test_nodes_of_a_cluster_agree() -> None:
    """While somebody has one node, nobody gives the others policies that it will not have."""
    name = unique_name()[:28]
    with Cluster(cluster_specs(name, 2, pods=1)) as cluster:
        cluster.start()
        cancel = SignalEvent()
        cancel.set()
        with Agent(Node.open(cluster.node(2).name)) as other, other.updating(), pytest.raises(Cancelled):
            cluster.apply_policies(document(500), cancel=cancel)
        assert [enforcement.document_of(node) for node in cluster.nodes] == [None, None]
