"""`reloadlab run --on`, on machines of the tests' own: who ran what, what is lost with a machine, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.system.launch import module_argv
from lab.system.tools import find
from tests.lab.labs import ROOT
from tests.lab.machines.farmachine import FarMachine, far_machine

pytestmark = pytest.mark.privileged

SPREAD = """
import os, socket, time

import pytest

@pytest.mark.parametrize("number", range(4))
def test_node(number):
    time.sleep(0.3)

def test_node_dies():
    os._exit(1)

def test_node_of_a_lab(scenario):
    scenario.reload("pod-1")

def test_node_fails():
    assert socket.gethostname() == "another"
"""

WAITING = """
import os, pathlib, socket, time

import pytest

@pytest.mark.parametrize("number", range(4))
def test_waits(number):
    flag = pathlib.Path({flags!r})
    (flag / f"{{socket.gethostname()}}-{{number}}").touch()
    deadline = time.monotonic() + 60
    while not (flag / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FarMachine, FarMachine]]:
    """Two machines for all tests that leave them as they are."""
    home = tmp_path_factory.mktemp("machines")
    with far_machine(home / "a", "alpha") as alpha, far_machine(home / "b", "beta") as beta:
        yield alpha, beta


class Run:
    """`reloadlab run` with a suite, in a directory of its own."""

    def __init__(self, directory: Path, suite: str, *options: str) -> None:
        self.out = directory / "out"
        suites = directory / "suite"
        suites.mkdir()
        (suites / "test_mine.py").write_text(suite)
        argv = [*module_argv("lab.cli.main"), "run", "suite/test_mine.py", "--out", str(self.out), *options]
        self.process = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.printed, self.errors = "", ""

    def end(self) -> int:
        self.printed, self.errors = self.process.communicate(timeout=150)
        return self.process.returncode

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"].partition("::")[2]: row for row in self.document["scenarios"]}


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a run, which is killed at the end if it has not ended."""
    with ExitStack() as stack:

        def start(suite: str, *options: str) -> Run:
            run = Run(tmp_path, suite, *options)
            stack.callback(run.process.communicate)
            stack.callback(run.process.kill)
            return run

        yield start


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nothing_is_left(machine: FarMachine) -> bool:
    runs = os.listdir(machine.base / "runs")
    return not machine.processes() and not runs and not machine.run("find", "/run", "-name", "reloadlab*")


def without_pytest(machine: FarMachine) -> None:
    """Let the interpreter of a machine's workers find no packages, after it has been examined."""
    (place,) = (machine.base / "environments").iterdir()
    (place / ".venv").unlink()
    (place / ".venv" / "bin").mkdir(parents=True)
    python = place / ".venv" / "bin" / "python"
    python.write_text(f"""#!/bin/sh
case "$*" in
*examine*) exec {ROOT}/.venv/bin/python "$@" ;;
*) exec /usr/bin/python3 -I -S "$@" ;;
esac
""")
    python.chmod(0o755)


def on(*machines: FarMachine, workers: int = 1) -> list[str]:
    return [word for machine in machines for word in ("--on", f"{machine.option},workers={workers}")]


