"""`run --kernel` and `vm` around a machine that a stand-in for QEMU plays: what is kept, told and left at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.vm.machine import without_kvm
from tests.lab.vm.standin import StandIn

pytestmark = pytest.mark.privileged

BOTH = ("run", "--kernel", "6.1,6.12", "--out", "out")


def kernels_json(stand_in: StandIn) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stand_in.out / "kernels.json").read_text())
    return found


def rows(stand_in: StandIn) -> list[tuple[str, int, str]]:
    return [(row["kernel"], row["exit_code"], row["failure"]) for row in kernels_json(stand_in)["kernels"]]


def test_a_command_has_its_files_and_its_exit_code(tmp_path: Path) -> None:
    body = """
say("in " + job["directory"])
say(job["word"] + " ended 7")
"""
    stand_in = StandIn(tmp_path, body)
    call = stand_in.run("vm", "exec", "6.1", "--", "true")
    assert (call.code, call.out) == (7, f"in {tmp_path}\n")
    assert call.errors.startswith("reloadlab: emulated") == bool(without_kvm())
    assert stand_in.left() == []


def test_all_kernels_are_in_one_result(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 'run_json(a="passed", b="skipped" if release == "6.1.0-a" else "failed")')
    call = stand_in.run(*BOTH)
    assert call.code == 0
    assert rows(stand_in) == [("6.1", 0, ""), ("6.12", 0, "")]
    assert kernels_json(stand_in)["complete"]
    page = (stand_in.out / "report.html").read_text()
    assert "1 scenario of 2 came out differently on these kernels" in page
    assert '<th scope="col">6.1.0-a</th><th scope="col">6.12.0-a</th>' in page
    assert kernels_json(stand_in)["scenarios"] == [
        {"name": "a", "outcomes": {"6.1": "passed", "6.12": "passed"}},
        {"name": "b", "outcomes": {"6.1": "skipped", "6.12": "failed"}},
    ]
    assert stand_in.left() == []


WAITS = """
run_json(a="passed", b="failed", c="running")
say("waiting")
time.sleep(600)
"""


def test_an_interrupted_run_tells_the_reasons_of_the_kernel_under_way(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, WAITS)
    with stand_in.start(*BOTH) as call:
        call.wait_for("6.1 | waiting")
        call.process.send_signal(signal.SIGINT)
        assert call.end() == 130
    assert "why b" in call.out
    assert "why a" not in call.out
    assert "6.1 (6.1.0-a): interrupted, 1 passed, 1 failed, 1 running" in call.out.splitlines()
    assert rows(stand_in) == [("6.1", 1, "interrupted")]
    assert not kernels_json(stand_in)["complete"]
    assert kernels_json(stand_in)["scenarios"][1] == {"name": "b", "outcomes": {"6.1": "failed"}}
    assert "why b" in (stand_in.out / "report.html").read_text()
    assert stand_in.left() == []


def test_of_a_run_that_is_killed_the_kernel_under_way_is_known(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 'release == "6.1.0-a" or (say("waiting"), time.sleep(600))')
    with stand_in.start(*BOTH) as call:
        call.wait_for("6.12 | waiting")
        call.process.kill()
        call.end()
    assert rows(stand_in) == [
        ("6.1", 0, ""),
        ("6.12", 1, "it has not come to its end: the run was killed, or goes on"),
    ]
    assert not kernels_json(stand_in)["complete"]


def test_a_machine_that_hangs_tells_what_had_failed_and_the_next_kernel_runs(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, f'if release == "6.1.0-a":{WAITS.replace(chr(10), chr(10) + "    ")}')
    call = stand_in.run(*BOTH, "--kernel-silence", "2")
    assert call.code == 1
    assert "why b" in call.out
    assert rows(stand_in) == [
        ("6.1", 1, "it said nothing for 2 s, apart from its kernel, and was killed"),
        ("6.12", 0, ""),
    ]


def test_down_ends_the_machine_and_no_other_kernel_is_booted(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, WAITS)
    run, down = stand_in.run_beside_down(*BOTH)
    assert (run.code, down.code) == (1, 0)
    image = tmp_path / "kernels" / "6.1.0-a" / "vmlinuz"
    assert [line.partition(" (PID")[0] for line in down.out.splitlines()] == [f"ended: {image}"]
    assert run.errors.splitlines()[-1] == "reloadlab: kernel 6.1: reloadlab vm down ended it"
    assert rows(stand_in) == [("6.1", 1, "reloadlab vm down ended it")]
    assert "6.12 | " not in run.out
    assert stand_in.left() == []


def test_down_tells_what_it_ended_also_if_vagrant_fails(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, WAITS)
    state = tmp_path / ".vagrant" / "machines" / "debian12" / "libvirt"
    state.mkdir(parents=True)
    (state / "id").write_text("1")
    (tmp_path / "bin" / "vagrant").write_text("#!/bin/sh\necho no such domain >&2\nexit 1\n")
    (tmp_path / "bin" / "vagrant").chmod(0o755)
    _, down = stand_in.run_beside_down("vm", "exec", "6.1", "--", "true")
    assert down.code == 1
    assert down.out.startswith("ended: ")
    assert down.errors == "reloadlab: vagrant could not end debian12: no such domain\n"


def test_a_full_disk_loses_what_has_no_room_and_the_next_kernel_runs(tmp_path: Path) -> None:
    body = """
