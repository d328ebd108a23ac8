"""Every command that sends traffic finds how slow the machine is before it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module

import pytest

from lab.cli.main import main
from lab.cli.pace import find_pace
from lab.cli.targets import make_console
from lab.system.pace import SLOWNESS_VARIABLE


def test_a_slow_machine_is_told_and_an_ordinary_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SLOWNESS_VARIABLE, "12")
    find_pace(make_console())
    told = "  slow machine: packets are sent 12 times slower, and waited for 12 times longer\n"
    assert capsys.readouterr().out == told
    monkeypatch.setenv(SLOWNESS_VARIABLE, "1")
    find_pace(make_console())
    assert capsys.readouterr().out == ""


class Found(Exception):
    """The pace was asked for."""


@pytest.fixture
def lab() -> Iterator[str]:
    name = f"paced-{os.getpid()}"
    assert main(["up", name, "--pods", "1"]) == 0
    yield name
    assert main(["down", name]) == 0


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("commands.prove", ["prove", "host"]),
        ("commands.prove", ["prove", "host", "--two", "--sample", "1"]),
        ("commands.faults", ["faults", "host", "--sample", "1"]),
        ("commands.upgrade", ["upgrade", "LAB", "--to", "builtin"]),
        ("corpus_job", ["corpus", "--sample", "1"]),
        ("job", ["run", "-k", "nothing", "--rounds", "0"]),
    ],
)
def test_a_command_with_traffic_finds_the_pace(
    module: str, argv: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [request.getfixturevalue("lab") if word == "LAB" else word for word in argv]

    def find(console: object) -> None:
        raise Found

    monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    monkeypatch.setattr(import_module(f"lab.cli.{module}"), "find_pace", find)
    with pytest.raises(Found):
        main(argv)
