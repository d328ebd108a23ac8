"""The verdict of a run, by the real command: exit code, table and run.json say the same of everything collected."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.errors import Status
from lab.node import registry
from tests.lab.labs import ROOT, cli

pytestmark = pytest.mark.privileged

THREE = """
def test_one():
    pass

def test_two():
    assert 2 == 3

def test_three():
    pass
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    document: dict[str, Any]

    @property
    def outcomes(self) -> dict[str, str]:
        return {each["name"].rpartition("::")[2]: each["outcome"] for each in self.document["scenarios"]}

    def message(self, name: str) -> str:
        (found,) = [each for each in self.document["scenarios"] if each["name"].endswith(f"::{name}")]
        return str(found["message"])


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of labs in which nothing may be left."""
    path = Path(f"/run/reloadlab-test-{os.getpid()}-{tmp_path.name}"[:60])
    monkeypatch.setenv(registry.RUN_VARIABLE, str(path))
    yield path
    left = registry.list_labs()
    registry.remove_all(force=True)
    assert left == ()


@pytest.fixture
def suite(tmp_path: Path, labs: Path) -> Path:
    # Hypothesis is imported by its plugin at the end of each run: no scenario needs it.
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:hypothesispytest\n")
    return tmp_path / "test_mine.py"


def command(suite: Path, *options: str, workers: str = "1") -> list[str]:
    own = ("run", str(suite), "--workers", workers, "--rounds", "0", "--out", str(suite.with_name("out")))
    return cli(*own, *(("--", *options) if options else ()))


def run(suite: Path, *options: str, workers: str = "1", env: dict[str, str] | None = None) -> Ran:
    return call(suite, command(suite, *options, workers=workers), env)


def call(suite: Path, argv: list[str], env: dict[str, str] | None = None, *, directory: Path = ROOT) -> Ran:
    environment = os.environ | (env or {})
    done = subprocess.run(
        argv,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr, document(suite))


def page_of(suite: Path) -> str:
    """Return the line that tells the page of a run that did not come to its end."""
    return f"reloadlab: what there is of the run: {suite.with_name('out')}/report.html\n"


def ci_files(suite: Path) -> tuple[str, ...]:
    """Return the options for files that a CI server reads; a job has written into its summary before."""
    suite.with_name("summary.md").write_text("first\n")
    return "--junitxml", str(suite.with_name("ci.xml")), "--summary", str(suite.with_name("summary.md"))


def told_in_xml(suite: Path) -> dict[str, list[str]]:
    """Return the elements by which each case tells how it ended."""
    cases = ElementTree.parse(suite.with_name("ci.xml")).getroot().iter("testcase")
    return {case.attrib["name"]: [child.tag for child in case if child.tag != "properties"] for case in cases}


def summary_of(suite: Path) -> str:
    return suite.with_name("summary.md").read_text()


def document(suite: Path) -> dict[str, Any]:
    return dict(json.loads((suite.with_name("out") / "run.json").read_text()))


CRASH = """
import os, signal
import pytest

@pytest.mark.node(pods=1)
def test_dies(scenario):
    os.kill(os.getpid(), signal.SIGKILL)

def test_lives():
    pass
"""


def test_a_crashed_worker_is_an_error_and_leaves_no_lab(suite: Path, labs: Path) -> None:
    suite.write_text(CRASH)
    ran = run(suite)
    assert (ran.code, ran.outcomes) == (1, {"test_dies": "error", "test_lives": "passed"})
    assert "crashed while running" in ran.message("test_dies")
    assert re.search(r"mine: dies +error ", ran.out)
    assert "worker 'gw0' crashed while running" in ran.out
    assert "2 scenarios in" in ran.out
    assert "1 error" in ran.out
    assert registry.list_labs() == ()
    assert ran.document["complete"] is True


LOST = """
import pytest
from tests.lab.emptied import EmptySlot, before

@pytest.mark.node(pods=2)
def test_lost(scenario):
    scenario.agent.change = before("attach ingress", EmptySlot("slot"))
    scenario.reload("pod-2")
    scenario.agent.change = None
