"""The two sides of `bench ab`: libraries, revisions, macros, loaders, ways to attach."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from bpf import LIBRARY
from datapath.endpoint import Attachment
from datapath.errors import ToolError, WrongCall
from lab.agent.options import check_library, parse_macro
from lab.loaders.command import LoaderCommand, find_loader
from lab.results.subject import git, subject_of
from lab.system import tools
from lab.system.scratch import scratch

SIDES = ("A", "B")
"""What two sides are called in a result."""

OWN = "own"
"""The word for our own sources without anything changed."""


class BadSide(WrongCall):
    """Words from which no side can be made."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"side {text!r}: {why}")


@dataclass(frozen=True, slots=True)
class Side:
    """One side: `library` None stands for our own sources, `loader` None for the built-in one.

    `sleep` are seconds that are added to each of its reloads, a slow-down whose size is known.
    `revision` names a revision of the C sources, until `checked_out` has put its sources in the place of `library`.
    """

    text: str
    library: Path | None = None
    revision: str | None = None
    defines: tuple[tuple[str, str], ...] = ()
    loader: LoaderCommand | None = None
    attach: Attachment = Attachment.TC
    sleep: float = 0.0

    def subject(self) -> dict[str, str]:
        """Return what a result says of the side."""
        loader = None if self.loader is None else shlex.join(self.loader.argv)
        library = None if self.revision is not None else self.library
        subject = subject_of(
            library=library,
            sources=self.library,
            defines=self.defines,
            loader=loader,
            attach=self.attach,
            revision=self.revision,
        )
        return subject | ({"sleep": f"{self.sleep * 1e3:g} ms"} if self.sleep else {})


def parse_side(text: str) -> Side:
    """Return the side of words such as `library=DIR define=NAME=1`, or of `own`.

    Raises BadSide, BadMacro, BadLoader, BadLibrary.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadSide(text, str(error)) from error
    side = Side(text)
    if not words:
        raise BadSide(text, f"it is empty; name {OWN}, or {_KINDS}")
    for word in words if words != [OWN] else ():
        name, _, value = word.partition("=")
        if not value:
            raise BadSide(text, f"{word} is not {_KINDS}")
        side = _with(side, name, value)
    if side.library is not None and side.revision is not None:
        raise BadSide(text, "a library or a revision, not both")
    return side


_MILLISECONDS = re.compile(r"\d{1,4}(\.\d{1,6})?")
_KINDS = "library=DIR, git=REVISION, define=NAME[=VALUE], loader=NAME, attach=tc|tcx, sleep=MS"


def _with(side: Side, name: str, value: str) -> Side:
    match name:
        case "library":
            check_library(Path(value))
            return replace(side, library=Path(value).resolve())
        case "git":
            return replace(side, revision=value)
        case "define":
            return replace(side, defines=(*side.defines, parse_macro(value)))
        case "loader":
            return replace(side, loader=find_loader(value))
        case "attach" if value in list(Attachment):
            return replace(side, attach=Attachment(value))
        case "sleep" if _MILLISECONDS.fullmatch(value):
            return replace(side, sleep=float(value) / 1e3)
    raise BadSide(side.text, f"{name}={value} is not {_KINDS}")


def checked_out(stack: ExitStack, side: Side, tree: Path = LIBRARY) -> Side:
    """Return a side whose revision is checked out into a scratch directory, which goes when `stack` closes.

    `tree` is the directory of C sources whose revisions are meant, in a git repository. Nothing in the repository
    changes. Raises BadSide, ToolMissing.
    """
    if side.revision is None:
        return side
    name = side.revision
    if name.startswith("-"):
        raise BadSide(side.text, f"{name} is not a revision")
    prefix = _git(side, tree, "rev-parse", "--show-prefix").strip()
    commit = _git(side, tree, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    directory = stack.enter_context(scratch())
    packed = directory / "revision.tar"
    # It would look for the working directory in the tree that it is given.
    top = Path(_git(side, tree, "rev-parse", "--show-toplevel").rstrip("\n"))
    with packed.open("wb") as file:
        _git(side, top, "archive", "--format=tar", f"{commit}:{prefix}", output=file)
    sources = directory / "sources"
    sources.mkdir()
    tools.run(["tar", "--extract", "--no-same-owner", "--file", str(packed), "--directory", str(sources)])
    os.unlink(packed)
    if not (sources / "bpf_lxc.c").exists():
        raise BadSide(side.text, f"{prefix or 'the tree'} of {name} holds no bpf_lxc.c")
    return replace(side, library=sources, revision=commit)


def _git(side: Side, tree: Path, *arguments: str, output: IO[bytes] | None = None) -> str:
    try:
        return tools.run([*git(tree), *arguments], output=output)
    except ToolError as error:
        said = error.stderr.strip().splitlines()
        why = said[-1] if said else f"{side.revision} is no revision of the repository of {tree}"
        raise BadSide(side.text, why) from error
