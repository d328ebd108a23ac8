"""Child processes: forked from this one, with all that is imported and opened here; their state, and their end."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from datapath.kernel.libc import check, function
from lab.system.signals import SIGNALS

_PR_SET_PDEATHSIG = 1
_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)


def status_fields(pid: int) -> list[str]:
    """Return what /proc/PID/stat says behind the name of a process: state, parent, group, session, and the rest.

    FileNotFoundError or ProcessLookupError if there is none.
    """
    # The name in parentheses may hold any bytes, also parentheses and blanks.
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()


class Process:
    """The parent's end of a child process: `pid`, and `pidfd`, a descriptor of it that is open until `close`."""

    def __init__(self, pid: int) -> None:
        """Take a child that nobody has waited for; OSError if there is no descriptor left for it."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status, or the negative number of the signal that killed it.

        TimeoutError after `timeout` seconds. 0 if somebody else has reaped it, such as the kernel for a caller that
        ignores SIGCHLD.
        """
        if self._status is None:
            self._status = self._wait(timeout)
        return self._status

    def _wait(self, timeout: float | None) -> int:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError(f"process {self.pid} has not ended within {timeout:g} s")
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            return 0
        if info is None:
            return 0
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self.pidfd)


def fork(serve: Callable[[], object], keep: Callable[[Process], object]) -> None:
    """Fork the calling thread. The new process calls `serve`, whose last act is os._exit; `keep` gets it, here.

    No Ctrl-C comes between the fork and `keep`. The new process begins with SIGINT, SIGTERM and SIGHUP blocked, and
    unblocks them when it can handle them. It must use nothing of another thread, which may have held a lock.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork while other threads live, after it: as an error it would lose the child.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                serve()
            finally:
                # Not a step further: what is on the stack belongs to the caller.
                os._exit(1)
        try:
            keep(Process(pid))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(number: int) -> None:
    """Have this process get a signal when the thread that started it ends; what has ended before is not noticed."""
    check(_prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
