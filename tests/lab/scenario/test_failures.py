"""What is printed of a scenario that fails, and what stays of it: findings, no frames of ours, packets, the lab."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import Status
from lab.node import registry
from lab.scenario.records import ERROR, read
from tests.lab.labs import ROOT, cli
from tests.nested import SHORT_NAMES

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.privileged

USER, GROUP = 12345, 12346

LOST = """
import pytest
from tests.lab.emptied import EmptySlot, before

@pytest.mark.node(pods=2)
def test_lost(scenario):
    scenario.agent.change = before("attach ingress", EmptySlot("slot"))
    scenario.reload("pod-2")
    scenario.agent.change = None
"""

AT_A_GATE = """
import pytest
from reloadlab import Gate

def wrong(step, work):
    assert step.name == "something else"

@pytest.mark.node(pods=1)
def test_at_a_gate(scenario):
    scenario.reload("pod-1", gate=Gate(wrong, before="commit"))
"""


GOOD = """
import pytest

@pytest.mark.node(pods=1)
def test_good(scenario):
    scenario.reload("pod-1")
"""


STARVED = """
import os, signal, pytest

@pytest.mark.node(pods=1, bursts="none")
def test_starved(scenario):
    os.kill(scenario.traffic.pid, signal.SIGSTOP)
    try:
        scenario.reload()
    finally:
        os.kill(scenario.traffic.pid, signal.SIGCONT)
"""


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of labs of the test's own."""
    path = Path(f"/run/reloadlab-test-{os.getpid()}-{tmp_path.name}"[:60])
    monkeypatch.setenv(registry.RUN_VARIABLE, str(path))
    yield path
    registry.remove_all(force=True)


def run(pytester: pytest.Pytester, suite: str, *options: str) -> str:
    pytester.makepyfile(test_mine=suite)
    result = pytester.runpytest_subprocess(*SHORT_NAMES, *options, timeout=170)
    result.assert_outcomes(failed=1)
    return result.stdout.str()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_findings_are_printed_and_no_frames(pytester: pytest.Pytester, labs: Path, workers: str) -> None:
    out = run(pytester, LOST, "-n", workers)
    found = [line for line in out.splitlines() if 'sent during "empty slot slot" of pod-2 (generation ' in line]
    assert found
    assert all(line.startswith("  invariant 7: ") for line in found)
    assert re.search(r"lab/\w+/\w+\.py", out) is None
    assert registry.list_labs() == ()


def test_what_a_suite_raises_at_a_gate_is_told_by_its_own_lines(pytester: pytest.Pytester, labs: Path) -> None:
    """Between the test and its function at the gate are dozens of frames of ours."""
    out = run(pytester, AT_A_GATE)
    for line in ('scenario.reload("pod-1", gate=Gate(wrong', 'assert step.name == "something else"'):
        assert line in out
    assert "AssertionError" in out
    for name in ("transaction.py", "scenario/gate.py", "agent/reloader.py"):
        assert name not in out
    full = run(pytester, AT_A_GATE, "--full-trace")
    assert "transaction.py" in full


def test_a_kept_lab_stays_and_can_be_used(pytester: pytest.Pytester, labs: Path) -> None:
    """The commands that are printed work, and nobody sweeps it away."""
    out = run(pytester, LOST, "--reloadlab-keep", "-n", "1")
    (lab,) = registry.list_labs()
    assert lab.status is Status.UP
    assert not lab.pids
    assert registry.sweep() == ()
    assert f"lab {lab.name} is kept:" in out
    # Where pytest knows that it runs in CI, its summary tells the whole message again.
    commands = dict.fromkeys(re.findall(rf"^ +{registry.RUN_VARIABLE}={labs} reloadlab (.*)$", out, re.MULTILINE))
    assert [command.split()[0] for command in commands] == ["show", "exec", "down"]
    for command in (f"reload {lab.name}/pod-1", *commands):
        subprocess.run(cli(*command.split()), cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert registry.list_labs() == ()


def test_packets_around_findings_are_written(
    pytester: pytest.Pytester, labs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to the user of sudo, as the directory does, and nobody else may read them."""
    monkeypatch.setenv("SUDO_UID", str(USER))
    monkeypatch.setenv("SUDO_GID", str(GROUP))
    os.chown(tmp_path, USER, GROUP)
    directory = tmp_path / "a" / "packets"
    out = run(pytester, LOST, "--reloadlab-pcap", str(directory))
    (file,) = directory.iterdir()
    for made, mode in ((directory, 0o755), (file, 0o600)):
        found = made.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (USER, GROUP, mode)
    assert f"packets around the findings: {file}" in out
    assert file.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a", "no pcapng"


def test_a_directory_of_packets_that_is_a_link_is_refused(pytester: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    pytester.makepyfile(test_mine=GOOD)
    result = pytester.runpytest_subprocess(*SHORT_NAMES, "--reloadlab-pcap", str(tmp_path / "link"), timeout=170)
    said = f"{tmp_path}/link is a symbolic link: name the directory that it leads to"
    result.stderr.fnmatch_lines([f"ERROR: --reloadlab-pcap {tmp_path}/link: {said}"])


def test_without_findings_no_packets_are_written(pytester: pytest.Pytester, labs: Path, tmp_path: Path) -> None:
    pytester.makepyfile(test_mine=GOOD)
    result = pytester.runpytest_subprocess(*SHORT_NAMES, "--reloadlab-pcap", str(tmp_path / "packets"), timeout=170)
    result.assert_outcomes(passed=1)
    assert list((tmp_path / "packets").iterdir()) == []


def test_traffic_that_could_not_run_is_no_verdict(pytester: pytest.Pytester, labs: Path) -> None:
    """The scenario has not passed, and nothing is wrong with what it tests: an error."""
    out = run(pytester, STARVED, "--reloadlab-record", "records")
    assert re.search(r"^no verdict: the traffic got no CPU for \d+ of the \d+ ms of reloads$", out, re.MULTILINE)
    (record,) = read((pytester.path / "records").glob("*.json"))
    assert (record.outcome, record.violations) == (ERROR, ())
    assert record.message.startswith("no verdict: ")
    assert record.starved_ns > 0
