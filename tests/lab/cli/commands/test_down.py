from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli.main import main
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec

pytestmark = pytest.mark.privileged


@pytest.fixture(autouse=True)
def run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    run = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    yield run
    registry.remove_all(force=True)


def test_several_and_all(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "three", "four"):
        Node.up(NodeSpec(name, pods=0))
    assert main(["down", "one", "nope", "two"]) == 1
    assert capsys.readouterr() == (
        "one is gone\ntwo is gone\n",
        "reloadlab: no lab nope; the labs are: four, three, two\n",
    )
    assert main(["down", "--all"]) == 0
    assert capsys.readouterr().out == "four is gone\nthree is gone\n"
    assert not run_directory.exists()
    assert main(["down", "--all"]) == 0
    assert capsys.readouterr().out == "there are no labs\n"


def test_lab_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    Node.up(NodeSpec("used", pods=0))
    with registry.lock_shared("used"):
        assert main(["down", "used"]) == 1
        assert "lab used is in use by process" in capsys.readouterr().err
        assert main(["down", "--force", "used"]) == 0
    assert registry.list_labs() == ()


@pytest.mark.parametrize("arguments", [[], ["one", "--all"], ["a/b"]], ids=str)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
