"""Processes of ours find Python's own library and our packages, whatever lies beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.system.launch import ROOT, search_path

LIBRARY = os.path.dirname(os.__file__)
SHADOWS = ("pathlib", "random", "selectors", "typing")
"""Modules of the standard library that processes of ours import."""

ANSWERING = """
import pathlib, sys
import lab
from lab.system.companion import Control
control = Control(int(sys.argv[1]))
while control.receive() is not None:
    control.send({"pathlib": pathlib.__file__, "lab": lab.__file__})
"""
PARENT = """
import sys
sys.path.append(sys.argv[1])
from lab.system.companion import Child
with Child("answering", forked=False) as child:
    answer, _ = child.request({}, timeout=20)
    print(answer["pathlib"], answer["lab"])
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Like the directory of an environment: our packages, and modules that the standard library has as well."""
    site = tmp_path / "site"
    site.mkdir()
    for package in ("lab", "datapath", "bpf"):
        shutil.copytree(Path(ROOT) / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHADOWS:
        (site / f"{name}.py").write_text("raise RuntimeError('this is not the standard library')\n")
    (site / "answering.py").write_text(ANSWERING)
    return site


def test_standard_library_comes_first() -> None:
    dynamic = f"{LIBRARY}/lib-dynload"
    assert search_path(["/elsewhere", LIBRARY, dynamic, "/site"], "/ours") == [
        *(LIBRARY, dynamic, "/ours", "/elsewhere", "/site")
    ]
    assert search_path([LIBRARY, "/ours"], "/ours") == [LIBRARY, "/ours"]


def test_a_new_interpreter_beside_shadows_of_the_standard_library(site: Path) -> None:
    """As in an environment with a backport of pathlib: our packages lie in the same directory."""
    argv = [sys.executable, "-P", "-c", PARENT, str(site)]
    done = subprocess.run(argv, cwd=site, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == [f"{LIBRARY}/pathlib.py", f"{site}/lab/__init__.py"]
