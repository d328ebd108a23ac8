"""Policies that are put aside while others hold come back, also if the process is killed that has put them there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from datapath.base.statefile import DamagedFile
from lab.agent import aside, enforcement
from lab.agent.agent import Agent
from lab.agent.aside import PoliciesInUse
from lab.agent.cluster import Cluster, apply_policies, cluster_specs
from lab.agent.enforcement import PolicyMapFull
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch import mapview
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


def document(*identities: int) -> list[dict[str, Any]]:
    return [{"name": "one", "endpoint": "pod-1", "ingress": [{"fromIdentities": list(identities)}]}]


OWN, OTHER, THIRD = document(300), document(400), document(500)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Node(NodeSpec(unique_name(), pods=1)) as node, Agent(node) as agent:
        agent.start()
        yield agent


def holds(agent: Agent) -> list[tuple[str, int]]:
    """Return what the policy map of the pod says."""
    rows = mapview.policy(agent.node, "pod-1")
    return sorted((row["direction"], row["identity"]) for row in rows if row["verdict"] == "allow")


def in_child(do: Callable[[], object]) -> int:
    """Do something in a forked process, which kills itself then; return how it ended."""
    pid = os.fork()
    if pid == 0:
        _serve(do)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(do: Callable[[], object]) -> NoReturn:
    try:
        do()
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


def killed_under_other_policies(*agents: Agent) -> None:
    def do() -> None:
        with ExitStack() as stack:
            for agent in agents:
                stack.enter_context(aside.put_aside(agent.node))
                with Agent(Node.open(agent.node.name)) as other:
                    other.exchange_policies(OTHER)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(do) == -signal.SIGKILL
    assert [enforcement.document_of(agent.node) for agent in agents] == [OTHER] * len(agents)


def test_they_come_back(agent: Agent) -> None:
    agent.apply_policies(OWN)
    own = holds(agent)
    with aside.put_aside(agent.node):
        agent.exchange_policies(OTHER)
        assert holds(agent) != own
        aside.take_back(agent)
    assert (enforcement.document_of(agent.node), holds(agent)) == (OWN, own)


def test_a_restore_brings_those_of_a_killed_process_back(agent: Agent) -> None:
    agent.apply_policies(OWN)
    own = holds(agent)
    killed_under_other_policies(agent)
    agent.restore()
    assert (enforcement.document_of(agent.node), holds(agent)) == (OWN, own)
    agent.apply_policies(THIRD)
    agent.restore()
    assert enforcement.document_of(agent.node) == THIRD


def test_a_node_that_never_had_any_has_none_again(agent: Agent) -> None:
    enforcement.store(agent.node, None)
    killed_under_other_policies(agent)
    agent.restore()
    assert enforcement.document_of(agent.node) is None
    # Without policies everything passes.
    assert ("ingress", 400) not in holds(agent)


def test_who_comes_next_keeps_the_nodes_own(agent: Agent) -> None:
    agent.apply_policies(OWN)
    killed_under_other_policies(agent)
    with aside.put_aside(agent.node):
        agent.exchange_policies(THIRD)
        aside.take_back(agent)
    assert enforcement.document_of(agent.node) == OWN


def test_policies_that_are_given_after_the_kill_stay(agent: Agent) -> None:
    agent.apply_policies(OWN)
    killed_under_other_policies(agent)
    agent.apply_policies(THIRD)
    agent.restore()
    assert enforcement.document_of(agent.node) == THIRD


def test_policies_that_one_node_refuses_leave_all_nodes_what_is_kept() -> None:
    """The second has a policy map that is too small; then it takes others, and both forget what was kept."""
    with Cluster(cluster_specs(unique_name()[:28], 2, pods=1)) as cluster:
        cluster.agent(2).configure(defines=(("POLICY_MAP_SIZE", "8"),))
        cluster.start()
        cluster.apply_policies(OWN)
        killed_under_other_policies(*cluster.agents)
        with pytest.raises(PolicyMapFull):
            cluster.apply_policies(document(*range(600, 608)))
        assert [enforcement.document_of(node) for node in cluster.nodes] == [OTHER, OTHER]
        for agent in cluster.agents:
            agent.restore()
        assert [enforcement.document_of(node) for node in cluster.nodes] == [OWN, OWN]
        killed_under_other_policies(*cluster.agents)
        cluster.apply_policies(THIRD)
        for agent in cluster.agents:
            agent.restore()
        assert [enforcement.document_of(node) for node in cluster.nodes] == [THIRD, THIRD]


def test_a_restore_meanwhile_leaves_the_others_in_force(agent: Agent) -> None:
    """As that of an upgrade, which runs under them."""
    agent.apply_policies(OWN)
    with aside.put_aside(agent.node):
        agent.exchange_policies(OTHER)
        agent.restore()
        assert enforcement.document_of(agent.node) == OTHER
        aside.take_back(agent)
    assert enforcement.document_of(agent.node) == OWN


@pytest.mark.parametrize("whole", [False, True], ids=["node", "cluster"])
def test_nobody_gives_others_meanwhile(agent: Agent, whole: bool) -> None:
    """They would be lost when the process ends that has put the node's own aside."""
    agent.apply_policies(OWN)
    with aside.put_aside(agent.node):
        agent.exchange_policies(OTHER)
        with pytest.raises(PoliciesInUse, match="is being upgraded by another process"):
            apply_policies([agent], THIRD) if whole else agent.apply_policies(THIRD)
        assert enforcement.document_of(agent.node) == OTHER
        aside.take_back(agent)
    assert enforcement.document_of(agent.node) == OWN


def test_one_process_at_a_time(agent: Agent) -> None:
    with (
        aside.put_aside(agent.node),
        pytest.raises(PoliciesInUse, match=f"{agent.node.name} is being upgraded by another process"),
        aside.put_aside(agent.node),
    ):
        pass
    aside.take_back(agent)


def test_a_damaged_file_is_named(agent: Agent) -> None:
    path = agent.config.state / "policies.aside.json"
    path.write_text("[]")
    with pytest.raises(DamagedFile, match=r"policies.aside.json is damaged: it has no policies"):
        aside.take_back(agent)
    path.unlink()
