from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from datapath.base.mapnames import CT_MAPS
from datapath.kernel.map import open_pin
from lab.abi.conntrack import CtEntry
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.agent.test_collector import key_of
from tests.lab.labs import removed, unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=1))
        yield name


def test_a_line_or_an_object_per_map(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", lab]) == 1
    assert capsys.readouterr().err.endswith(f"load its programs with: reloadlab reload {lab}\n")
    assert main(["reload", f"{lab}/pod-1"]) == 0
    with open_pin(Node.open(lab).datapath_config().globals / CT_MAPS[0]) as table:
        for port in range(1, 1501):
            table.update(key_of(CT_MAPS[0], port), CtEntry(lifetime=1 if port <= 1200 else (1 << 32) - 1).pack())
    capsys.readouterr()
    assert main(["gc", lab]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["lab", "map", "scanned", "deleted", "alive"]
    assert rows[1] == [lab, CT_MAPS[0], "1500", "1200", "300"]
    assert rows[2:] == [[lab, name, "0", "0", "0"] for name in CT_MAPS[1:]]
    assert main(["maps", lab, "ct", "--limit", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("protocol")
    assert [line.split()[3] for line in lines] == ["192.0.2.1:1201", "192.0.2.1:1202"]
    assert main(["gc", lab, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0] == {"lab": lab, "map": CT_MAPS[0], "scanned": 300, "deleted": 0, "alive": 300}
    assert [row["map"] for row in found] == list(CT_MAPS)


def test_no_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "nope"]) == 1
    assert "no lab nope" in capsys.readouterr().err
