"""Where the packages behind this one lie, and how they become importable.

`bpf`, `datapath` and `lab` are names that other projects have too. An installed reloadlab therefore keeps them in a
directory of its own, outside the search path of Python, until it is asked for something: a project that merely shares
an environment with reloadlab never meets them. In a checkout they lie beside this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

INSTALLED = "_packages"
"""The directory inside this package where an installed reloadlab keeps the others; setup.py puts them there."""

NEEDED = ("bpf", "datapath", "lab")
"""The packages that everything here imports."""


class Shadowed(ImportError):
    """A package of the same name that Python finds before ours."""

    def __init__(self, name: str, place: Path) -> None:
        super().__init__(
            f"reloadlab: {place} hides reloadlab's own package {name}: "
            "rename it, or keep the suite that uses reloadlab where that package is not importable"
        )
        self.place = place


def home() -> Path:
    """Return the directory that holds bpf/, datapath/ and lab/."""
    here = Path(__file__).resolve().parent
    installed = here / INSTALLED
    return installed if installed.is_dir() else here.parent


def enter(*, first: bool = False) -> None:
    """Make the packages importable and import their tops; Shadowed if others of these names are found instead.

    With `first` ours are found before all others, which is right where everything is about reloadlab. Otherwise they
    are found last, and whatever the process could import before still means the same.
    """
    path = str(home())
    if first and sys.path[:1] != [path]:
        sys.path.insert(0, path)
    for name in NEEDED:
        _check(name, home() / name)
    if path not in sys.path:
        sys.path.append(path)
    # From now on the names are taken, whatever is put in front of the search path later.
    for name in NEEDED:
        importlib.import_module(name)


def _check(name: str, ours: Path) -> None:
    spec = _found(name)
    if spec is None:
        return
    places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or name]]
    if ours in places[:1]:
        return
    # A directory without __init__.py, such as a folder with C sources, hides nothing unless Python code lies in it.
    if spec.origin is not None or name in sys.modules or any(_has_python(place) for place in places):
        raise Shadowed(name, places[0])


def _found(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:
        # A module made by hand, without a spec.
        return ModuleSpec(name, None, origin=f"a module {name} without a file")


def _has_python(directory: Path) -> bool:
    return any(directory.rglob("*.py"))
