"""A fault as data: a bug that is put into the lab on purpose, so that the ordinary scenarios must notice it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bpf import LIBRARY, OURS
from datapath.errors import ReloadlabError
from lab.agent.agent import Agent, Change
from lab.corpus.steps import telling

Kind = Literal["plan", "named", "c"]
KINDS: tuple[Kind, ...] = ("plan", "named", "c")

Applied = Callable[[], object]
"""Called when a fault takes effect, in whatever process the reload runs: one that never does is not exercised."""
Install = Callable[[Agent, Applied], object]
"""Gives an agent, loaded and under traffic, a fault that is no change of its plans. It calls `applied` in due time."""


class BadFault(ReloadlabError):
    """A fault that cannot be put into the lab; `name` is its name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"fault {name}: {reason}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Patch:
    """A change of one C source: the text `old`, which stands in `file` (below bpf/) exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One bug, in one of three forms: a change of plans, an installation into an agent, or patches of the C.

    `change` is applied to every plan of every agent, after the first load; where it returns an equal plan the fault
    does not apply. `install` is called once per agent instead; a scenario that makes an agent of its own hands its
    `change` on. `patches` are in the C from the first load on.

    `what` says in one line what is done wrong. `cites` names the issue or commit where the bug was real. `equivalent`
    says why nothing that a packet can meet changes, and is empty for a fault that must be caught; `idle` tells whether
    it says that the fault never takes effect. `only` are parts of
    names of the scenarios that are most likely to catch it: they are run first, the others afterwards.
    """

    name: str
    kind: Kind
    what: str
    change: Change | None = None
    install: Install | None = None
    patches: tuple[Patch, ...] = ()
    cites: tuple[str, ...] = ()
    equivalent: str = ""
    idle: bool = False
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        forms = sum((self.change is not None, self.install is not None, bool(self.patches)))
        if forms != 1:
            raise BadFault(self.name, f"it has {forms} forms: give either change, install or patches")

    def put_into(self, agent: Agent, applied: Applied) -> None:
        """Give an agent this fault; a patch of the C is no matter of agents and does nothing here."""
        if self.change is not None:
            change = self.change
            agent.change = lambda plan: telling(plan, change(plan), applied)
        if self.install is not None:
            self.install(agent, applied)

    def patched(self, directory: Path) -> Path:
        """Return a copy of our C sources in `directory`, with the patches; BadFault where one does not fit.

        The copy is held to everything that the sources promise.
        """
        library = directory / "bpf"
        shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        (library / OURS).touch()
        for patch in self.patches:
            path = library / patch.file
            text = path.read_text() if path.is_file() else ""
            if text.count(patch.old) != 1:
                raise BadFault(
                    self.name, f"its old text stands in {patch.file} {text.count(patch.old)} times, not once"
                )
            path.write_text(text.replace(patch.old, patch.new))
        return library
