from __future__ import annotations

import json

import pytest

from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec, PodSpec
from tests.lab.labs import unique_name

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


@pytest.mark.parametrize(
    ("name", "code", "words"), [("a/b", 2, "invalid lab name 'a/b'"), ("no-such-lab", 1, "no lab no-such-lab;")]
)
def test_bad_arguments(name: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