run_json(a="passed")
(out / "pcap").mkdir()
(out / "pcap" / "large.pcap").write_bytes(bytes(9 << 20) if release == "6.1.0-a" else b"")
"""
    stand_in = StandIn(tmp_path, body)
    stand_in.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "full", str(stand_in.out)], timeout=60, check=True)
    try:
        call = stand_in.run(*BOTH)
        lost = "out/6.1/pcap/large.pcap is lost: No space left on device"
        assert call.code == 1
        assert call.errors.splitlines()[-1] == f"reloadlab: warning: {lost}"
        assert rows(stand_in) == [("6.1", 1, lost), ("6.12", 0, "")]
        assert kernels_json(stand_in)["scenarios"] == [{"name": "a", "outcomes": {"6.1": "passed", "6.12": "passed"}}]
    finally:
        subprocess.run(["umount", str(stand_in.out)], timeout=60, check=True)
    assert stand_in.left() == []


UNFIT = """
index = pathlib.Path(job["directory"], "kernels", "6.1.0-a", "lib", "modules", "6.1.0-a", "modules.dep")
index.unlink(missing_ok=True)
run_json(a="passed")
(out / "survey.json").write_text(json.dumps({"checks": [], "requirements": {}, "programs": {}}))
"""


def test_a_kernel_that_became_unfit_fails_alone_and_the_next_one_runs(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, UNFIT)
    call = stand_in.run("run", "--kernel", "newest,6.1,6.12", "--out", "out", "--junitxml", "junit.xml")
    modules = tmp_path / "kernels" / "6.1.0-a" / "lib" / "modules" / "6.1.0-a"
    reason = f"{modules} has no modules.dep: depmod --basedir {modules.parents[2]} 6.1.0-a"
    assert call.code == 1
    assert rows(stand_in) == [("newest", 0, ""), ("6.1", 1, reason), ("6.12", 0, "")]
    assert f"reloadlab: kernel 6.1: {reason}" in call.errors.splitlines()
    assert reason in (stand_in.out / "6.1" / "junit.xml").read_text()
    assert stand_in.left() == []


def test_a_kernel_that_became_unfit_costs_no_survey_of_another(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, UNFIT)
    call = stand_in.run("vm", "survey", "newest,6.1,6.12", "--json")
    assert call.code == 1
    failures = {each["label"]: each["failure"] for each in json.loads(call.out)}
    assert "has no modules.dep" in failures.pop("6.1")
    assert failures == {"newest": "", "6.12": ""}


@pytest.mark.parametrize("words", [BOTH, ("vm", "survey", "6.1,6.12")], ids=["run", "survey"])
@pytest.mark.parametrize("lacking", ["busybox", "modules"])
def test_what_is_missing_is_told_before_the_first_kernel_boots(
    tmp_path: Path, words: tuple[str, ...], lacking: str
) -> None:
    stand_in = StandIn(tmp_path, 'pathlib.Path(job["directory"], "booted").touch()')
    stand_in.out.mkdir()
    (stand_in.out / "report.html").write_text("that of the run before")
    if lacking == "busybox":
        (tmp_path / "bin" / "busybox").symlink_to(Path(sys.executable).resolve())
        said = "busybox needs shared libraries: apt-get install busybox-static"
    else:
        (tmp_path / "kernels" / "6.12.0-a" / "lib" / "modules" / "6.12.0-a" / "modules.dep").unlink()
        said = f"has no modules.dep: depmod --basedir {tmp_path}/kernels/6.12.0-a 6.12.0-a"
    call = stand_in.run(*words)
    assert call.code == 1
    assert call.errors.splitlines()[-1].endswith(said)
    assert not (tmp_path / "booted").exists()
    assert (stand_in.out / "report.html").read_text() == "that of the run before"


def test_no_file_of_the_run_before_stays_for_a_kernel_that_is_not_come_to(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, WAITS)
    (stand_in.out / "6.12").mkdir(parents=True)
    (stand_in.out / "6.12" / "junit.xml").write_text("all passed")
    with stand_in.start(*BOTH) as call:
        call.wait_for("6.1 | waiting")
        call.process.send_signal(signal.SIGINT)
        assert call.end() == 130
    assert not (stand_in.out / "6.12" / "junit.xml").exists()


def test_temporary_files_without_room_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, 'run_json(a="passed")')
    temporary = tmp_path / "tmp"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "full", temporary], timeout=60, check=True)
    try:
        call = stand_in.run("run", "--kernel", "6.1", "--out", "out")
        reason = f"{temporary} has no room for a machine: make room, or name another directory in TMPDIR"
        assert call.code == 1
        assert call.errors.splitlines()[-1] == f"reloadlab: kernel 6.1: {reason}"
        assert rows(stand_in) == [("6.1", 1, reason)]
        assert stand_in.left() == []
    finally:
        subprocess.run(["umount", temporary], timeout=60, check=True)


def test_a_run_that_cannot_be_written_is_not_called_interrupted(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, '(out / "pcap").mkdir()')
    (stand_in.out / "6.1").mkdir(parents=True)
    (stand_in.out / "6.1" / "pcap").write_text("no directory")
    call = stand_in.run(*BOTH)
    assert call.code == 1
    assert call.errors.splitlines()[-1] == "reloadlab: out/6.1/pcap: Not a directory"
    assert rows(stand_in) == [("6.1", 1, "out/6.1/pcap: Not a directory")]


SURVEYS = """
name = job["argv"][-1]
found = {"checks": [{"name": name, "good": True, "message": ""}], "requirements": {}, "programs": {}}
(out / "survey.json").write_text(json.dumps(found))
if release == "6.12.0-a" and name == "plain":
    say("waiting")
    time.sleep(600)
