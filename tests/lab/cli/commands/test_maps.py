from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.cli.commands.maps import NAMES
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch.mapview import MAPS
from tests.lab.labs import removed, unique_name


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1))
        assert main(["reload", f"{name}/host"]) == 0
        yield name


def test_names_are_those_of_the_readers() -> None:
    assert set(NAMES) == set(MAPS)


@pytest.mark.privileged
@pytest.mark.parametrize("name", ["ipcache", "lxc"])
def test_columns_and_json_say_the_same(lab: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maps", lab, name, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["maps", lab, name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert all(str(list(row.values())[1]) in line for row, line in zip(rows, lines[1:], strict=True))


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{lab}/nope", "policy"], 1, "has no endpoint nope"),
        (["{lab}", "lxc", "--limit", "3"], 2, "--limit is for ct"),
        (["{lab}/pod-1", "lxc"], 2, "lxc is one map for all endpoints"),
        (["{lab}/pod-1", "policy"], 1, "has no map cilium_policy_00101"),
    ],
    ids=str,
)
def test_errors(lab: str, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maps", *(word.format(lab=lab) for word in arguments)]) == code
    assert words in capsys.readouterr().err
