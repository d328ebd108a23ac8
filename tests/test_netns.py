from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import netns

ROOT = Path(__file__).resolve().parents[1]


def test_the_script_of_the_python_package_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "nsenter"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    netns.program.cache_clear()
    try:
        said = subprocess.run([netns.program(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    finally:
        netns.program.cache_clear()
    assert "util-linux" in said.stdout


def test_nobody_takes_the_first_nsenter_there_is() -> None:
    files = [path for package in ("lab", "datapath", "scenarios", "tests") for path in (ROOT / package).rglob("*.py")]
    assert [str(path) for path in files if '["nsenter"' in path.read_text() and path != Path(__file__)] == []
