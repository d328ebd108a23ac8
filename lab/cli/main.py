"""The command line: parse, hand over to a module of lab.cli.commands, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO

from datapath.errors import ReloadlabError, WrongCall
from lab.cli.targets import near, told
from lab.system.limits import raise_locked_memory
from lab.system.signals import terminable

COMMANDS = {
    "doctor": "say what the machine lacks for the lab",
    "up": "build a node, or several, and load the programs",
    "down": "remove labs",
    "ls": "list labs",
    "show": "draw nodes: interfaces, programs, routes, endpoints",
    "exec": "run a command, or a shell, inside a pod or the node",
    "policy": "apply policies, or print those in force",
    "prefilter": "deny prefixes at XDP, or print those that are denied",
    "maps": "print a map of the datapath",
    "gc": "delete expired connections",
    "monitor": "follow drops, traces and policy verdicts",
    "watch": "show a node as it runs: programs, packets a second, reloads",
    "plan": "print the steps of a reload without doing them",
    "reload": "reload endpoints and print the time of every step",
    "restore": "find the endpoints of a running lab on disk, reload them, remove what is stale",
    "upgrade": "take labs to other programs or another loader, and back, and say what was lost on the way",
    "inspect": "print the programs, maps and constants of an object file",
    "verify": "have the verifier judge every program of an object or a C file",
    "prove": "send packets at every system call of a reload",
    "faults": "let every system call of a reload fail, or kill the process there",
    "loader": "load what is asked for on stdin, as a loader for --loader",
    "bench": "measure reloads, nodes and traffic, next to other ways of doing the same",
    "compare": "say what became worse between results of bench",
    "history": "keep results of bench over commits, and find the commit that made something worse",
    "run": "doctor, all scenarios with traffic, parallel reload times; the main job",
    "report": "write one HTML page that shows what runs and benchmarks found",
    "vm": "fetch other kernels, and run commands on them in a virtual machine",
    "corpus": "put known bugs into the lab and say which scenario notices each",
    "completion": "print the script that lets a shell complete commands, options and labs",
}
"""The commands, each a module of lab.cli.commands, with the line that `--help` prints for it."""

HANDS_ON = frozenset({"run", "vm"})
"""Commands that hand on what follows -- to another program, as `handed_on`; `given` is what stands before it."""

BEHIND = {
    "reloadlab run": "options of pytest follow --, as in reloadlab run -- -x",
    "reloadlab vm exec": "the command follows --, as in reloadlab vm exec 6.12 -- uname -r",
}
"""What they are told who left out the --."""

FORMER = {
    "--parallel": "it is --workers",
    "-n": "it is --workers",
    "--from": "name the endpoint with its lab: monitor demo/pod-1",
}
"""Options of former versions, and what has taken their place."""

ONLY_OF_RUN = {
    "--on": "only run spreads over machines; time is measured on one, so call reloadlab there",
    "--reschedule": "it belongs to run --on",
}
"""Options that other commands have not, and why."""

EXIT_FAILURE = 1
EXIT_WRONG_CALL = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options have one name each: no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG_CALL, f"reloadlab: {message}; see: {self.prog} --help\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        # If nobody can be told, the exit code says it.
        with suppress(OSError):
            sys.stderr.write(message or "")
        sys.exit(status)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = list(action.choices)
            raise argparse.ArgumentError(action, f"no {value}{near(value, words) or '; it is ' + ', '.join(words)}")


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
    open_missing_streams()
    if "_ARGCOMPLETE" in os.environ:
        from lab.cli.completion import answer_shell

        answer_shell()
    try:
        with terminable():
            raise_locked_memory()
            code = _run(sys.argv[1:] if argv is None else list(argv))
            # What is still in the buffer belongs to the command: a full disk or a reader that left is noticed here.
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # `| head` has seen enough.
        return EXIT_FAILURE
    except (ReloadlabError, OSError) as error:
        return _fail(told(error))
    except KeyboardInterrupt as error:
        return _fail(told(error), EXIT_INTERRUPTED)
    finally:
        _drop_unwritable(sys.stdout)
        _drop_unwritable(sys.stderr)


def open_missing_streams() -> None:
    """Open /dev/null in place of standard streams that are closed, and set up the encoding of the output.

    Otherwise the next file that is opened would become the standard output of every child process.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one: those below are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines and corners where the terminal has them, question marks where it has not.
        sys.stdout.reconfigure(errors="replace")


