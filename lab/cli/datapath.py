"""The options that say which programs are loaded and how, and the agent that has them.

A lab keeps those with which all of it was loaded last: whoever came up with Cilium's sources is reloaded with them. An
option that is given takes the place of the one that is kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from datapath.errors import ReloadlabError
from lab.cli.targets import count
from lab.errors import system_errors
from lab.node import registry

if TYPE_CHECKING:
    from lab.agent.agent import Agent
    from lab.node.node import Node

_FILE = "options.json"


class BadLibrary(ReloadlabError):
    """A directory that holds no C sources of a datapath."""

    def __init__(self, library: Path) -> None:
        super().__init__(f"{library} holds no bpf_lxc.c: name a directory such as Cilium's bpf/")


@dataclass(frozen=True, slots=True)
class Options:
    """What a lab keeps: the C sources (None: ours), the macros, the compiler (None: the usual), the priority."""

    library: str | None = None
    defines: tuple[tuple[str, str], ...] = ()
    clang: str | None = None
    filter_priority: int = 1

    @classmethod
    def kept(cls, node: Node) -> Self:
        """Return those that a node keeps, the defaults if it keeps none."""
        try:
            found = json.loads((node.root / registry.STATE / _FILE).read_text())
        except FileNotFoundError:
            return cls()
        return cls(**found | {"defines": tuple((name, value) for name, value in found["defines"])})

    def keep(self, node: Node) -> None:
        """Let the node keep these, whole or not at all."""
        path = node.root / registry.STATE / _FILE
        unfinished = path.with_suffix(".new")
        with system_errors(node.name):
            unfinished.write_text(json.dumps(asdict(self)))
            unfinished.replace(path)

    def replaced_by(self, args: argparse.Namespace) -> Self:
        """Return these, with those of the command line in their place."""
        given = {
            "library": None if args.library is None else str(args.library.resolve()),
            "defines": tuple(args.defines) or None,
            "clang": str(Path(args.clang).resolve()) if args.clang and "/" in args.clang else args.clang,
            "filter_priority": args.filter_priority,
        }
        base = type(self)() if args.defaults else self
        return replace(base, **{name: value for name, value in given.items() if value is not None})


def add_datapath_options(parser: argparse.ArgumentParser, *, new: bool = False) -> None:
    """Declare which programs are loaded and how; a `new` lab keeps none yet."""
    kept = "The lab keeps those with which all of it was loaded last; what is given here takes their place."
    group = parser.add_argument_group("datapath", None if new else kept)
    add_source_options(group)
    group.add_argument("--clang", metavar="PATH", help="the compiler (clang-16, clang, or the newest there is)")
    group.add_argument("--filter-priority", type=priority, metavar="N", help="priority of the filters (1)")
    group.add_argument("--verifiers", type=count, metavar="N", help="threads that verify one object (all CPUs)")
    parser.set_defaults(defaults=False)
    if not new:
        group.add_argument("--defaults", action="store_true", help="without what the lab keeps of these options")


def add_source_options(group: argparse._ActionsContainer) -> None:
    """Declare which C is compiled."""
    group.add_argument("--library", type=Path, metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    group.add_argument(
        "-D", dest="defines", type=define, action="append", default=[], metavar="NAME[=VALUE]", help="a macro for the C"
    )


def define(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME or NAME=VALUE, as a compiler's -D takes it."""
    name, _, value = text.partition("=")
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{name!r} is no macro name")
    return name, value or "1"


def priority(text: str) -> int:
    """Return the priority of a filter, which has 16 bits in the kernel."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 65535")
    return int(text)


def require_compiler(clang: str | None) -> None:
    """Raise what `require` raises for clang, or ToolMissing for the one that is named."""
    from datapath.build.compile import find_clang
    from lab.doctor.doctor import require

    if clang is None:
        require("clang")
    else:
        find_clang(clang)


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
    )
