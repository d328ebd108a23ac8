"""The public module: every name is there, is documented, and costs nothing before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reloadlab

ROOT = Path(__file__).resolve().parents[2]
BEHIND = {"bpf", "datapath", "lab", "scenarios", "rich", "pyroute2", "nsenter", "bcc", "elftools"}


def type_checked_names() -> dict[str, str]:
    """Return the names that type checkers see, with the modules from which they come."""
    tree = ast.parse((ROOT / "reloadlab/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("name", reloadlab.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(reloadlab, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    assert type_checked_names() == reloadlab._MODULES
    assert sorted(reloadlab.__all__) == sorted(reloadlab._MODULES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Gatt'"):
        _ = reloadlab.Gatt  # type: ignore[attr-defined]


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.py")), ids=lambda path: path.name)
def test_scenarios_import_only_what_users_may(path: Path) -> None:
    assert imported_packages(path) - sys.stdlib_module_names <= {"pytest", "reloadlab", "scenarios"}


@pytest.mark.parametrize("name", ["__init__", "home", "pytest_plugin"])
def test_importing_a_module_that_pytest_loads_everywhere_loads_nothing_else(name: str) -> None:
    """At run time, that is: what type checkers read is not imported."""
    script = f"import sys, reloadlab.{name}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    argv = [sys.executable, "-P", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert BEHIND.intersection(done.stdout.split()) == set()
