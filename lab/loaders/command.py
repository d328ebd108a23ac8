"""Which loader is meant: a name, or a command with its arguments."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import WrongCall
from lab.system.launch import module_argv
from lab.system.pace import slowness

BUILTIN = "builtin"
"""The name of our own pipeline, in the lab's own process."""

TC = "tc"
"""The name of the loader around tc (lab/loaders/tc.py)."""

TIMEOUT_VARIABLE = "RELOADLAB_LOADER_TIMEOUT"
"""Environment variable: seconds in which a loader has to answer."""

TIMEOUT = 60.0

_PROJECT = "pyproject.toml"
_TABLE = ("tool", "reloadlab", "loaders")


class BadLoader(WrongCall):
    """A name or command by which no loader is found."""


@dataclass(frozen=True, slots=True)
class LoaderCommand:
    """The command of a loader, and what it is called until it says its own name."""

    name: str
    argv: tuple[str, ...]


def find_loader(text: str, directory: Path | None = None) -> LoaderCommand | None:
    """Return the command of a loader by name or as it is spelled; None for our own pipeline. BadLoader.

    Names are `builtin`, `tc`, and those of `[tool.reloadlab.loaders]` in the pyproject.toml of `directory` (the current
    one) or above it. Anything else is a command in the form of a shell, without a shell. Paths are relative to the file
    that has them; `~` is the caller's home.
    """
    here = Path.cwd() if directory is None else directory
    if text == BUILTIN:
        return None
    if text == TC:
        return LoaderCommand(TC, tuple(module_argv("lab.loaders.tc")))
    project, named = _project_loaders(here)
    if text in named:
        return LoaderCommand(text, _resolved(text, named[text], project))
    try:
        argv = shlex.split(text)
    except ValueError as error:
        raise BadLoader(f"--loader {text}: {error}") from error
    if not argv or not argv[0]:
        raise BadLoader(f"--loader {text!r}: name a loader, or give a command")
    if "/" not in argv[0] and shutil.which(argv[0]) is None:
        known = ", ".join((BUILTIN, TC, *sorted(named)))
        raise BadLoader(f"no loader {argv[0]}: it is no program in PATH, and the names are {known}")
    return LoaderCommand(os.path.basename(argv[0]), _resolved(argv[0], argv, here))


def given_loader(text: str | None) -> LoaderCommand | None:
    """Return what `find_loader` returns of an option's value; None as well if it was not given."""
    return None if text is None else find_loader(text)


def answer_seconds() -> float:
    """Return the seconds in which a loader has to answer; BadLoader if the environment says no number."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT * slowness()
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadLoader(f"{TIMEOUT_VARIABLE} is {text!r}, not a number of seconds")
    return seconds


def _resolved(name: str, argv: list[str], directory: Path) -> tuple[str, ...]:
    """Return a command whose program is found from wherever it is started; BadLoader if a path leads to none."""
    program = argv[0]
    if "/" in program:
        program = os.path.abspath(directory / os.path.expanduser(program))
        if shutil.which(program) is None:
            raise BadLoader(f"no loader {name}: {program} is no program that can be run")
    return (program, *argv[1:])


def _project_loaders(directory: Path) -> tuple[Path, Mapping[str, list[str]]]:
    """Return the directory of the project, and the loaders that its pyproject.toml names; none without one."""
    import tomllib  # every command imports this module, and few read such a file

    for place in (directory, *directory.parents):
        path = place / _PROJECT
        try:
            with path.open("rb") as file:
                document = tomllib.load(file)
        except FileNotFoundError:
            continue
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadLoader(f"{path}: {error}") from error
        table = document
        for depth, key in enumerate(_TABLE, 1):
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise BadLoader(f"{path}: {'.'.join(_TABLE[:depth])} is no table")
        for name, argv in table.items():
            if not (isinstance(argv, list) and argv and all(isinstance(word, str) and word for word in argv[:1])):
                raise BadLoader(f'{path}: loader {name} is no list of words such as ["./loader", "--verbose"]')
            if not all(isinstance(word, str) for word in argv):
                raise BadLoader(f"{path}: loader {name} has words that are no text")
        return place, table
    return directory, {}
