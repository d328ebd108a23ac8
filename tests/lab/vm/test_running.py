from __future__ import annotations

import signal
import subprocess
import time

from lab.vm.running import Running, described, end, running

SHARE = "local,id=share,security_model=none,path=/tmp/reloadlab-scratch-x/share"


def test_guests_of_others_are_told_by_what_they_share() -> None:
    qemu = "/usr/bin/qemu-system-x86_64"
    assert described(1, [qemu, "-kernel", "/k/vmlinuz", "-fsdev", SHARE, ""]) == Running(1, "/k/vmlinuz", True)
    assert described(2, [qemu, "-name", "guest=theirs,debug-threads=on", ""]) == Running(2, "theirs", False)
    assert described(3, [qemu, ""]) == Running(3, "without a name", False)


def test_a_guest_is_ended_and_one_that_has_ended_is_no_error() -> None:
    argv = ["/tmp/qemu-system-x86_64", "-c", "import time; time.sleep(60)", "-fsdev", SHARE]
    process = subprocess.Popen(argv, executable="/usr/bin/python3")
    try:
        deadline = time.monotonic() + 10
        while not (mine := [each for each in running() if each.pid == process.pid]):
            assert time.monotonic() < deadline
        assert mine == [Running(process.pid, "without a name", True)]
        end(Running(process.pid, "another", True))
        assert process.poll() is None
        end(mine[0])
        assert process.wait(10) == -signal.SIGTERM
        end(mine[0])
    finally:
        process.kill()
        process.wait()
