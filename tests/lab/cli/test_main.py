from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import lab.cli.commands
from lab.cli.main import COMMANDS, build_parser, main
from tests.lab.labs import ROOT

HEAVY = ("pyroute2", "rich", "elftools", "lab.node.node", "lab.agent.agent")


def test_every_command_has_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(lab.cli.commands.__path__)}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: reloadlab {name}" in out
    # A usage line, a description and the options.
    assert len(out.split("\n\n")) >= 3


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, line in COMMANDS.items():
        assert f" {name} {line} " in out


@pytest.mark.parametrize(("arguments", "unwanted"), [("--help", HEAVY), ("ls", HEAVY), ("doctor --help", HEAVY)])
def test_only_the_named_command_is_imported(arguments: str, unwanted: tuple[str, ...]) -> None:
    """A command starts in the time of what it needs: 50 ms instead of 300."""
    code = (
        "import sys, contextlib; from lab.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments.split()!r})\n"
        f"print(*[name for name in {unwanted!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_all_options_of_a_command_are_its_own() -> None:
    args = build_parser("reload").parse_args(["reload", "demo", "pod-1", "--parallel", "4", "-D", "A=1", "-DB"])
    assert (args.lab, args.endpoint, args.parallel, args.defines) == ("demo", ["pod-1"], 4, [("A", "1"), ("B", "1")])
