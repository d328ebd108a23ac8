"""Processes that live in a lab's namespaces: found by the namespace they are in, killed by a descriptor of theirs."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack

from lab.system.pace import slowness
from lab.system.process import status_fields

KILL_TIMEOUT = 5.0
"""Seconds. A killed process is gone at once, unless the kernel holds it in an uninterruptible sleep."""


def inhabitants(namespaces: Collection[int]) -> Iterator[int]:
    """Yield the ids of the processes in the network namespaces with these inode numbers.

    The calling process and its ancestors are left out: a shell in a pod that removes its own lab survives.
    """
    spared = _ancestry()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in spared and _namespace(int(entry.name)) in namespaces:
            yield int(entry.name)


def kill_inhabitants(namespaces: Collection[int], timeout: float = KILL_TIMEOUT) -> None:
    """Kill all processes in these namespaces and wait until they are gone.

    At most `timeout` seconds of an ordinary machine.
    """
    deadline = time.monotonic() + timeout * slowness()
    # Again and again: a process may have forked between the look and the signal.
    while pids := list(inhabitants(namespaces)):
        with ExitStack() as stack:
            waiting = []
            for pid in pids:
                descriptor = _kill(pid, namespaces)
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
                    waiting.append(descriptor)
            _wait(waiting, deadline)
        if time.monotonic() >= deadline:
            return


def _kill(pid: int, namespaces: Collection[int]) -> int | None:
    """Send SIGKILL; return a descriptor that becomes readable when the process is gone, None if it already is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The number may belong to another process by now; the descriptor never will.
    if _namespace(pid) not in namespaces:
        os.close(descriptor)
        return None
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        os.close(descriptor)
        return None
    return descriptor


def _wait(descriptors: list[int], deadline: float) -> None:
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    left = len(descriptors)
    while left and (milliseconds := (deadline - time.monotonic()) * 1000) > 0:
        for descriptor, _ in poller.poll(milliseconds):
            poller.unregister(descriptor)
            left -= 1


def _namespace(pid: int) -> int | None:
    """Return the inode number of a process's network namespace; None if it has none (any more)."""
    try:
        target = os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None
    return int(target.removeprefix("net:[").removesuffix("]"))


def _ancestry() -> frozenset[int]:
    pid, found = os.getpid(), set()
    while pid > 0:
        found.add(pid)
        pid = int(status_fields(pid)[1])
    return frozenset(found)
