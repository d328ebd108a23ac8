from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.system.process import Process, fork, status_fields

INTERRUPTED = """
import os, signal
from lab.system.process import fork
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
kept = []
try:
    fork(lambda: os._exit(0), kept.append)
except KeyboardInterrupt:
    print("interrupted,", len(kept), "kept,", kept[0].wait())
"""


def forked(serve: object) -> Process:
    assert callable(serve)
    kept: list[Process] = []
    fork(serve, kept.append)
    return kept[0]


def test_the_name_of_a_process_may_hold_any_bytes() -> None:
    name = Path("/proc/self/comm")
    before = name.read_bytes().rstrip()
    name.write_bytes(b"a) Z 1 \xff")
    try:
        assert status_fields(os.getpid())[1] == str(os.getppid())
    finally:
        name.write_bytes(before)


def test_an_interrupt_during_the_fork_is_neither_lost_nor_too_early() -> None:
    """Python drops what is raised while it calls what modules have registered for a fork."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=os.getcwd(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("interrupted, 1 kept, 0\n", "")


@pytest.mark.parametrize(("end", "status"), [("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", -9)])
def test_the_end_of_a_process_is_its_status_or_its_signal(end: str, status: int) -> None:
    process = forked(lambda: exec(end))
    assert [process.wait(10), process.wait()] == [status, status]
    process.signal(signal.SIGTERM)
    process.close()


def test_a_wait_ends_in_time() -> None:
    process = forked(lambda: time.sleep(60))
    with pytest.raises(TimeoutError, match=f"process {process.pid} has not ended within 0.05 s"):
        process.wait(0.05)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.close()


def test_what_is_raised_in_the_child_does_not_unwind_the_parents_stack() -> None:
    def fail() -> None:
        # The test runner's own file of errors is not to have it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise KeyError("in the child")

    process = forked(fail)
    assert process.wait(10) == 1
    process.close()
