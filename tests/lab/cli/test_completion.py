from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli.completion import complete_labs, complete_namespaces, complete_targets
from lab.cli.main import main
from tests.lab.labs import ROOT

SPECS = {
    "box": {"cluster": "", "tunnel": False, "pods": [{"name": "web"}, {"name": "pod-1"}]},
    "two-1": {"cluster": "two", "tunnel": True, "pods": [{"name": "pod-1"}]},
    "two-2": {"cluster": "two", "tunnel": True, "pods": [{"name": "pod-1"}, {"name": "last"}]},
}


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labs as far as a completion reads them: node.json."""
    run = tmp_path / "run"
    for name, spec in SPECS.items():
        (run / name).mkdir(parents=True)
        (run / name / "node.json").write_text(json.dumps({"spec": spec}))
    for name, content in (
        ("empty", ""),
        ("other", "{}"),
        ("list", "[1]"),
        ("pods", '{"spec": {"pods": [1]}}'),
        ("binary", "\udcff"),
    ):
        (run / name).mkdir()
        (run / name / "node.json").write_bytes(content.encode(errors="surrogateescape"))
    (run / "growing").mkdir()
    monkeypatch.setenv("RELOADLAB_RUN", str(run))
    return run


@pytest.mark.usefixtures("run_directory")
def test_labs_and_clusters_are_completed() -> None:
    assert complete_labs("") == ["box", "two", "two-1", "two-2"]


@pytest.mark.usefixtures("run_directory")
def test_endpoints_follow_the_slash() -> None:
    assert complete_targets("b")[:2] == ["box", "box/"]
    assert complete_targets("box/") == ["box/health", "box/host", "box/pod-1", "box/web"]
    assert complete_targets("two/") == ["two/health", "two/host", "two/last", "two/overlay", "two/pod-1"]
    assert complete_targets("two-1/p") == ["two-1/health", "two-1/host", "two-1/overlay", "two-1/pod-1"]
    assert complete_targets("none/") == []


@pytest.mark.usefixtures("run_directory")
def test_a_command_runs_in_namespaces() -> None:
    assert complete_namespaces("box/") == ["box/health", "box/host", "box/outside", "box/pod-1", "box/web"]


def test_without_labs_nothing_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOADLAB_RUN", str(tmp_path / "none"))
    assert (complete_labs(""), complete_targets("box/")) == ([], [])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_registers_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "complete" in out
    assert "reloadlab" in out


# In real shells

SET_UP = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
LOAD = {
    "bash": 'eval "$(reloadlab completion bash)"',
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(reloadlab completion zsh)"',
    "fish": "reloadlab completion fish | source",
}


@pytest.fixture
def environment(run_directory: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which `reloadlab` is the command of this checkout."""
    command = tmp_path / "bin" / "reloadlab"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m reloadlab "$@"\n')
    command.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BASH", "ZSH", "PS1"))}
    return inherited | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "HOME": str(tmp_path),
        "RELOADLAB_RUN": str(run_directory),
    }


@pytest.fixture(params=SET_UP)
def terminal(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[int]:
    """A terminal in which a shell runs that completes our command."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe(SET_UP[shell][0], SET_UP[shell], environment)
    try:
        # The word is put together only when the shell executes the line.
        os.write(descriptor, f"{LOAD[shell]}; echo rea''dy\n".encode())
        assert "ready" in shown(descriptor, "ready")
        yield descriptor
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(descriptor)


def shown(terminal: int, words: str) -> str:
    """Return what the terminal shows, up to these words."""
    text = ""
    deadline = time.monotonic() + 30
    while words not in text and time.monotonic() < deadline:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("reloadlab rel", "reloadlab reload"),
        ("reloadlab exec box/w", "box/web"),
        ("reloadlab exec two-2/l", "two-2/last"),
        ("reloadlab reload two-1/ov", "two-1/overlay"),
        ("reloadlab down bo", "box"),
        ("reloadlab maps box ipc", "ipcache"),
        ("reloadlab reload box --work", "--workers"),
        ("reloadlab bench traf", "traffic"),
        ("reloadlab monitor box --type po", "policy-verdict"),
    ],
)
def test_tab_completes(terminal: int, line: str, completed: str) -> None:
    os.write(terminal, f"{line}\t".encode())
    assert completed in shown(terminal, completed)


def test_candidates_are_those_of_the_command(environment: dict[str, str]) -> None:
    """What the shell asks for, without a shell: nothing goes to the standard streams, and no lab is touched."""

    def candidates(line: str) -> set[str]:
        asked = environment | {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
        done = subprocess.run(
            ["sh", "-c", 'exec "$0" 8>&1 >/dev/null', "reloadlab"],
            env=asked,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return set(done.stdout.split("\n"))

    assert candidates("reloadlab do") == {"doctor", "down"}
    assert candidates("reloadlab --ver") == {"--version"}
    assert candidates("reloadlab show two") == {"two", "two-1", "two-2"}
    assert candidates("reloadlab exec box/") == {"box/health", "box/host", "box/outside", "box/pod-1", "box/web"}
    assert candidates("reloadlab up --na") == {""}
    assert candidates("reloadlab reload box --no-en") == {"--no-endpoint-routes"}
