"""The runner, on a small suite: every outcome there is, and nothing left over, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.node import registry
from lab.node.registry import RUN_VARIABLE
from tests.lab.labs import ROOT

pytestmark = pytest.mark.privileged

SUITE = """
import time
import pytest
from reloadlab import Scenario

@pytest.mark.node(pods=1)
def test_first(scenario: Scenario) -> None:
    scenario.reload("pod-1")

@pytest.mark.node(pods=1)
def test_second(scenario: Scenario) -> None:
    scenario.reload("host")
"""

DRIVER = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from datapath.reload.switchover import Attach, Commit
from lab.corpus import steps
from lab.corpus.fault import Fault, Patch
from lab.corpus.runner import Runner
from lab.corpus.steps import Changed
from lab.corpus.verdict import Verdict
from lab.scenario.verdict import NoVerdict
from lab.system.scratch import scratch
from lab.system.signals import terminable

class Hangs(Changed):
    def apply(self, work):
        self.applied()
        time.sleep(3600)

class Dies(Changed):
    def apply(self, work):
        self.applied()
        os.kill(os.getpid(), signal.SIGKILL)

class Exits(Changed):
    def apply(self, work):
        self.applied()
        print("what it said", flush=True)
        os._exit(3)

class Blind(Changed):
    def apply(self, work):
        self.applied()
        self.step.apply(work)
        raise NoVerdict(2, 3)

class FailsAt(Changed):
    def apply(self, work):
        self.applied()
        self.step.apply(work)
        with (Path(sys.argv[2]) / self.number).open("a+") as file:
            file.write("x")
            file.flush()
            if str(file.tell()) in self.number:
                raise KeyError("no such object")

class FailsOnce(FailsAt):
    number = "1"

class FailsTwiceInThree(FailsAt):
    number = "1 3"

class LeavesHalf(Changed):
    def apply(self, work):
        self.applied()
        for path in work.config.state.glob("*/bpf_lxc.o"):
            path.write_bytes(b"half of it")
        raise KeyError("no such object")

def at_commit(change, subject):
    def changed(plan):
        return plan.change(lambda s: change(s) if isinstance(s, Commit) and plan.subject == subject else s)
    return changed

class Same(Changed):
    def apply(self, work):
        self.applied()
        self.step.apply(work)

FAULTS = {
    "caught": at_commit(steps.skipped, "host"),
    "exits": at_commit(lambda s: Exits(s.target, s), "pod-1"),
    "fails once": at_commit(lambda s: FailsOnce(s.target, s), "pod-1"),
    "fails twice in three": at_commit(lambda s: FailsTwiceInThree(s.target, s), "pod-1"),
    "survives": at_commit(lambda s: Same(s.target, s), "pod-1"),
    "blind": at_commit(lambda s: Blind(s.target, s), "pod-1"),
    "elsewhere": at_commit(steps.skipped, "overlay"),
    "hangs": at_commit(lambda s: Hangs(s.target, s), "pod-1"),
    "dies": at_commit(lambda s: Dies(s.target, s), "pod-1"),
    "leaves half": at_commit(lambda s: LeavesHalf(s.target, s), "pod-1"),
}
wanted, suite, patience, needed = sys.argv[1].split(","), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
found, controls = [], []

def note(fault, trial):
    found.append(Verdict.of(fault, trial).to_json())

REFUSED = Fault("refused", "c", "is no C", patches=(Patch("bpf_lxc.c", '#include "lib/arp.h"', "#error no C"),))
MISFIT = Fault("misfit", "c", "fits nowhere", patches=(Patch("bpf_lxc.c", "no such text", ""),))
C = {fault.name: fault for fault in (REFUSED, MISFIT)}
faults = [C.get(name) or Fault(name, "plan", "is wrong", change=FAULTS[name]) for name in wanted]
with terminable(), scratch() as directory:
    runner = Runner(
        faults,
        directory,
        workers=2,
        patience=patience,
        needed=needed,
        on_trial=note,
        on_control=controls.append,
    )
    runner.run(["-p", "no:hypothesispytest", "-c", os.devnull, "--rootdir", suite, suite])
control = {each.scenario: each.passed for each in controls}
print(json.dumps({"faults": {each["fault"]: each for each in found}, "control": control}))
"""


@contextmanager
def labs(directory: Path) -> Iterator[Path]:
    """Write the suite; yield a directory for labs, in which nothing may be left of them."""
    path = Path(f"/run/reloadlab-test-{uuid.uuid4().hex[:12]}")
    (directory / "suite").mkdir()
    (directory / "suite" / "test_small.py").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN_VARIABLE, str(path))
        yield path
        registry.sweep()
        assert not list(path.glob("*/ns"))


@pytest.fixture
def run_directory(tmp_path: Path) -> Iterator[Path]:
    """Labs of a test's own, so that what is left there is what the runner left."""
    with labs(tmp_path) as path:
        yield path


