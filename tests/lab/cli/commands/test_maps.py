from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.cli.columns import columns
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
        assert main(["reload", name, "host"]) == 0
        yield name


def test_names_are_those_of_the_readers() -> None:
    assert set(NAMES) == set(MAPS)


def test_columns() -> None:
    assert columns([]) == []
    rows: list[dict[str, object]] = [
        {"a_b": "x", "n": 5, "ok": True, "l": []},
        {"a_b": None, "n": 10, "ok": False, "l": ["p", "q"]},
    ]
    assert columns(rows) == ["A B   N  OK   L", "x     5  yes  -", "-    10  no   p q"]


@pytest.mark.privileged
@pytest.mark.parametrize("name", ["ipcache", "lxc"])
def test_columns_and_json_say_the_same(lab: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maps", lab, name, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["maps", lab, name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert all(str(next(iter(row.values()))) in line for row, line in zip(rows, lines[1:], strict=True))


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["policy", "nope"], 1, "has no endpoint nope"),
        (["lxc", "--limit", "3"], 1, "--limit is for ct"),
        (["lxc", "pod-1"], 1, "lxc is one map for all endpoints"),
        (["policy", "pod-1"], 1, "has no map cilium_policy_00101"),
    ],
    ids=str,
)
def test_errors(lab: str, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maps", lab, *arguments]) == code
    assert words in capsys.readouterr().err
