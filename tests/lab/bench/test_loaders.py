from __future__ import annotations

import json
import shlex

import pytest

from lab.cli.main import main
from lab.system.launch import module_argv
from tests.lab.labs import cli, start

pytestmark = pytest.mark.privileged


def test_loaders_take_turns() -> None:
    pipeline = shlex.join(module_argv("lab.loaders.pipeline"))
    argv = cli("bench", "reload", "--loader", "builtin", "--loader", pipeline, "--rounds", "2", "--json")
    process = start(argv)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    first, second = json.loads(out)["series"]
    assert (first["name"], second["name"]) == ("reload: 1: builtin", "reload: 2: pipeline")
    assert len(first["values"]) == len(second["values"]) == 2
    assert sorted(zip(first["positions"], second["positions"], strict=True)) == [(0, 1), (1, 0)]


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "reload", "--loader", "builtin", "--object", "x.o"]) == 1
    assert capsys.readouterr().err == "reloadlab: --object is not loaded by other loaders: without --loader\n"
    assert main(["bench", "reload", "--loader", "no-such-loader"]) == 1
    assert capsys.readouterr().err.startswith("reloadlab: no loader no-such-loader")
