from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.mapnames import CT_MAPS
from datapath.kernel.map import open_pin
from lab.abi.conntrack import CtEntry
from lab.cli.main import main
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.cache import CACHE_VARIABLE
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


def test_compiled_objects_are_kept_until_they_are_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = tmp_path / "objects"
    monkeypatch.setenv(CACHE_VARIABLE, str(objects))
    with removed(unique_name()) as name:
        assert main(["up", name, "--pods", "0", "--no-cache"]) == 0
        assert not objects.exists()
        assert main(["down", name]) == 0
        monkeypatch.setenv(CACHE_VARIABLE, str(objects))
        for _ in range(2):
            assert main(["up", name, "--pods", "0"]) == 0
            assert main(["down", name]) == 0
            assert len(list(objects.iterdir())) == 2
    capsys.readouterr()
    assert main(["gc", "--cache"]) == 0
    assert capsys.readouterr().out.startswith(f"2 objects deleted from {objects}, 0.")
    assert main(["gc", "--cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cache": str(objects), "objects": 0, "bytes": 0}
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert main(["gc", "--cache"]) == 0
    assert capsys.readouterr().out == "no objects are kept: RELOADLAB_CACHE is empty\n"
    monkeypatch.setenv(CACHE_VARIABLE, str(objects))
    objects.chmod(0o777)
    assert main(["gc", "--cache"]) == 1
    assert "others may write" in capsys.readouterr().err
    with removed(unique_name()) as name:
        assert main(["up", name, "--pods", "0"]) == 1
        assert "others may write" in capsys.readouterr().err


def test_what_to_collect_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["demo", "--cache"]):
        assert main(["gc", *arguments]) == 2
        assert "name a lab, or the compiled objects with --cache" in capsys.readouterr().err


def test_no_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "nope"]) == 1
    assert "no lab nope" in capsys.readouterr().err
