from __future__ import annotations

import json
import shlex

import pytest

from lab.cli.main import main
from lab.system.launch import module_argv
from tests.lab.labs import cli, start

pytestmark = pytest.mark.privileged


def test_loaders_take_turns_with_our_own_variants() -> None:
    pipeline = shlex.join(module_argv("lab.loaders.pipeline"))
    loaders = ["--loader", "builtin", "--loader", pipeline]
    process = start(cli("bench", "reload", *loaders, "--pods", "1", "--rounds", "2", "--json"))
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    series = [each for each in json.loads(out)["series"] if each["group"] == "reload" and each["positions"]]
    rows = {each["name"].removeprefix("reload: "): each["positions"] for each in series}
    assert {"floor: the bare system calls", "loader 1: builtin", "loader 2: pipeline"} <= rows.keys()
    assert all(sorted(turn) == list(range(len(rows))) for turn in zip(*rows.values(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--loader builtin --object x.o", "--object is not loaded by other loaders: without --loader"),
        ("--object x.o --subject host", "--object is for reloads of pods: without --subject host"),
        ("--pods 5 --subject overlay", "--pods is for reloads of pods: without --subject overlay"),
        ("--devices eth0", "--devices are the host's: with --subject host"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "reload", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"reloadlab: {said}\n"


def test_an_unknown_loader_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "reload", "--loader", "no-such-loader"]) == 2
    assert capsys.readouterr().err.startswith("reloadlab: no loader no-such-loader")
