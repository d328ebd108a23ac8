"""Our packages are importable where nothing hides them, and what hides them is named.

Each case runs in a process of its own, for what is imported stays imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reloadlab.home import home

FIRST = "enter(first=True)"
LAST = "enter()"


def entered(call: str, path: Path, *, before: str = "") -> str:
    """Return where `lab` comes from after a call of enter() with `path` on the search path, or what was raised."""
    script = f"""
import sys
sys.path.insert(0, sys.argv[1])
from reloadlab.home import Shadowed, enter
{before}
try:
    {call}
except Shadowed as error:
    print(error)
else:
    import lab
    print(lab.__file__)
"""
    argv = [sys.executable, "-P", "-c", script, str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def write(directory: Path, name: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def ours() -> str:
    return str(home() / "lab/__init__.py")


@pytest.mark.parametrize("call", [FIRST, LAST])
def test_packages_are_found_where_nothing_hides_them(tmp_path: Path, call: str, ours: str) -> None:
    assert entered(call, tmp_path) == ours


@pytest.mark.parametrize("file", ["lab/__init__.py", "datapath/__init__.py", "bpf/tool.py", "lab.py"])
def test_what_hides_ours_is_named(tmp_path: Path, file: str) -> None:
    write(tmp_path, file)
    name = Path(file).parts[0].removesuffix(".py")
    place = tmp_path / (file if file == "lab.py" else name)
    assert entered(LAST, tmp_path).startswith(f"reloadlab: {place} hides reloadlab's own package {name}: rename it, ")


@pytest.mark.parametrize("file", ["lab/__init__.py", "bpf/tool.py"])
def test_ours_come_first_where_everything_is_about_reloadlab(tmp_path: Path, file: str, ours: str) -> None:
    write(tmp_path, file)
    assert entered(FIRST, tmp_path) == ours


@pytest.mark.parametrize("file", ["bpf/program.c", "lab/notes.txt", "scenarios/__init__.py"])
def test_folder_without_python_hides_nothing(tmp_path: Path, file: str, ours: str) -> None:
    write(tmp_path, file)
    assert entered(LAST, tmp_path) == ours


def test_package_that_is_imported_already_is_named(tmp_path: Path) -> None:
    """Ours cannot take its place, not even first."""
    write(tmp_path, "lab/notes.txt")
    assert "hides reloadlab's own package lab" in entered(FIRST, tmp_path, before="import lab")
    made = "import types; sys.modules['lab'] = types.ModuleType('lab')"
    assert "hides reloadlab's own package lab" in entered(FIRST, tmp_path, before=made)


def test_search_path_is_lengthened_only_at_its_end(tmp_path: Path) -> None:
    """And once: whatever could be imported before is still the same."""
    call = "before = list(sys.path); enter(); enter(); assert sys.path in (before, [*before, sys.path[-1]])"
    assert entered(call, tmp_path) != ""
