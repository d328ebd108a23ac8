"""The command line: parse, hand over to a module of lab.commands, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from datapath.errors import ReloadlabError

COMMANDS = ("doctor", "up", "down", "ls", "show", "exec", "plan", "reload", "inspect", "verify", "bench", "run")

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command of `lab.commands`."""
    parser = argparse.ArgumentParser(
        prog="reloadlab",
        description="A test lab for Cilium's tc reload pipeline: a node in network namespaces, on the real kernel.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"lab.commands.{name}").add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did its job, 1 if not, 2 for a wrong call, 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ReloadlabError as error:
        print(f"reloadlab: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("reloadlab: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
