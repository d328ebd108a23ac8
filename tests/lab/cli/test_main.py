from __future__ import annotations

import argparse
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lab.cli.commands
from lab.cli.main import COMMANDS, build_parser, main
from tests.lab.labs import ROOT, cli

HEAVY = ("argcomplete", "pyroute2", "rich", "elftools", "nsenter", "asyncio", "lab.node.node", "lab.agent.agent")
"""What takes long to import, and is of no use for a help text."""

READERS = ("pyroute2", "elftools", "lab.agent.agent", "asyncio")
"""What only commands need that speak netlink or read object files."""


def test_every_command_has_a_module() -> None:
    assert {module.name for module in pkgutil.iter_modules(lab.cli.commands.__path__)} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: reloadlab {name}" in out
    # A usage line, a description and the options.
    assert len(out.split("\n\n")) >= 3


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, line in COMMANDS.items():
        assert f" {name} {line} " in out


def imported(arguments: str, modules: tuple[str, ...]) -> list[str]:
    """Return those of `modules` that a command imports, in a process of its own."""
    code = (
        "import sys, contextlib; from lab.cli.main import main\n"
        f"main({arguments.split()!r})\n"
        f"print(*[name for name in {modules!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


LIGHT = ("--help", "ls", "down nope", *(f"{name} --help" for name in COMMANDS))
EACH_FORKED = """
import json, os, sys
from lab.cli.main import main
modules, commands = json.loads(sys.argv[1])
heavy = [name for name in modules if name in sys.modules]
assert not heavy, heavy
for arguments in commands:
    if os.fork() == 0:
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        main(arguments.split())
        os.write(out, json.dumps([arguments, [name for name in modules if name in sys.modules]]).encode() + b"\\n")
        os._exit(0)
    os.wait()
"""
"""Each command in a process that has imported no more than what all commands import."""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What takes long to import and is imported all the same, by command."""
    done = subprocess.run(
        [sys.executable, "-c", EACH_FORKED, json.dumps([HEAVY, LIGHT])],
        cwd=ROOT,
        env=os.environ | {"RELOADLAB_RUN": str(tmp_path_factory.mktemp("labs") / "none")},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", LIGHT)
def test_nothing_heavy_is_imported_for_a_help_text_or_a_list(arguments: str, heavy: dict[str, list[str]]) -> None:
    assert heavy[arguments] == []


def test_a_run_does_not_wait_for_what_compares_results() -> None:
    assert imported("run --on ssh:a --kernel 6.1", ("lab.report.page", "numpy", "scipy.stats")) == []


@pytest.mark.parametrize("arguments", ["show nope", "maps nope ct", "exec nope/pod-1 true", "gc nope", "monitor nope"])
def test_a_missing_lab_is_told_before_anything_heavy_is_imported(arguments: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELOADLAB_RUN", str(tmp_path / "none"))
        assert imported(arguments, READERS) == []


def test_all_options_of_a_command_are_its_own() -> None:
    args = build_parser("reload").parse_args(["reload", "demo", "box/pod-1", "--workers", "4", "-D", "A=1", "-DB"])
    assert (args.targets, args.workers, args.defines) == (["demo", "box/pod-1"], 4, [("A", "1"), ("B", "1")])


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def command_parser(name: str) -> argparse.ArgumentParser:
    (choices,) = (a.choices for a in build_parser(name)._actions if isinstance(a, argparse._SubParsersAction))
    found = choices[name]
    assert isinstance(found, argparse.ArgumentParser)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_says_what_it_is(name: str) -> None:
    for parser in parsers(command_parser(name)):
        assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("exec", "completion", "loader", "report")])
def test_what_prints_a_result_has_json(name: str) -> None:
    # What an export prints is for programs already, and what a command of the user's prints is its own.
    others = ("reloadlab bench export", "reloadlab vm exec")
    innermost = [p for p in parsers(command_parser(name)) if p._subparsers is None and p.prog not in others]
    assert innermost
    for parser in innermost:
        assert "--json" in parser._option_string_actions, parser.prog


# Where the output goes


def shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `reloadlab` is the command."""
    function = 'reloadlab() { "$PYTHON" -m lab.cli.main "$@"; }; '
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", function + script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


CLOSED = ("", ">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-")


@pytest.mark.parametrize(
    ("command", "closed"),
    [("inspect --help", closed) for closed in CLOSED]
    + [(command, CLOSED[-1]) for command in ("--help", "--version", "doctor --help", "completion bash")],
)
def test_closed_streams_are_no_error(command: str, closed: str) -> None:
    done = shell(f"reloadlab {command} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_error_does_not_go_to_the_output_when_standard_error_is_closed() -> None:
    done = shell("reloadlab lss 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("command", ["--help", "--version", "reload --help", "completion bash"])
def test_full_disk_is_one_line(command: str) -> None:
    done = shell(f"reloadlab {command} >/dev/full")
    assert (done.returncode, done.stderr) == (1, "reloadlab: No space left on device\n")


@pytest.mark.parametrize("command", ["--help", "reload --help", "completion bash"])
def test_reader_that_leaves_is_no_error(command: str) -> None:
    done = shell(f"set -o pipefail; reloadlab {command} | true")
    assert done.stderr == ""


@pytest.mark.parametrize(("command", "code"), [("lss", 2), ("up --bogus", 2), ("inspect no-such-file", 1)])
@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_exit_code_does_not_depend_on_who_reads_the_error(command: str, code: int, where: str) -> None:
    assert shell(f"reloadlab {command} {where}").returncode == code


def test_closed_output_is_not_what_is_opened_next() -> None:
    """A file opened as descriptor 1 would be the standard output of every child process."""
    code = (
        "import os, sys; from lab.cli.main import open_missing_streams\n"
        "open_missing_streams(); print(os.open('/dev/null', os.O_RDONLY) > 2, file=sys.stderr)"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&-', sys.executable, code], cwd=ROOT, stderr=subprocess.PIPE, check=True
    )
    assert done.stderr == b"True\n"


@pytest.mark.privileged
def test_output_of_a_command_goes_where_it_can() -> None:
    for redirection, code, err in ((">&-", 0, ""), (">/dev/full", 1, "reloadlab: No space left on device\n")):
        done = shell(f"reloadlab ls {redirection}")
        assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


def test_python_module_is_the_command() -> None:
    done = subprocess.run(cli("lss"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "reloadlab: no command lss; did you mean ls?; see: reloadlab --help\n")


@pytest.mark.parametrize(
    "arguments", [["compare", "a.json", "b.json"], ["history", "check", "DIR"], ["bench", "ab", "own", "own"]]
)
def test_a_bug_is_no_verdict(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a command whose exit code 1 says that something became worse."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    for name in ("lab.results.files.read_comparable", "lab.results.history.lineages", "lab.bench.sides.parse_side"):
        monkeypatch.setattr(name, broken)
    assert main(arguments) == 3
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0], err.splitlines()[-1]) == (
        "",
        "Traceback (most recent call last):",
        "ZeroDivisionError: a bug",
    )


def test_a_bug_of_other_commands_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("lab.results.files.read_measured", broken)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "export", "jsonl", "a.json"])
