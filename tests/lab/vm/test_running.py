from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab.vm.running import TAKEN_DOWN, Running, described, end, running

SCRATCH = Path("/tmp/reloadlab-scratch-x")
NOBODY = 65534
SHARE = "local,id=share,security_model=none,path=/tmp/reloadlab-scratch-x/share"


def test_guests_of_others_are_told_by_what_they_share() -> None:
    qemu = "/usr/bin/qemu-system-x86_64"
    assert described(1, [qemu, "-kernel", "/k/vmlinuz", "-fsdev", SHARE, ""]) == Running(1, "/k/vmlinuz", SCRATCH)
    assert described(2, [qemu, "-name", "guest=theirs,debug-threads=on", ""]) == Running(2, "theirs", None)
    assert described(3, [qemu, ""]) == Running(3, "without a name", None)


def test_a_guest_is_ended_and_one_that_has_ended_is_no_error() -> None:
    argv = ["/tmp/qemu-system-x86_64", "-c", "import time; time.sleep(60)", "-fsdev", SHARE]
    process = subprocess.Popen(argv, executable="/usr/bin/python3")
    try:
        deadline = time.monotonic() + 10
        while not (mine := [each for each in running() if each.pid == process.pid]):
            assert time.monotonic() < deadline
        assert mine == [Running(process.pid, "without a name", SCRATCH)]
        end(Running(process.pid, "another", SCRATCH))
        assert process.poll() is None
        end(mine[0])
        assert process.wait(10) == -signal.SIGTERM
        end(mine[0])
    finally:
        process.kill()
        process.wait()


@pytest.mark.privileged
@pytest.mark.parametrize("kind", ["a link", "another user's"])
def test_a_directory_that_any_process_may_have_named_is_left_alone(tmp_path: Path, kind: str) -> None:
    """Its command is all that a process tells of itself: one of anybody's names what root is to write into."""
    tmp_path.chmod(0o755)
    target, scratch = tmp_path / "nologin", tmp_path / "reloadlab-scratch-x"
    directory = tmp_path / "elsewhere" if kind == "a link" else scratch
    directory.mkdir()
    if kind == "a link":
        scratch.symlink_to(directory)
    else:
        (directory / TAKEN_DOWN).symlink_to(target)
        os.chown(directory, NOBODY, NOBODY)
    share = f"local,id=share,path={scratch}/share"
    argv = ["/tmp/qemu-system-x86_64", "-c", "import time; time.sleep(60)", "-fsdev", share]
    process = subprocess.Popen(argv, executable="/usr/bin/python3", user=NOBODY, group=NOBODY)
    try:
        deadline = time.monotonic() + 10
        while not (mine := [each for each in running() if each.pid == process.pid]):
            assert time.monotonic() < deadline
        end(mine[0])
        assert process.wait(10) == -signal.SIGTERM
        assert not target.exists()
        assert not (directory / TAKEN_DOWN).exists()
    finally:
        process.kill()
        process.wait()


def test_one_that_does_not_hear_is_killed_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.vm.running._SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    argv = ["/tmp/qemu-system-x86_64", "-c", deaf, "-fsdev", SHARE]
    process = subprocess.Popen(argv, executable="/usr/bin/python3", stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        end(Running(process.pid, "without a name", SCRATCH))
        # Not yet reaped, but over.
        assert process.wait(0) == -signal.SIGKILL


def test_a_directory_with_a_comma_is_understood() -> None:
    """QEMU takes two for one in a value."""
    share = "local,id=share,security_model=none,path=/a,,b/reloadlab-scratch-y/share"
    assert described(1, ["qemu-system-x86_64", "-fsdev", share, ""]).scratch == Path("/a,b/reloadlab-scratch-y")