"""


def test_surveys_are_kept_kernel_by_kernel_and_others_are_added(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, SURVEYS)
    words = ("vm", "survey", "--out", "all/found.json", "--json")

    def found() -> list[tuple[str, str, str]]:
        surveys = json.loads((tmp_path / "all" / "found.json").read_text())
        return [(each["label"], each["checks"][0]["name"], each["failure"]) for each in surveys]

    call = stand_in.run(*words, "6.12", "--mode", "tunnel")
    assert call.code == 0, call.errors
    with stand_in.start(*words, "6.1,6.12", "--mode", "plain") as call:
        while "waiting" not in (line := call.process.stderr.readline()):  # type: ignore[union-attr]
            assert line
        call.process.send_signal(signal.SIGINT)
        assert call.end() == 130
    # The one that was interrupted is as it was, the one before it is kept, and both are printed.
    assert found() == [("6.1", "plain", ""), ("6.12", "tunnel", "")]
    assert [each["label"] for each in json.loads(call.out)] == ["6.1", "6.12"]
    assert stand_in.run(*words, "6.1", "--mode", "tunnel").code == 0
    assert found() == [("6.1", "tunnel", ""), ("6.12", "tunnel", "")]
    assert stand_in.left() == []


def test_a_survey_is_judged_by_its_own_kernels_and_not_by_what_the_file_had(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, SURVEYS.replace('"good": True', '"good": release == "6.12.0-a"'))
    words = ("vm", "survey", "--out", "found.json", "--mode", "tunnel")
    assert stand_in.run(*words, "6.1").code == 1
    call = stand_in.run(*words, "6.12")
    assert call.code == 0, call.out
    assert "6.1: tunnel: " in call.out.splitlines()
    assert stand_in.run(*words, "6.12,6.1").code == 1


def test_a_file_of_something_else_is_not_replaced_by_surveys(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, SURVEYS)
    (tmp_path / "notes.json").write_text("[1]")
    call = stand_in.run("vm", "survey", "6.1", "--out", "notes.json")
    assert call.code == 2
    assert "reloadlab: --out notes.json: it is there and holds no surveys: " in call.errors
    assert (tmp_path / "notes.json").read_text() == "[1]"
