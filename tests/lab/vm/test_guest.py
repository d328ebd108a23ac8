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
    run = f"import sys; from lab.vm.guest import run; sys.exit(run(['sh', '-c', {script!r}], '/'))"
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == (out, code)
