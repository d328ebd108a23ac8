"""Whether a call that was let on may still change something, and whether who made it has something to do."""

from __future__ import annotations

import os

from lab.gates.call import Call
from lab.gates.seccomp import number_of


def is_under_way(call: Call) -> bool:
    """Tell whether a thread is still in a call that was let on, as /proc shows it; True where it shows no number.

    A thread that has ended is in none.
    """
    return _now(call.thread) in (_RUNNING, str(number_of(call.syscall)))


def is_busy(call: Call) -> bool:
    """Tell whether a call that was let on is under way, or a thread of its process runs, or would if it got a CPU."""
    try:
        threads = os.listdir(f"/proc/{call.thread}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return is_under_way(call) or any(_now(int(thread)) == _RUNNING for thread in threads)


_RUNNING = "running"


def _now(thread: int) -> str:
    """Return the number of the system call that a thread is in, _RUNNING of one that runs; empty if it has ended."""
    try:
        with open(f"/proc/{thread}/syscall") as file:
            return file.read().split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