TRIED = (
    *("caught", "survives", "blind", "elsewhere", "dies", "leaves half", "exits", "refused", "misfit"),
    *("fails once", "fails twice in three"),
)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one runner tells of a fault for each outcome."""
    directory = tmp_path_factory.mktemp("tried")
    with labs(directory):
        return answer(start(directory, *TRIED))


def start(tmp_path: Path, *faults: str, patience: float = 60.0, needed: int = 2) -> subprocess.Popen[str]:
    words = [",".join(faults), str(tmp_path / "suite"), str(patience), str(needed)]
    argv = [sys.executable, "-P", "-c", DRIVER, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


def test_every_outcome(tried: dict[str, Any]) -> None:
    """A fault that breaks its trial does not keep the others from theirs."""
    assert {name: each["outcome"] for name, each in tried["faults"].items()} == {
        "caught": "caught",
        "survives": "survived",
        "blind": "no verdict",
        "elsewhere": "not exercised",
        "dies": "caught",
        "leaves half": "caught",
        "exits": "error",
        "refused": "error",
        "misfit": "error",
        "fails once": "flaky",
        "fails twice in three": "caught",
    }
    catches = {name: each["trial"]["catch"] for name, each in tried["faults"].items()}
    by = {name: catch["how"] for name, catch in catches.items() if catch is not None}
    reloads = dict.fromkeys(("leaves half", "fails twice in three"), "reload")
    assert by == {"caught": "invariant", "dies": "died", **reloads}
    assert tried["faults"]["blind"]["trial"]["blind"] == ["test_small.py::test_first"]
    caught = tried["faults"]["caught"]["trial"]
    assert caught["scenarios"] == ["test_small.py::test_first", "test_small.py::test_second"]
    assert caught["applied"] == ["test_small.py::test_second"]
    assert 2 in caught["catch"]["invariants"]
    assert caught["sent"] > 0
    assert tried["control"] == {"test_small.py::test_first": True, "test_small.py::test_second": True}


def test_what_the_checks_cannot_read_is_no_error_of_the_fault(tried: dict[str, Any]) -> None:
    """The scenario has failed: what it has found until then counts."""
    assert tried["faults"]["leaves half"]["trial"]["error"] == ""


def test_a_trial_that_breaks_is_an_error(tried: dict[str, Any]) -> None:
    said = {
        "exits": "the process ended with exit code 3 in test_small.py::test_first:\nwhat it said",
        "refused": "test_small.py::test_first: ",
        "misfit": "its old text stands in bpf_lxc.c 0 times, not once",
    }
    found = tried["faults"]
    for name, text in said.items():
        assert text in found[name]["trial"]["error"]
        assert found[name]["trial"]["catch"] is None
    assert "no C" in found["refused"]["trial"]["error"]


def test_a_catch_is_confirmed_by_two_failures_of_three(tried: dict[str, Any]) -> None:
    once, twice = (tried["faults"][name]["trial"] for name in ("fails once", "fails twice in three"))
    assert once["catch"] is None
    assert [(each["scenario"], each["tries"]) for each in once["unconfirmed"]] == [("test_small.py::test_first", 3)]
    assert once["scenarios"] == ["test_small.py::test_first", "test_small.py::test_second"]
    assert (twice["catch"]["scenario"], twice["catch"]["tries"]) == ("test_small.py::test_first", 3)


def test_a_scenario_that_does_not_end_is_hung(run_directory: Path, tmp_path: Path) -> None:
    found = answer(start(tmp_path, "hangs", patience=8, needed=1))
    catch = found["faults"]["hangs"]["trial"]["catch"]
    assert (catch["how"], catch["scenario"], catch["tries"]) == ("hung", "test_small.py::test_first", 1)


def test_a_suite_that_fails_by_itself_is_a_false_alarm(run_directory: Path, tmp_path: Path) -> None:
    broken = SUITE.replace('scenario.reload("pod-1")', "assert not scenario.node.pods")
    (tmp_path / "suite" / "test_small.py").write_text(broken)
    found = answer(start(tmp_path, "survives"))
    assert found["faults"]["survives"]["outcome"] == "false alarm"
    assert found["control"] == {"test_small.py::test_first": False}


@pytest.mark.parametrize("ending", ["os._exit(3)", "raise NoVerdict(2, 3)"], ids=["ends the process", "has no verdict"])
def test_a_control_that_saw_nothing_has_not_passed(run_directory: Path, tmp_path: Path, ending: str) -> None:
    """The scenario fails twice with the fault; without it, it ends so that nobody knows."""
    head, _, tail = SUITE.partition('scenario.reload("host")')
    runs = f"""
    count = Path(__file__).with_name("count")
    with count.open("a+") as file:
        file.write("x")
        file.flush()
        if file.tell() > 2:
            {ending}
    scenario.reload("host")"""
    imports = "import os\nfrom pathlib import Path\nfrom lab.scenario.verdict import NoVerdict\n"
    (tmp_path / "suite" / "test_small.py").write_text(f"{imports}{head}{runs.lstrip()}{tail}")
    found = answer(start(tmp_path, "caught"))
    assert found["faults"]["caught"]["outcome"] == "caught"
    assert found["control"] == {"test_small.py::test_second": None}


def test_a_suite_that_cannot_be_collected_is_an_error(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "suite" / "test_small.py").write_text("import no_such_module")
    process = start(tmp_path, "survives")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CorpusError: test_small.py" in err
    assert "No module named 'no_such_module'" in err


def test_a_suite_without_scenarios_is_an_error(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "suite" / "test_small.py").write_text("")
    process = start(tmp_path, "survives")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CorpusError: there is no scenario to try the faults on" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_of_a_runner_that_is_ended(run_directory: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "hangs")
    wait_for(lambda: list(run_directory.glob("*/node.json")))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not list(run_directory.glob("*/node.json")))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