"""


def test_a_kept_lab_is_there_after_the_run_and_the_findings_name_the_step(suite: Path, labs: Path) -> None:
    """The run sweeps away what dead workers leave, but not what was kept; the terminal and run.json say the same."""
    suite.write_text(LOST)
    ran = call(suite, [*command(suite), "--keep"])
    kept = registry.list_labs()
    registry.remove_all()
    assert (ran.code, ran.outcomes) == (1, {"test_lost": "failed"})
    assert [lab.status for lab in kept] == [Status.UP]
    (scenario,) = ran.document["scenarios"]
    lines = [line.strip() for line in ran.message("test_lost").splitlines()]
    told = [line for line in lines if 'sent during "empty slot slot" of pod-2 (generation ' in line]
    assert told
    assert set(told) <= set(scenario["violations"])
    assert f"reloadlab down {kept[0].name}" in ran.message("test_lost")
    for line in (told[0], f"lab {kept[0].name} is kept:"):
        assert line in ran.out
    assert "Traceback" not in ran.out
    (phase,) = scenario["traffic"]
    assert scenario["lost"] == sum(flow["lost"] for flow in phase["flows"]) > 0
    assert scenario["steps"]["seen"] > 0
    assert f"{scenario['steps']['seen']} of " in ran.out


def test_pytest_that_dies_is_an_error(suite: Path) -> None:
    """With exit code 0: only the records know that something is missing."""
    suite.write_text(
        "import os\n\ndef test_one():\n    pass\n\ndef test_two():\n    os._exit(0)\n\ndef test_three():\n    pass\n"
    )
    ran = call(suite, [*command(suite), *ci_files(suite), "--", "-n0"])
    assert (ran.code, ran.outcomes) == (1, {"test_one": "passed", "test_two": "error", "test_three": "not run"})
    assert told_in_xml(suite) == {"test_one": [], "test_two": ["error"], "test_three": ["skipped"]}
    assert ran.message("test_two").startswith("pytest died while it ran ")
    assert "1 error, 1 not run" in ran.out


def test_a_run_of_another_checkout_runs_the_code_of_that(suite: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("bpf", "datapath", "lab", "reloadlab"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [f"    assert {name}.__file__.startswith({str(other)!r})" for name in ("datapath", "lab", "reloadlab")]
    suite.write_text("\n".join(["import datapath, lab, reloadlab", "def test_where():", *lines]))
    # The environment has this checkout installed, as that of `make setup` has; the other one is where the user stands.
    argv = [sys.executable, "-m", "reloadlab", *command(suite)[len(cli()) :]]
    ran = call(suite, argv, {"PYTHONPATH": ""}, directory=other)
    assert ran.outcomes == {"test_where": "passed"}, ran.message("test_where")


def test_first_failure_stops_the_rest(suite: Path) -> None:
    suite.write_text(THREE)
    ran = run(suite, "-x")
    assert ran.code == 1
    assert ran.outcomes == {"test_one": "passed", "test_two": "failed", "test_three": "not run"}
    assert re.search(r"mine: three +not run ", ran.out)
    assert "1 scenario failed, 1 not run" in ran.out


SKIPPED = """
import pytest

def test_one():
    pass

def test_two():
    pytest.skip("not today")
