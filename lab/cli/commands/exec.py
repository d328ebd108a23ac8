"""`reloadlab exec`: run a command inside a pod, the node, the health endpoint's namespace or the world outside."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.errors import ReloadlabError
from lab.cli.targets import parse_target
from lab.doctor.doctor import require
from lab.node.node import Node
from lab.system.netns import NamespaceNotFound

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a shell for a command that cannot be run, or is not there."""


class NoCommand(ReloadlabError):
    """No command was given."""

    def __init__(self, target: str) -> None:
        super().__init__(f"no command; say: reloadlab exec {target} -- COMMAND")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "exec",
        description="Run a command in the network namespace of a pod, `node`, `health` or `outside`.",
    )
    parser.add_argument("target", metavar="LAB/POD")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the command; returns only if it cannot be run."""
    lab, name = parse_target(args.target)
    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise NoCommand(args.target)
    require("root")
    node = Node.open(lab)
    # The lock is not handed on: whoever removes the lab also ends what runs inside.
    with node.lock_shared(), _inside(node.netns(name)):
        sys.stdout.flush()
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            print(f"reloadlab: {argv[0]}: {error.strerror}", file=sys.stderr)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _inside(path: Path) -> AbstractContextManager[None]:
    """Put this process into a namespace: its main thread, which is the only one and the one nsenter leaves for."""
    import nsenter  # for this command alone

    try:
        namespace: AbstractContextManager[None] = nsenter.Namespace(str(path), "net")
    except FileNotFoundError as error:
        raise NamespaceNotFound(path) from error
    return namespace
