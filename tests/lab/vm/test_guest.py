from __future__ import annotations

import subprocess
import sys

import pytest

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
