"""Whether a call that was let on may still change something."""

from __future__ import annotations

from lab.gates.call import Call
from lab.gates.seccomp import number_of


def is_under_way(call: Call) -> bool:
    """Tell whether a thread is still in a call that was let on, as /proc shows it; True where it shows no number.

    A thread that has ended is in none.
    """
    try:
        with open(f"/proc/{call.thread}/syscall") as file:
            now = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return now[:1] == ["running"] or now[:1] == [str(number_of(call.syscall))]
