"""The options that say which programs are loaded and how, and the agent that has them.

A lab keeps those with which all of it was loaded last: whoever came up with Cilium's sources is reloaded with them. An
option that is given takes the place of the one that is kept.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from datapath.base.statefile import DamagedFile, read_json, typed, write_json
from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError, WrongCall
from lab.errors import system_errors
from lab.loaders.command import LoaderCommand, find_loader
from lab.node import registry

if TYPE_CHECKING:
    from lab.agent.agent import Agent
    from lab.node.node import Node

_FILE = "options.json"
_MACRO = re.compile(r"[A-Za-z_]\w*(\([\w, ]*\))?", re.ASCII)


class BadLibrary(WrongCall):
    """A directory that holds no C sources of a datapath."""

    def __init__(self, library: Path) -> None:
        super().__init__(f"{library} holds no bpf_lxc.c: name a directory such as Cilium's bpf/")


class BadMacro(WrongCall):
    """A macro whose name the C compiler would not take."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is not the name of a macro")
        self.name = name


@dataclass(frozen=True, slots=True)
class Options:
    """What a lab keeps.

    The C sources (None: ours), the macros, the compiler (None: the usual), the priority of filters, the loader (None:
    the built-in one), how programs are attached, whether those that nothing reaches are loaded as well.
    """

    library: str | None = None
    defines: tuple[tuple[str, str], ...] = ()
    clang: str | None = None
    filter_priority: int = 1
    loader: LoaderCommand | None = None
    attach: Attachment = Attachment.TC
    all_programs: bool = False

    @classmethod
    def kept(cls, node: Node) -> Self:
        """Return those that a node keeps, the defaults if it keeps none; a former version did not know all of them."""
        path = node.root / registry.STATE / _FILE
        try:
            kept = read_json(path)
        except FileNotFoundError:
            return cls()
        try:
            return typed(cls, {**asdict(cls()), **kept} if isinstance(kept, dict) else kept)
        except ReloadlabError as error:
            raise DamagedFile(path, str(error)) from error

    def keep(self, node: Node) -> None:
        """Write these to the node's state, whole or not at all."""
        with system_errors(node.name):
            write_json(node.root / registry.STATE / _FILE, asdict(self))

    def replaced(
        self,
        *,
        library: Path | None = None,
        defines: tuple[tuple[str, str], ...] = (),
        clang: str | None = None,
        filter_priority: int | None = None,
        loader: str | None = None,
        attach: Attachment | None = None,
        all_programs: bool | None = None,
    ) -> Self:
        """Return these options with the given ones in their place; relative paths are made absolute.

        `loader` is a name or a command: BadLoader if it is none.
        """
        return replace(
            self,
            library=self.library if library is None else str(library.resolve()),
            defines=defines or self.defines,
            clang=(str(Path(clang).resolve()) if "/" in clang else clang) if clang else self.clang,
            filter_priority=self.filter_priority if filter_priority is None else filter_priority,
            loader=self.loader if loader is None else find_loader(loader),
            attach=self.attach if attach is None else attach,
            all_programs=self.all_programs if all_programs is None else all_programs,
        )


def parse_macro(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME or NAME=VALUE, as a compiler's -D takes it; NAME may have parameters. BadMacro."""
    name, equals, value = text.partition("=")
    if not _MACRO.fullmatch(name):
        raise BadMacro(name)
    return name, value if equals else "1"


def check_library(library: Path | str | None) -> None:
    """Raise BadLibrary unless the sources are there."""
    if library is not None and not (Path(library) / "bpf_lxc.c").is_file():
        raise BadLibrary(Path(library))


def open_agent(node: Node, options: Options, *, verifiers: int | None = None) -> Agent:
    """Return the agent of a node that loads programs with these options."""
    from lab.agent.agent import Agent

    check_library(options.library)
    return Agent(
        node,
        library=None if options.library is None else Path(options.library),
        clang=options.clang,
        defines=options.defines,
        verifiers=verifiers,
        filter_priority=options.filter_priority,
        loader=options.loader,
        attach=options.attach,
        all_programs=options.all_programs,
    )
