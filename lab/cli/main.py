"""The command line: parse, hand over to a module of lab.cli.commands, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from datapath.errors import ReloadlabError
from lab.system.signals import terminable

COMMANDS = {
    "doctor": "say what the machine lacks for the lab",
    "up": "build a node and load its programs",
    "down": "remove labs",
    "ls": "list labs",
    "show": "draw a node",
    "exec": "run a command inside a pod",
    "policy": "let policies hold, or show those that do",
    "maps": "print a map of the datapath",
    "gc": "delete the connections whose lifetime is over",
    "monitor": "follow drops, traces and policy verdicts",
    "plan": "print the steps of a reload without doing them",
    "reload": "reload endpoints and print the time of every step",
    "inspect": "print the programs, maps and constants of an object file",
    "verify": "have the verifier judge every program of an object or a C file",
    "bench": "measure reloads, nodes and traffic, next to other ways of doing the same",
    "run": "doctor, all scenarios with traffic, parallel reload times; the main job",
}
"""The commands, each a module of lab.cli.commands, with the line that `--help` prints for it."""

HANDS_ON = frozenset({"run"})
"""Commands that hand on what follows -- to another program, as `handed_on`."""

EXIT_FAILURE = 1
EXIT_WRONG_CALL = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG_CALL, f"reloadlab: {message}; see: {self.prog} --help\n")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        from importlib.metadata import version  # takes longer than everything else here

        print(f"reloadlab {version('reloadlab')}")
        parser.exit()


def build_parser(wanted: str | None) -> argparse.ArgumentParser:
    """Return the parser. Only the command `wanted` is imported and has its options: the others cost no time."""
    parser = Parser(
        prog="reloadlab",
        description="A test lab for Cilium's tc reload pipeline: a node in network namespaces, on the real kernel.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"lab.cli.commands.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=line)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did its job, 1 if not, 2 for a wrong call, 130 after Ctrl-C, SIGTERM or SIGHUP."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines and corners where the terminal has them, question marks where it has not.
        sys.stdout.reconfigure(errors="replace")
    try:
        with terminable():
            code = _run(argv)
            # What is still in the buffer belongs to the command: a full disk or a reader that left is noticed here.
            sys.stdout.flush()
            return code
    except ReloadlabError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # `| head` has seen enough. Python would flush once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


def _run(argv: Sequence[str]) -> int:
    wanted = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(wanted)
    if wanted is not None and wanted not in COMMANDS:
        near = difflib.get_close_matches(wanted, COMMANDS, n=1)
        parser.error(f"no command {wanted}" + (f"; did you mean {near[0]}?" if near else ""))
    own, handed_on = _split(argv) if wanted in HANDS_ON else (argv, [])
    args, unknown = parser.parse_known_args(own)
    args.handed_on = handed_on
    if unknown:
        # argparse would name the wrong parser.
        command = " ".join(filter(None, ("reloadlab", wanted, "--help")))
        parser.exit(EXIT_WRONG_CALL, f"reloadlab: unknown {' '.join(unknown)}; see: {command}\n")
    if args.command is None:
        parser.print_help()
        return 0
    return int(args.run(args))


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before -- and what follows it."""
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _fail(message: str, code: int = EXIT_FAILURE) -> int:
    print(f"reloadlab: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
