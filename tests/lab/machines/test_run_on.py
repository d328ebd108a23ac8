"""`reloadlab run --on`, on machines of the tests' own: who ran what, what is lost with a machine, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.machines.spreading import ANOTHER, ENDED_AT_ONCE
from lab.system.launch import module_argv
from lab.system.tools import find
from tests.lab.labs import ROOT
from tests.lab.machines.farmachine import FarMachine, far_machine

pytestmark = pytest.mark.privileged

SUITE = """
import os, pathlib, socket, time, warnings

import pytest

FLAGS, HOST = pathlib.Path({flags!r}), socket.gethostname()
"""

GOOD = """
@pytest.mark.parametrize("number", range(6))
def test_node(number):
    if HOST == "gamma" and list(FLAGS.glob("gamma-*")):
        (FLAGS / "lost").write_text(str(number))
        time.sleep(600)
    time.sleep(0.3)
    (FLAGS / f"{HOST}-{number}").touch()

def test_node_is_hostile(request):
    # It says that a warning is made by os.mkdir.
    data = dict.fromkeys(warnings.WarningMessage._WARNING_DETAILS)
    data |= {"message_module": "os", "message_class_name": "mkdir", "message_args": (str(FLAGS / "made"),)}
    data |= {"message_str": "", "category_module": None, "filename": "a.py", "lineno": 7}
    (worker,) = [each for each in request.config.pluginmanager.get_plugins() if hasattr(each, "sendevent")]
    where = {"when": "runtest", "nodeid": request.node.nodeid, "location": None}
    worker.sendevent("warning_recorded", warning_message_data=data, **where)

def test_node_of_a_lab(scenario):
    scenario.reload("pod-1")
"""

BAD = """
def test_dies():
    os._exit(1)

def test_fails():
    assert HOST == "another"

@pytest.mark.parametrize("number", range(4))
def test_waits(number):
    (FLAGS / f"{HOST}-{number}").touch()
    time.sleep(600)
"""

WAITING = """
def test_waits(scenario):
    (FLAGS / HOST).touch()
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarMachine]:
    """A machine for all tests that leave it as it is."""
    with far_machine(tmp_path_factory.mktemp("machine") / "a", "alpha") as machine:
        yield machine


