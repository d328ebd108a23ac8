"""The scripts of tools/, run with a stand-in for sudo."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which the caller is not root, and sudo prints what it was asked for."""
    for name, script in (("id", "echo 1000"), ("sudo", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_sudo_keeps_every_variable_of_ours(path: str) -> None:
    done = subprocess.run(
        [ROOT / "tools" / "as-root", "command", "word"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kept, *command = done.stdout.splitlines()
    option, _, names = kept.partition("=")
    assert option == "--preserve-env"
    assert set(names.split(",")) == {"CI", "RELOADLAB_CILIUM_BPF", "RELOADLAB_CLANG", "RELOADLAB_RUN"}
    assert command == ["PYTHONDONTWRITEBYTECODE=1", "command", "word"]
