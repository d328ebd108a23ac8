from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.vm.guest import mounts
from tests.lab.labs import ROOT


@pytest.mark.parametrize(
    ("script", "out", "code"),
    [
        ("test -t 1 || echo no terminal; echo error >&2; exit 7", "no terminal\nerror\n", 7),
        ("kill -9 $$", "", 137),
        # An orphan that ends first is reaped, and is not taken for the command.
        ("(sh -c 'exit 3' &); sleep 0.2; echo done", "done\n", 0),
    ],
)
def test_a_command_runs_to_its_end_without_a_terminal(script: str, out: str, code: int) -> None:
    assert ran(["sh", "-c", script], "/") == (out, code)


@pytest.mark.parametrize(
    ("argv", "directory", "out", "code"),
    [
        (["no-such-command"], "/", "reloadlab: no-such-command: No such file or directory\n", 127),
        (["/etc"], "/", "reloadlab: /etc: Permission denied\n", 126),
        (["true"], "/run/of-the-host", "reloadlab: /run/of-the-host: No such file or directory\n", 127),
    ],
)
def test_a_command_that_cannot_be_run_is_one_line(argv: list[str], directory: str, out: str, code: int) -> None:
    """The first process must not end: the machine would stop without a word."""
    assert ran(argv, directory) == (out, code)


def ran(argv: list[str], directory: str) -> tuple[str, int]:
    script = f"import sys; from lab.vm.guest import run; sys.exit(run({argv!r}, {directory!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout, done.returncode


def test_what_a_kernel_does_not_have_is_not_mounted(tmp_path: Path) -> None:
    """Nobody can make a directory in sysfs: as the first process, whoever tries ends the machine with a panic."""
    (tmp_path / "sys" / "fs" / "bpf").mkdir(parents=True)
    wanted = [
        ("devpts", tmp_path / "dev" / "pts"),
        ("bpf", tmp_path / "sys" / "fs" / "bpf"),
        ("debugfs", tmp_path / "sys" / "kernel" / "debug"),
    ]
    assert list(mounts(wanted, tmp_path / "sys")) == wanted[:2]
    assert (tmp_path / "dev" / "pts").is_dir()
    assert not (tmp_path / "sys" / "kernel").exists()
