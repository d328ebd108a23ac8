"""`reloadlab loader`: the built-in loader as a process that speaks the protocol of loaders (docs/loaders.md)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "loader",
        description="Load what is asked for on stdin, a JSON object a line, and answer on stdout. It is what --loader "
        "starts in a node: reloadlab up demo --loader 'reloadlab loader'.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until there are no more requests."""
    from lab.loaders.pipeline import main

    require("root")
    main()
    return 0