class Run:
    """`reloadlab run` with a suite, in a directory of its own."""

    def __init__(self, directory: Path, suite: str, *options: str) -> None:
        self.out = directory / "out"
        self.flags = directory / "flags"
        self.flags.mkdir()
        suites = directory / "suite"
        suites.mkdir()
        (suites / "test_mine.py").write_text(SUITE.format(flags=str(self.flags)) + suite)
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

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for something that happens while it runs."""
        wait_for(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, f"{self.end()}\n{self.printed}\n{self.errors}"

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


IN_GAMMA = ("passed", "ssh:gamma")


def on(*machines: FarMachine, workers: int = 1) -> list[str]:
    return [word for machine in machines for word in ("--on", f"{machine.option},workers={workers}")]


def test_a_run_goes_on_without_a_machine_that_dies_and_every_row_says_where_it_ran(
    alpha: FarMachine, begin: Callable[..., Run], tmp_path: Path
) -> None:
    # A word of the command that is also a directory here must not become one of another machine.
    (tmp_path / "node").mkdir()
    with far_machine(tmp_path / "c", "gamma") as gamma, far_machine(tmp_path / "d", "bare") as bare:
        without_pytest(bare)
        options = [*on(alpha, gamma, bare), "--reschedule", "-k", "node", "--junitxml", str(tmp_path / "junit.xml")]
        run = begin(GOOD, *options)
        run.wait_for((run.flags / "lost").exists)
        run.wait_for(lambda: [row for row in run.rows.values() if (row["outcome"], row["machine"]) == IN_GAMMA])
        gamma.switch_off()
        # All has passed: what was lost with the machine, elsewhere.
        assert run.end() == 0, run.errors
        assert nothing_is_left(bare)
    assert nothing_is_left(alpha)
    names = [*(f"test_node[{number}]" for number in range(6)), "test_node_is_hostile", "test_node_of_a_lab"]
    assert {name: row["outcome"] for name, row in run.rows.items()} == dict.fromkeys(names, "passed")
    assert {row["kernel"] for row in run.rows.values()} == {os.uname().release}
    assert run.rows["test_node_of_a_lab"]["sent"] > 0
    # What each test has seen agrees with what its row says.
    lost = (run.flags / "lost").read_text()
    where = {name: row["machine"] for name, row in run.rows.items()}
    seen = {path.name for path in run.flags.iterdir()} - {"lost"}
    assert seen == {f"{where[f'test_node[{number}]'].removeprefix('ssh:')}-{number}" for number in range(6)}
    assert set(where.values()) == {"ssh:alpha", "ssh:gamma"}
    assert where[f"test_node[{lost}]"] == "ssh:alpha"
    cases = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    told = {case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")} for case in cases}
    assert {name: values["machine"] for name, values in told.items()} == where
    machines = {each["name"]: (each["host"], each["lost"]) for each in run.document["machines"]}
    assert machines["ssh:alpha"] == ("alpha", None)
    assert "reached" in machines["ssh:gamma"][1]
    # One that never came up is not started again and again.
    # Its own words may be there before xdist has told it what to do, or not.
    said = machines["ssh:bare"][1]
    assert said == ENDED_AT_ONCE or said.startswith("its worker did not come up: ModuleNotFoundError: No module named")
    for name in ("gamma", "bare"):
        assert f"lost ssh:{name}: {machines[f'ssh:{name}'][1]}" in " ".join(run.printed.split())


def test_a_machine_that_is_started_anew_is_lost_and_the_others_run_what_it_had(
    alpha: FarMachine, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """It answers again before anybody notices, with all files of the run, but is not what was examined."""
    with far_machine(tmp_path / "c", "gamma") as before, far_machine(tmp_path / "d", "gamma") as after:
        run = begin(GOOD, *on(alpha, before), "--reschedule", "-k", "test_node[")
        run.wait_for((run.flags / "lost").exists)
        for name in ("runs", "trees"):
            shutil.copytree(before.base / name, after.base / name, dirs_exist_ok=True)
        before.config.write_text(after.config.read_text())
        before.switch_off()
        assert run.end() == 0, run.printed
    assert {row["outcome"] for row in run.rows.values()} == {"passed"}
    assert len(run.rows) == 6
    assert {each["name"]: each["lost"] for each in run.document["machines"]} == {
        "ssh:alpha": None,
        "ssh:gamma": ANOTHER,
    }


def test_what_fails_and_what_is_lost_are_told_and_an_interrupted_run_leaves_nothing(
    alpha: FarMachine, begin: Callable[..., Run], tmp_path: Path
) -> None:
    with far_machine(tmp_path / "c", "gamma") as gamma:
        run = begin(BAD, *on(alpha, gamma))
        run.wait_for(lambda: list(run.flags.glob("alpha-*")) and list(run.flags.glob("gamma-*")))
        run.wait_for(lambda: run.rows["test_fails"]["outcome"] == "failed")
        (begun,) = (f"test_waits[{path.name.partition('-')[2]}]" for path in run.flags.glob("gamma-*"))
        gamma.switch_off()
        run.wait_for(lambda: run.rows[begun]["outcome"] == "error")
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end() == 130
    assert nothing_is_left(alpha)
    rows = run.rows
    # What failed, on the machine that the row names.
    host = rows["test_fails"]["machine"].removeprefix("ssh:")
    assert f"assert '{host}' == 'another'" in rows["test_fails"]["message"]
    # A worker that dies is replaced: its machine is there.
    dies = rows["test_dies"]
    assert (dies["outcome"], dies["message"].startswith(f"a worker on {dies['machine']} died while it ran")) == (
        "error",
        True,
    )
    assert rows[begun]["machine"] == "ssh:gamma"
    assert "ssh:gamma was lost" in rows[begun]["message"]
    waiting = {rows[f"test_waits[{number}]"]["outcome"] for number in range(4) if begun != f"test_waits[{number}]"}
    assert waiting == {"not run"}
    assert "lost ssh:gamma: " in run.printed
    assert {each["name"]: bool(each["lost"]) for each in run.document["machines"]} == {
        "ssh:alpha": False,
        "ssh:gamma": True,
    }


PACKETS = """
def test_passes():
    (pathlib.Path.cwd().parent / "packets" / "a.pcapng").write_bytes(b"packets")
"""


def test_packets_that_cannot_be_written_here_cost_nothing_else(
    alpha: FarMachine, begin: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "pcap").mkdir()
    (tmp_path / "pcap" / "ssh-alpha").write_text("no directory")
    run = begin(PACKETS, *on(alpha), "-k", "passes", "--pcap", "pcap")
    assert run.end() == 1
    assert "ssh:alpha: a.pcapng is lost: " in run.errors
    assert run.errors.rstrip().endswith("pcap/ssh-alpha: Not a directory")
    assert run.document["complete"]
    assert run.rows["test_passes"]["outcome"] == "passed"
    assert nothing_is_left(alpha)


def test_a_machine_that_lacks_something_is_told_before_anything_runs(
    alpha: FarMachine, begin: Callable[..., Run]
) -> None:
    alpha.hide(find("tc"))
    run = begin(GOOD, *on(alpha))
    assert run.end() == 1
    alpha.show(find("tc"))
    assert nothing_is_left(alpha)
    lacks = "it lacks tc: tc not found; apt-get install iproute2"
    assert run.errors.splitlines()[-1] == f"reloadlab: ssh:alpha: {lacks}"
    assert (run.rows, os.listdir(run.flags)) == ({}, [])
    assert lacks in run.document["error"]


def test_a_run_that_is_killed_leaves_nothing(alpha: FarMachine, begin: Callable[..., Run]) -> None:
    run = begin(WAITING, *on(alpha))
    run.wait_for((run.flags / "alpha").exists)
    run.process.kill()
    run.end()
    wait_for(lambda: nothing_is_left(alpha))