def test_every_row_says_which_machine_ran_it_and_a_worker_that_dies_is_replaced(
    pair: tuple[FarMachine, FarMachine], begin: Callable[..., Run], tmp_path: Path
) -> None:
    # A word of the command that is also a directory here must not become one of another machine.
    (tmp_path / "node").mkdir()
    run = begin(SPREAD, *on(*pair), "-k", "node", "--junitxml", str(tmp_path / "junit.xml"))
    assert run.end() == 1, run.errors
    assert {name: row["outcome"] for name, row in run.rows.items()} == {
        **{f"test_node[{number}]": "passed" for number in range(4)},
        "test_node_of_a_lab": "passed",
        "test_node_fails": "failed",
        "test_node_dies": "error",
    }
    where = {name: row["machine"] for name, row in run.rows.items()}
    assert set(where.values()) == {"ssh:alpha", "ssh:beta"}
    assert {row["kernel"] for row in run.rows.values()} == {os.uname().release}
    # What a test sees agrees with what the row says.
    host = where["test_node_fails"].partition(":")[2]
    assert f"assert '{host}' == 'another'" in run.rows["test_node_fails"]["message"]
    assert run.rows["test_node_of_a_lab"]["sent"] > 0
    # A worker that dies is replaced: its machine is there.
    assert run.rows["test_node_dies"]["message"].startswith(f"a worker on {where['test_node_dies']} died while it ran")
    assert [(each["name"], each["host"], each["lost"]) for each in run.document["machines"]] == [
        ("ssh:alpha", "alpha", None),
        ("ssh:beta", "beta", None),
    ]
    cases = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    told = {case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")} for case in cases}
    assert {name: values["machine"] for name, values in told.items()} == where
    assert all(nothing_is_left(machine) for machine in pair)


@pytest.mark.parametrize("reschedule", [False, True], ids=["error", "reschedule"])
def test_a_machine_that_dies_is_named(
    pair: tuple[FarMachine, FarMachine], begin: Callable[..., Run], tmp_path: Path, *, reschedule: bool
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    with far_machine(tmp_path / "c", "gamma") as gamma, far_machine(tmp_path / "d", "bare") as bare:
        options = on(pair[0], gamma)
        if reschedule:
            without_pytest(bare)
            options += on(bare)
        run = begin(WAITING.format(flags=str(flags)), *options, *(["--reschedule"] if reschedule else []))
        wait_for(lambda: list(flags.glob("gamma-*")) or run.process.poll() is not None)
        (begun,) = flags.glob("gamma-*")
        gamma.switch_off()
        (flags / "go").touch()
        code = run.end()
    ran = run.rows[f"test_waits[{begun.name.partition('-')[2]}]"]
    assert "lost ssh:gamma: " in run.printed
    assert "reached" in {each["name"]: each["lost"] for each in run.document["machines"]}["ssh:gamma"]
    if reschedule:
        # One that never came up is not started again and again.
        assert "lost ssh:bare: its worker did not come up: ModuleNotFoundError: No module named" in run.printed
        assert {row["outcome"] for row in run.rows.values()} == {"passed"}
        assert ran["machine"] == "ssh:alpha"
        assert code == 0
    else:
        assert (ran["outcome"], ran["machine"], code) == ("error", "ssh:gamma", 1)
        assert "ssh:gamma was lost" in ran["message"]
        assert [row["outcome"] for row in run.rows.values()].count("passed") == 3


def test_machines_that_lack_something_are_told_before_anything_runs(begin: Callable[..., Run], tmp_path: Path) -> None:
    with far_machine(tmp_path / "c", "gamma") as gamma:
        # The same machine under a second name.
        (gamma.home / "known").write_text((gamma.home / "known").read_text().replace("gamma ", "gamma,twin "))
        gamma.config.write_text(gamma.config.read_text().replace("Host gamma", "Host gamma twin"))
        gamma.hide(find("tc"))
        run = begin(SPREAD, *on(gamma), "--on", gamma.option.replace("gamma", "twin", 1))
        assert run.end() == 1
        assert nothing_is_left(gamma)
    lacks = "it lacks tc: tc not found; apt-get install iproute2"
    assert run.errors.splitlines() == [
        f"reloadlab: ssh:gamma: {lacks}",
        f"ssh:twin: {lacks}",
        "ssh:twin: it is the same machine as ssh:gamma: name it once, with workers=N",
    ]
    assert run.rows == {}
    assert lacks in run.document["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_anywhere(
    pair: tuple[FarMachine, FarMachine], begin: Callable[..., Run], tmp_path: Path, number: signal.Signals
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    suite = WAITING.format(flags=str(flags)).replace("(number):", "(number, scenario):")
    run = begin(suite, *on(*pair))
    wait_for(lambda: len(list(flags.iterdir())) == 2 or run.process.poll() is not None)
    assert run.process.poll() is None, run.end()
    os.kill(run.process.pid, number)
    if number == signal.SIGINT:
        assert run.end() == 130
        assert {row["outcome"] for row in run.rows.values()} == {"not run"}
        assert all(nothing_is_left(machine) for machine in pair)
    else:
        run.end()
        wait_for(lambda: all(nothing_is_left(machine) for machine in pair))