"""


def test_what_was_skipped_is_not_called_passed(suite: Path) -> None:
    suite.write_text(SKIPPED)
    ran = run(suite)
    assert (ran.code, ran.outcomes) == (0, {"test_one": "passed", "test_two": "skipped"})
    assert "1 passed, 1 skipped" in ran.out
    assert "all passed" not in ran.out


def test_what_run_json_holds_is_printed_on_demand(suite: Path) -> None:
    suite.write_text(THREE)
    ran = call(suite, [*command(suite), "--json", "--trace", *ci_files(suite), "--", "-v", "-n0"])
    assert ran.code == 1
    assert "test_mine.py::test_one" in ran.err, "the report of pytest does not mix with it"
    assert told_in_xml(suite) == {"test_one": [], "test_two": ["failure"], "test_three": []}
    assert summary_of(suite).startswith("first\n## reloadlab: 2 passed, 1 failed\n")
    assert json.loads(ran.out) == ran.document
    assert "1 scenario failed" in ran.err
    events = json.loads((suite.with_name("out") / "trace.json").read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        f"{each['name']} ({each['outcome']})" for each in ran.document["scenarios"]
    }


def test_a_run_in_which_all_is_skipped_has_checked_nothing(suite: Path) -> None:
    suite.write_text(SKIPPED)
    ran = run(suite, "-n0", "-k", "two")
    assert ran.code == 1
    assert "nothing was checked: all skipped" in ran.out


def test_failed_last(suite: Path) -> None:
    """What run.json tells of the last run is what pytest takes for its own cache."""
    suite.write_text(THREE)
    ran = run(suite, "-n0")
    assert (ran.code, ran.outcomes) == (1, {"test_one": "passed", "test_two": "failed", "test_three": "passed"})
    assert run(suite, "-n0", "--lf").outcomes == {"test_two": "failed"}
    suite.write_text(THREE.replace("2 == 3", "2 == 2"))
    ran = run(suite, "-n0", "--lf")
    assert (ran.code, ran.outcomes) == (0, {"test_two": "passed"})
    assert not [path for path in ROOT.glob(".pytest_cache/**/lastfailed") if "test_mine" in path.read_text()]


def test_pytest_prints_its_own_report_with_its_options(suite: Path) -> None:
    suite.write_text(THREE)
    xml = suite.with_name("junit.xml")
    ran = run(suite, "-v", f"--junitxml={xml}", "--durations=3", "--durations-min=0")
    assert re.search(r"\[gw0\].* PASSED .*test_mine.py::test_one", ran.out)
    assert "slowest 3 durations" in ran.out
    tests = ElementTree.parse(xml).getroot().findall(".//testcase")
    assert sorted(test.attrib["name"] for test in tests) == ["test_one", "test_three", "test_two"]
    assert (ran.code, ran.outcomes["test_two"]) == (1, "failed")


def test_scenarios_that_are_only_listed_are_followed_by_no_measurement(suite: Path) -> None:
    suite.write_text(THREE)
    ran = call(suite, [*command(suite)[:-2], "--rounds", "1", "--out", str(suite.with_name("out")), "--", "--co"])
    assert "<Function test_one>" in ran.out
    assert (ran.code, set(ran.outcomes.values())) == (1, {"not run"})
    assert "3 not run; all of it in" in ran.out
    assert ran.document["parallel"] is None


def test_options_that_pytest_does_not_know_are_a_wrong_call(suite: Path) -> None:
    suite.write_text(THREE)
    ran = run(suite, "--bogus")
    assert ran.code == 2
    assert "unrecognized arguments: --bogus" in ran.err
    assert ran.err.splitlines()[-1] == "reloadlab: pytest does not understand the call: see above"
    assert "Traceback" not in ran.err


def test_a_debugger_wants_one_process(suite: Path) -> None:
    suite.write_text(THREE)
    ran = run(suite, "--pdb", workers="2")
    assert ran.code == 2
    assert "--pdb is incompatible with distributing tests" in ran.err


def test_debugger_gets_the_terminal(suite: Path) -> None:
    """Ctrl-C at its prompt is its own affair."""
    suite.write_text(THREE)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command(suite, "--pdb", workers="auto"),
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        said = read_until(controller, "(Pdb) ")
        assert "assert 2 == 3" in said
        os.write(controller, b"p 20 + 22\n")
        assert "42" in read_until(controller, "(Pdb) ")
        os.kill(process.pid, signal.SIGINT)
        os.write(controller, b"continue\n")
        read_until(controller, "all of it in")
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    names = {each["name"].rpartition("::")[2]: each["outcome"] for each in document(suite)["scenarios"]}
    assert names == {"test_one": "passed", "test_two": "failed", "test_three": "passed"}


def read_until(descriptor: int, text: str) -> str:
    said, deadline = b"", time.monotonic() + 90
    while text.encode() not in said:
        assert select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0], said.decode()
        said += os.read(descriptor, 4096)
    return said.decode()


def test_under_sudo_only_the_own_file_changes_its_owner(suite: Path) -> None:
    """And variables of pytest are not heard."""
    suite.write_text("def test_one():\n    pass\n")
    out, shadow = suite.with_name("out"), suite.with_name("shadow")
    out.mkdir()
    os.chown(out, 12345, 12345)
    shadow.write_text("precious")
    for name in ("link", "run.json", "report.html"):
        (out / name).symlink_to(shadow)
    of_pytest = {"PYTEST_ADDOPTS": "--bogus", "PYTEST_PLUGINS": "no_such", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = run(suite, env={"SUDO_UID": "12345", "SUDO_GID": "12346"} | of_pytest)
    assert (ran.code, ran.err) == (0, "")
    assert (shadow.read_text(), shadow.stat().st_uid) == ("precious", 0)
    for name in ("run.json", "report.html"):
        status = (out / name).lstat()
        assert (status.st_uid, status.st_gid) == (12345, 12346)
    assert ran.outcomes == {"test_one": "passed"}
    assert sorted(path.name for path in out.iterdir()) == ["link", "report.html", "run.json"]


SLOW = """
import time