def _run(argv: Sequence[str]) -> int:
    wanted = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(wanted)
    try:
        if wanted is not None and wanted not in COMMANDS:
            parser.error(f"no command {wanted}{near(wanted, COMMANDS)}")
        own, handed_on = _split(argv) if wanted in HANDS_ON else (argv, [])
        args, unknown = parser.parse_known_args(own)
        args.given, args.handed_on = own, handed_on
        if unknown:
            # argparse would name the wrong parser.
            innermost = _innermost(parser, own)
            innermost.error(_describe_unknown(innermost, own, unknown))
    except SystemExit as end:
        return int(end.code or 0)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return int(args.run(args))
    except BrokenPipeError:
        raise
    except WrongCall as error:
        return _fail(told(error), EXIT_WRONG_CALL)
    except (ReloadlabError, OSError) as error:
        # Where 1 says that something became worse, a command has another code for its own failure.
        return _fail(told(error), getattr(args, "failure", EXIT_FAILURE))
    except Exception:
        # A bug of ours, which ends with 1: no verdict of a command whose verdicts are exit codes.
        if not hasattr(args, "failure"):
            raise
        import traceback

        with suppress(OSError):
            traceback.print_exc()
        return int(args.failure)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before -- and what follows it."""
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _innermost(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command that the words name: `bench traffic` of `bench traffic --rounds 3`."""
    for choices in (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
        at = next((at for at, word in enumerate(argv) if word in choices), None)
        if at is not None:
            return _innermost(choices[argv[at]], argv[at + 1 :])
    return parser


def _describe_unknown(parser: argparse.ArgumentParser, argv: Sequence[str], unknown: Sequence[str]) -> str:
    """Return what is wrong with the words that the parser of a command did not take, and what may be meant."""
    first = unknown[0].partition("=")[0]
    hint = FORMER.get(first) or ONLY_OF_RUN.get(first)
    if hint is not None:
        return f"unknown {first}: {hint}"
    behind = f": {BEHIND[parser.prog]}" if parser.prog in BEHIND else ""
    if not first.startswith("-"):
        return f"unexpected argument {' '.join(unknown)}{_side_by_side(parser, argv, unknown[0]) or behind}"
    if first in parser._option_string_actions:
        return f"{first} follows its command: {parser.prog} {first}"
    # Without the dashes, in which all are alike.
    names = {option.lstrip("-"): option for option in _option_strings(parser)}
    found = get_close_matches(first.lstrip("-"), names, n=1)
    return f"unknown {first}" + (f"; did you mean {names[found[0]]}?" if found else behind)


def _side_by_side(parser: argparse.ArgumentParser, argv: Sequence[str], word: str) -> str:
    """Return a hint for a word that came too late: argparse takes those of a command in one go, before an option."""
    words = [action for action in parser._actions if not action.option_strings]
    late = any(before.startswith("-") for before in argv[: argv.index(word)])
    if not late or (len(words) < 2 and all(action.nargs in (None, "?") for action in words)):
        return ""
    return f": name {' and '.join(str(action.metavar) for action in words)} side by side, options before or after all"


def _option_strings(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser that its help lists."""
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from action.option_strings


def _fail(message: str, code: int = EXIT_FAILURE) -> int:
    # If nobody can be told, the exit code says it.
    with suppress(OSError):
        print(f"reloadlab: {message}", file=sys.stderr)
    return code


def _drop_unwritable(stream: TextIO) -> None:
    """Let what cannot be written go: Python would try again when it ends, and change the exit code."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
