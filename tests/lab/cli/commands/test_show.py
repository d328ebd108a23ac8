from __future__ import annotations

import json
import os

import pytest

from datapath.kernel import links
from datapath.kernel.links import AttachType
from datapath.kernel.netns import enter
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec, PodSpec
from tests.datapath.support import NEEDS_TCX, TCX_NEXT, program
from tests.lab.labs import unique_name

BPF_F_BEFORE = 8

pytestmark = pytest.mark.privileged


def test_drawing_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        assert main(["show", node.name]) == 0
        assert node.pods[0].ifname in capsys.readouterr().out
        assert main(["show", node.name, "--json"]) == 0
        assert [shown["lab"] for shown in json.loads(capsys.readouterr().out)] == [node.name]


def test_labels_of_pods_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    web = PodSpec("web", labels=frozenset({"app=web", "tier=front"}))
    with Node(NodeSpec(unique_name(), pods=(web, PodSpec("bare")))) as node:
        assert main(["show", node.name]) == 0
        identities = [pod.identity for pod in node.pods]
    lines = [line for line in capsys.readouterr().out.splitlines() if " identity " in line]
    assert [line.partition("identity ")[2] for line in lines] == [
        "4",
        f"{identities[0]}  app=web  tier=front",
        str(identities[1]),
    ]


@NEEDS_TCX
def test_a_tcx_program_of_others_is_shown_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Before ours, whichever way that is attached."""
    with Node(NodeSpec(unique_name(), pods=1)) as node, program(TCX_NEXT, name="acme_first") as foreign:
        pod = node.pods[0]
        with enter(node.netns(NODE)):
            link = links.create(foreign, pod.ifindex, AttachType.TCX_INGRESS, flags=BPF_F_BEFORE)
        try:
            for attach in ("tc", "tcx"):
                assert main(["reload", f"{node.name}/pod-1", "--attach", attach]) == 0
                assert "acme_first" in capsys.readouterr().err
                assert main(["show", node.name, "--json"]) == 0
                (shown,) = json.loads(capsys.readouterr().out)
                (found,) = (each["ingress"] for each in shown["interfaces"] if each["ifindex"] == pod.ifindex)
                assert [words.partition(" ")[0].partition("-")[0] for words in found] == [
                    "acme_first",
                    "cil_from_container",
                ]
                assert main(["show", node.name]) == 0
                lines = capsys.readouterr().out.splitlines()
                assert any("ingress acme_first" in line and "cil_from_container" in line for line in lines)
        finally:
            os.close(link)


@pytest.mark.parametrize(
    ("name", "code", "words"), [("a/b", 2, "invalid lab name 'a/b'"), ("no-such-lab", 1, "no lab no-such-lab;")]
)
def test_bad_arguments(name: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