def test_1_passes():
    pass

def test_2_fails():
    assert 2 == 3

def test_3_waits():
    time.sleep(100)

def test_4_comes_later():
    pass
"""


def started(suite: Path) -> subprocess.Popen[str]:
    """Start a run and return it when its third test is under way."""
    suite.write_text(SLOW)
    argv = [*command(suite), *ci_files(suite)]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while not (suite.with_name("out") / "run.json").exists() or "running" not in waiting(suite):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def waiting(suite: Path) -> list[str]:
    return [each["outcome"] for each in document(suite)["scenarios"] if "3_waits" in each["name"]]


def test_an_interrupted_run_tells_the_reasons_and_keeps_what_it_had(suite: Path) -> None:
    with started(suite) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"{page_of(suite)}reloadlab: interrupted\n")
    assert "assert 2 == 3" in out
    ran = Ran(process.returncode, out, err, document(suite))
    assert ran.document["complete"] is False
    wanted = {"test_1_passes": "passed", "test_2_fails": "failed", "test_3_waits": "not run"}
    assert ran.outcomes == wanted | {"test_4_comes_later": "not run"}
    assert ran.message("test_3_waits") == "stopped while it ran"
    assert ran.message("test_4_comes_later") == ""
    assert ran.document["error"] == "interrupted"
    left_out = {"test_3_waits": ["skipped"], "test_4_comes_later": ["skipped"], "the run": ["error"]}
    assert told_in_xml(suite) == {"test_1_passes": [], "test_2_fails": ["failure"], **left_out}
    assert "**the run did not come to its end: interrupted**" in summary_of(suite)
    page = suite.with_name("out") / "report.html"
    assert "What ended it: interrupted." in page.read_text()


def test_ctrl_c_on_a_terminal_takes_the_progress_away_and_shows_the_cursor(suite: Path) -> None:
    suite.write_text(SLOW)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(command(suite), cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    try:
        said = read_until(controller, "2/4")
        process.send_signal(signal.SIGINT)
        said += read_until(controller, "interrupted")
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert "1 failed" in said
    assert "stopping" in said
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert said.rindex(hide) < said.rindex(show) < said.rindex("assert 2 == 3")


def test_a_killed_run_leaves_what_it_had_and_takes_pytest_along(suite: Path) -> None:
    with started(suite) as process:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        descriptor = os.pidfd_open(int(child))
        process.kill()
        try:
            assert select.select([descriptor], [], [], 60)[0], "pytest goes on for nobody"
        finally:
            os.close(descriptor)
        process.communicate()
    ran = Ran(process.returncode, "", "", document(suite))
    assert ran.document["complete"] is False
    assert ran.outcomes["test_1_passes"] == "passed"
    assert ran.outcomes["test_2_fails"] == "failed"
    assert told_in_xml(suite) == {"the run": ["error"]}
    assert summary_of(suite) == "first\n"


def test_a_run_that_cannot_begin_says_so_in_the_files_too(suite: Path) -> None:
    done = subprocess.run(
        [*command(suite), *ci_files(suite)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"reloadlab: {suite}: no such file or directory\n")
    assert told_in_xml(suite) == {"the run": ["error"]}
    assert f"{suite.name}: no such file or directory".replace("_", "\\_") in summary_of(suite)
    assert not suite.with_name("out").exists()


def test_files_that_cannot_be_written_end_the_run_before_it_begins(suite: Path) -> None:
    suite.write_text(THREE)
    suite.with_name("link.md").symlink_to(suite)
    argv = [*command(suite), "--summary", str(suite.with_name("link.md"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "link.md" in done.stderr
    assert suite.read_text() == THREE


def test_results_are_written_before_the_measurement(suite: Path) -> None:
    suite.write_text(THREE)
    ran = call(suite, [*command(suite), "--rounds", "1", "--pods", "5000", *ci_files(suite)])
    assert (ran.code, ran.err) == (2, f"{page_of(suite)}reloadlab: a node has 0 to 4000 pods, not 5002\n")
    assert "assert 2 == 3" in ran.out
    assert (ran.document["complete"], ran.outcomes["test_two"]) == (False, "failed")
    assert told_in_xml(suite) == {"test_one": [], "test_two": ["failure"], "test_three": [], "the run": ["error"]}
