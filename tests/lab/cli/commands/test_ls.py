from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.node import marks, registry
from lab.node.node import Node
from lab.node.topology import NodeSpec

pytestmark = pytest.mark.privileged


@pytest.fixture(autouse=True)
def run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    run = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    yield run
    registry.remove_all(force=True)


def test_labs_in_every_state(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "there are no labs; make one: reloadlab up\n"
    Node.up(NodeSpec("fine", pods=3, endpoint_routes=True, tunnel=True))
    marks.add(run_directory / "killed")
    (run_directory / "killed").mkdir()
    with registry.claim("growing"):
        assert main(["ls"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert main(["ls", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert lines[1] == ["fine", "up", "3", "endpoint", "tunnel", "-"]
    assert lines[2][:2] == ["growing", "starting"]
    assert lines[3][:2] == ["killed", "broken"]
    assert "reloadlab down killed removes it" in " ".join(lines[3])
    assert [(lab["lab"], lab["status"], lab["pods"]) for lab in document] == [
        ("fine", "up", 3),
        ("growing", "starting", None),
        ("killed", "broken", None),
    ]
