"""What several commands share: naming a lab and what lives in it, the options of the datapath, tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.errors import InvalidName, ReloadlabError
from datapath.names import check_lab_name

if TYPE_CHECKING:
    from rich.console import Console

    from lab.agent import Agent
    from lab.node import Node

PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""


class BadOption(ReloadlabError):
    """An option whose value cannot be used."""


def parse_target(text: str) -> tuple[str, str]:
    """Return (lab, name) of LAB/NAME; InvalidName if it is nothing of that form."""
    lab, _, name = text.partition("/")
    check_lab_name(lab)
    if not name or "/" in name:
        raise InvalidName("target", text, "LAB/NAME, such as demo/pod-1 or demo/host")
    return lab, name


def define(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME or NAME=VALUE, as a compiler's -D takes it."""
    name, _, value = text.partition("=")
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{name!r} is no macro name")
    return name, value or "1"


def count(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def priority(text: str) -> int:
    """Return the priority of a filter, which has 16 bits in the kernel."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 65535")
    return int(text)


def add_datapath_options(parser: argparse.ArgumentParser) -> None:
    """Declare which programs are loaded and how."""
    group = parser.add_argument_group("datapath")
    group.add_argument("--library", type=Path, metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    group.add_argument(
        "-D", dest="defines", type=define, action="append", default=[], metavar="NAME[=VALUE]", help="a macro for the C"
    )
    group.add_argument("--clang", metavar="PATH", help="the compiler (clang-16, clang, or the newest there is)")
    group.add_argument("--filter-priority", type=priority, default=1, metavar="N", help="priority of the filters (1)")
    group.add_argument("--verifiers", type=count, metavar="N", help="threads that verify one object (all CPUs)")


def require_compiler(args: argparse.Namespace) -> None:
    """Raise what `require` raises for clang, or ToolMissing for that of --clang."""
    from datapath.compile import find_clang
    from lab.doctor import require

    if args.clang is None:
        require("clang")
    else:
        find_clang(args.clang)


def check_library(args: argparse.Namespace) -> None:
    """Raise BadOption unless the sources are there."""
    if args.library is not None and not (args.library / "bpf_lxc.c").is_file():
        raise BadOption(f"{args.library} holds no bpf_lxc.c: name a directory such as Cilium's bpf/")


def open_agent(node: Node, args: argparse.Namespace) -> Agent:
    """Return the agent of a node with the options of `add_datapath_options`."""
    from lab.agent import Agent

    check_library(args)
    return Agent(
        node,
        library=args.library.resolve() if args.library is not None else None,
        clang=args.clang,
        defines=args.defines,
        verifiers=args.verifiers,
        filter_priority=args.filter_priority,
    )


def make_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for all columns in a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)


def plural(number: int, thing: str) -> str:
    """Return such as "1 pod" or "3 pods"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
