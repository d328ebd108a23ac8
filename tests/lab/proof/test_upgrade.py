"""Labs that are up go to another release and back: nothing is lost by ours, and what a broken way loses is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.agent import enforcement
from lab.agent.agent import Agent
from lab.agent.options import Options
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import removed, unique_name
from tests.lab.proof.refused import refused

pytestmark = pytest.mark.privileged

OTHER = ["--to", "builtin", "-D", "RENUMBERED_SLOTS=1", "-D", "POLICY_VALUE_PAD=1"]
"""Our own pipeline again, with programs that are numbered otherwise, and policy entries that must be written anew."""

POLICY = [{"name": "one", "endpoint": "pod-1", "ingress": [{"fromEntities": ["world"]}]}]


@contextmanager
def lab() -> Iterator[str]:
    """Yield the name of a lab of one pod that has a policy."""
    with removed(unique_name()) as name:
        with Agent(Node.up(NodeSpec(name, pods=1))) as agent:
            agent.start()
            agent.apply_policies(POLICY)
        yield name


def test_there_and_back_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its options are those of before, and the policies that it had hold again."""
    with lab() as name:
        node = Node.open(name)
        assert main(["upgrade", name, *OTHER, "--back", "--order", "pods", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        ways = list(dict.fromkeys((call["round"], call["reload"]) for call in document["calls"]))
        to = "our own C -D RENUMBERED_SLOTS=1 -D POLICY_VALUE_PAD=1"
        assert ways == [(1, f"{name} to {to}"), (2, f"{name} back")]
        assert (document["findings"], document["lost"]) == ([], 0)
        attached = [call["call"].split()[1] for call in document["calls"] if call["call"].startswith("RTM_NEWTFILTER")]
        assert attached[:3] == [node.pod("health").ifname, node.pod("pod-1").ifname, "cilium_host"]
        assert Options.kept(node) == Options()
        assert enforcement.document_of(node) == POLICY


@pytest.mark.parametrize(
    ("at", "last"),
    [("attach ingress", "begun anew"), ("RTM_NEWTFILTER cilium_host *", "rolled back")],
    ids=["step", "call"],
)
def test_killed_on_its_way(at: str, last: str, capsys: pytest.CaptureFixture[str]) -> None:
    with lab() as name:
        back = ["--back"] if last == "rolled back" else []
        assert main(["upgrade", name, *OTHER, "--at", at, *back, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["findings"], document["lost"]) == ([], 0)
        ways = list(dict.fromkeys(call["reload"] for call in document["calls"]))
        assert len(ways) == 2
        assert ways[0].endswith(f"killed at {at}")
        assert ways[1].endswith(last)
        assert bool(Options.kept(Node.open(name)).defines) == (not back)


def test_maps_that_are_filled_too_late_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Packets that the policy lets pass are denied from the call on that brings the new programs."""
    with lab() as name:
        assert main(["upgrade", name, *OTHER, "--break", "fill-late", "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["lost"] > 0
        lost = [finding for finding in document["findings"] if finding["invariant"] == 7]
        assert any("Policy denied" in finding["what"] for finding in lost)
        at = [document["calls"][finding["call"]]["call"] for finding in lost if finding["call"] is not None]
        assert at


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nth", "2"], "--nth counts how often"),
        (["--to", "builtin"], "--to names one directory"),
        (["--at", "no such step"], "no step or call like no such step"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with lab() as name:
        assert said in refused(["upgrade", name, "--to", "builtin", *argv], capsys)


def test_a_lab_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no lab nowhere" in refused(["upgrade", "nowhere", "--to", "builtin"], capsys)
