"""`run --on`: calls that cannot be meant."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.base.statefile import typed
from lab.cli.machines_job import _examine
from lab.cli.main import main
from lab.cli.targets import make_console
from lab.machines.identity import Identity
from lab.machines.session import MachinesUnfit, Order, Ready, Requirement, Session
from lab.machines.ssh import Route
from lab.machines.target import Target
from lab.results.result import BadResult
from lab.results.run import checked_run
from tests.lab.machines.test_unfriendly import FOUND


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--reschedule"], "--reschedule is for scenarios on other machines: name them with --on"),
        (["--on", "alpha"], "'alpha' names no machine: it is ssh:HOST or vagrant:NAME"),
        (["--on", "ssh:a", "--on", "ssh:a"], "ssh:a is named twice: for more scenarios at a time say ssh:a,workers=N"),
        (["--on", "ssh:a", "--kernel", "6.1"], "--on takes machines with the kernels that they have"),
        (["--on", "ssh:a", "--rounds", "1"], "--rounds measures time, which is never spread"),
        (["--on", "ssh:a", "--workers", "2"], "--workers is for this machine: say how many for each"),
        (["--on", "ssh:a", "--keep"], "--keep has no use with --on, which leaves nothing on other machines"),
        (["--on", "ssh:a", "--loader", "./mine"], "--loader ./mine is a command of this machine"),
        (["--on", "ssh:a", "--", "--deselect", "."], ". is a file of this machine"),
        (["--on", "ssh:a", "--", "-k", " or ".join(["a long expression"] * 20), "."], ". is a file of this machine"),
        (["--on", "vagrant:no-such-machine"], "vagrant"),
    ],
)
def test_calls_that_cannot_be_meant_are_told_in_one_line(
    given: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Which machines Vagrant has, the call does not tell.
    code = 1 if told == "vagrant" else 2
    assert main(["run", "--out", str(tmp_path / "out"), *given]) == code
    *page, line = capsys.readouterr().err.splitlines()
    # A run that has begun has a page.
    assert len(page) == (code == 1)
    assert line.startswith(f"reloadlab: {told}")


def test_time_is_not_spread(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "reload", "--on", "ssh:a"]) == 2
    told = "unknown --on: only run spreads over machines; time is measured on one, so call reloadlab there"
    assert told in capsys.readouterr().err


def test_times_of_several_machines_are_not_compared() -> None:
    document = {"format": 4, "complete": True, "machines": [{"name": "ssh:a"}, {"name": "ssh:b"}]}
    with pytest.raises(BadResult, match="is of a run over several machines, whose times are no measurement"):
        checked_run(Path("run.json"), document)


def described(name: str, host: str, *requirements: Requirement) -> Session:
    """Return the session of a machine that is ready."""
    session = Session(Target("ssh", name), Route(name, None, None), Order("e", (), "token"), Path("errors"))
    identity = Identity("b", host, 1, "k")
    session.ready = replace(typed(Ready, FOUND | {"sudo": False}), identity=identity, requirements=requirements)
    return session


def test_all_that_is_wrong_with_machines_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tcx = Requirement("tcx", "ok", "ok tcx")
    lacks = Requirement("tc", "missing", "missing tc: tc not found")
    found = [described("a", "h", tcx), described("twin", "h", tcx, lacks), described("b", "other")]
    args = argparse.Namespace(attach="tcx")
    with pytest.raises(MachinesUnfit) as caught:
        _examine(make_console(), args, found)
    assert str(caught.value).splitlines() == [
        "ssh:twin: it lacks tc: tc not found",
        "ssh:twin: it is the same machine as ssh:a: name it once, with workers=N",
        "ssh:b: it has no tcx, which --attach tcx asks for",
    ]
    assert "ssh:a: Linux k, 3 CPUs, 3 workers, 1 of 1 requirements are there" in capsys.readouterr().out
    _examine(make_console(), args, found[:1])
