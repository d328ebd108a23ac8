"""Files of a lab that are damaged: every command says so in one line, and `down` removes the lab."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.build.compile import probe_compiler
from datapath.errors import ToolMissing
from lab.cli.main import main
from lab.node import registry
from lab.node.status import FACTS

pytestmark = pytest.mark.privileged

LAB = "hurt"
COMMANDS = [
    ("show", LAB),
    ("exec", f"{LAB}/pod-1", "--", "true"),
    ("policy", LAB),
    ("maps", LAB, "lxc"),
    ("gc", LAB),
    ("monitor", LAB),
    ("plan", f"{LAB}/pod-1"),
    ("reload", LAB),
]


@pytest.fixture
def run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    run = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv(registry.RUN_VARIABLE, str(run))
    yield run
    registry.remove_all(force=True)
    assert not run.exists()


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line with which a command failed."""
    capsys.readouterr()
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("reloadlab: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("content", ["{", '{"version": 99}'], ids=["damaged", "another version"])
def test_every_command_tells_damaged_facts(
    run_directory: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    assert main(["up", "--name", LAB, "--pods", "1", "--no-programs"]) == 0
    (run_directory / LAB / FACTS).write_text(content)
    for command in COMMANDS:
        line = refused(capsys, *command)
        assert f"lab {LAB} is broken (node.json" in line, command
        assert f"to remove it: reloadlab down {LAB}" in line
    assert main(["ls"]) == 0
    shown = capsys.readouterr().out.splitlines()[1]
    assert shown.split()[:2] == [LAB, "broken"]
    assert f"reloadlab down {LAB} removes it (node.json" in shown
    assert main(["ls", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["reason"].startswith("node.json")
    assert main(["down", LAB]) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"library": [7]}', b'"\xff"'], ids=repr)
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("state/options.json", ("reload", LAB)),
        ("state/options.json", ("plan", f"{LAB}/pod-1")),
        ("state/policies.json", ("policy", LAB)),
        ("state/policies.json", ("reload", LAB)),
        ("state/generation", ("reload", f"{LAB}/pod-1")),
        ("state/101/connections", ("reload", f"{LAB}/pod-1")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_damaged_files_are_told_by_their_paths(
    loaded: Path, capsys: pytest.CaptureFixture[str], file: str, command: tuple[str, ...], content: bytes
) -> None:
    path = loaded / LAB / file
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        if file.endswith("generation") and not content:
            assert main(command) == 0, "a new file is empty until the first number is in it"
        elif file.endswith("connections"):
            assert main(command) == 0, "a damaged note costs the connections of a replaced map, not every reload"
            assert f"{path} is damaged: " in capsys.readouterr().err
            assert path.read_bytes() == before, "the reload has written it anew"
        else:
            assert f"{path} is damaged: " in refused(capsys, *command)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Path]:
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    run = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.RUN_VARIABLE, str(run))
        assert main(["up", "--name", LAB, "--pods", "1"]) == 0
        yield run
        registry.remove_all(force=True)
