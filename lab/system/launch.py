"""Starting a module of ours in an interpreter of its own, with Python's own library in front of everything else.

Distributions exist that install a module under a name of the standard library (`pathlib`, `argparse`): harmless behind
it on the search path, fatal before it. A directory on PYTHONPATH comes before it, and so does the current directory
unless `-P` is given: what we start neither needs the first nor looks into the second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory that holds the packages lab, datapath and bpf."""


def module_argv(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` as `python -m` would, with our packages in place."""
    return [sys.executable, "-P", os.path.abspath(__file__), ROOT, module, *arguments]


def search_path(present: Iterable[str], root: str) -> list[str]:
    """Return a search path: the standard library, then `root`, then what else is present, each in its order."""
    library = os.path.dirname(os.__file__)
    path = list(present)
    own = [place for place in path if place in (library, os.path.join(library, "lib-dynload"))]
    return [*own, root, *(place for place in path if place not in (*own, root))]


def main() -> None:
    """Run the module that the arguments name, with the rest of them as its own."""
    root, module = sys.argv[1:3]
    sys.path[:] = search_path(sys.path, root)
    # Not before the path is right.
    from runpy import run_module

    sys.argv[:3] = [module]
    run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
