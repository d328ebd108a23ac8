"""A lab whose programs another loader loads, by the real commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agent.options import Options
from lab.cli.main import main
from lab.loaders.command import LoaderCommand
from lab.node.node import Node
from lab.system.launch import module_argv
from lab.watch.invariants import check_unchanged
from lab.watch.snapshot import take
from tests.lab.labs import cli, removed, unique_name

pytestmark = pytest.mark.privileged

PIPELINE = shlex.join(module_argv("lab.loaders.pipeline"))
HELLO = 'read hello; echo \'{"ok":true,"name":"mine","supports":["pod"]}\'; '


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with removed(unique_name()) as name:
        assert main(["up", name, "--pods", "1", "--loader", PIPELINE]) == 0
        yield name


def loaded_by(lab: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Reload a pod, and return the name of its last step."""
    capsys.readouterr()
    assert main(["reload", f"{lab}/pod-1", "--json", *options]) == 0
    return str(json.loads(capsys.readouterr().out)["reloads"][0]["spans"][-1]["step"])


def test_a_lab_keeps_its_loader(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded_by(lab, capsys) == "load by pipeline"
    assert main(["reload", lab]) == 0
    assert Options.kept(Node.open(lab)).loader == LoaderCommand(Path(sys.executable).name, tuple(shlex.split(PIPELINE)))
    assert loaded_by(lab, capsys, "--loader", "builtin") == "commit"
    assert loaded_by(lab, capsys, "--defaults") == "commit"
    # Of a single endpoint nothing is kept.
    assert loaded_by(lab, capsys) == "load by pipeline"


def test_the_plan_names_the_loader(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plan", f"{lab}/pod-1", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in plan["steps"]] == ["compile", "write object", "create maps", "load by pipeline"]


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ("no-such-loader", "no loader no-such-loader: it is no program in PATH, and the names are builtin, tc"),
        ("/no/such/loader", "no loader /no/such/loader: /no/such/loader is no program that can be run"),
        ("sh -c 'exit 3'", "loader sh: ended with exit code 3"),
        ("sh -c 'read h; echo hi; sleep 100'", "loader sh: answered 'hi', which is not JSON"),
        (f"bash -c {shlex.quote(HELLO + 'read r; sleep 100')}", "loader mine: no answer within 0.4 s"),
        (f"bash -c {shlex.quote(HELLO + 'read r; kill -9 $$')}", "loader mine: was killed by SIGKILL"),
        (f"bash -c {shlex.quote(HELLO + 'yes >&2')}", "loader mine: no answer within 0.4 s: y"),
    ],
)
def test_a_bad_loader_is_one_line_and_the_old_programs_stay(
    lab: str, loader: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELOADLAB_LOADER_TIMEOUT", "0.4" if "within 0.4 s" in said else "60")
    node = Node.open(lab)
    before, kept = take(node), Options.kept(node)
    capsys.readouterr()
    assert main(["reload", f"{lab}/pod-1", "--loader", loader]) == (2 if said.startswith("no loader") else 1)
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("reloadlab: ")
    assert error.count("\n") == 1
    assert check_unchanged(before, take(node)) == []
    assert Options.kept(node) == kept
    # The object that runs is the one that lies there.
    assert sorted(path.name for path in (node.root / "state/101").glob("bpf_lxc.o*")) == ["bpf_lxc.o"]


def test_ctrl_c_ends_a_loader_that_hangs(lab: str, tmp_path: Path) -> None:
    mark = tmp_path / "asked"
    node = Node.open(lab)
    before = take(node)
    script = HELLO + f"read r; echo $$ > {mark}; sleep 100"
    argv = cli("reload", f"{lab}/pod-1", "--loader", f"bash -c {shlex.quote(script)}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (mark.exists() and mark.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "reloadlab: interrupted\n")
    assert not os.path.exists(f"/proc/{mark.read_text().strip()}")
    assert check_unchanged(before, take(node)) == []


def test_a_killed_lab_takes_its_loader_along(lab: str, tmp_path: Path) -> None:
    """SIGKILL: what the reload had begun is put right by the next one."""
    mark = tmp_path / "asked"
    script = HELLO + f"read r; echo $$ > {mark}; exec sleep 100"
    argv = cli("reload", f"{lab}/pod-1", "--loader", f"bash -c {shlex.quote(script)}")
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (mark.exists() and mark.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    loader = Path("/proc", mark.read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while loader.exists() and not loader.read_text().rpartition(")")[2].startswith(" Z"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert main(["reload", f"{lab}/pod-1"]) == 0
    node = Node.open(lab)
    assert sorted(path.name for path in (node.root / "state/101").glob("bpf_lxc.o*")) == ["bpf_lxc.o"]


def test_kinds_that_a_loader_does_not_load_are_told(lab: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["reload", f"{lab}/host", "--loader", f"bash -c {shlex.quote(HELLO + 'read stop')}"]) == 0
    said = capsys.readouterr().err
    assert said == f"reloadlab: {lab}: not supported by loader mine: host: loaded by the built-in loader (once)\n"
