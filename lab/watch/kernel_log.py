"""What the kernel says of its own faults while a scenario runs (/dev/kmsg): warnings, bugs, lockups, leaks."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import ReloadlabError

KMSG = Path("/dev/kmsg")

KERNEL = 0
"""The facility of the kernel's own lines; what a process writes to /dev/kmsg has another one (1, user)."""

RECORD = 8192
"""Bytes that hold every record (PRINTK_MESSAGE_MAX); a shorter buffer is refused with EINVAL."""

FAULT = re.compile(
    r"""
      ^WARNING:\ | ^BUG:\ | \bkernel\ BUG\ at\b | ^Oops\b | ^general\ protection\ fault\b
    | ^Internal\ error: | ^Unable\ to\ handle\ kernel\b | ^refcount_t:\ | ^list_(?:add|del)\ corruption\b
    | \blockup\b | \bblocked\ for\ more\ than\ \d+\ seconds\b | \brcu\b.*\bdetected\ stalls?\b
    | \b(?:self-)?detected\ stall\b | ^INFO:\ possible\ (?:circular|recursive)\b | \bsuspicious\ RCU\ usage\b
    | \b(?:KASAN|KCSAN|KMSAN|UBSAN):\ | ^kmemleak:.*\bleaks?\b | \bpage\ allocation\ failure\b
    | ^unregister_netdevice:\ waiting\b
    """,
    re.VERBOSE,
)
"""First lines of reports of faults (lib/bug.c, kernel/watchdog.c, kernel/hung_task.c, mm/kasan/report.c and others)."""


class KernelLogUnavailable(ReloadlabError):
    """/dev/kmsg cannot be read; str() says why."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A record of the kernel's log: syslog priority (0 to 7) and facility, and when it was written.

    `time_ns` is the kernel's local clock, which may differ from CLOCK_MONOTONIC by milliseconds.
    """

    priority: int
    facility: int
    time_ns: int
    text: str

    @property
    def is_fault(self) -> bool:
        """Whether the line begins the report of a fault."""
        return FAULT.search(self.text) is not None


def decode(record: bytes) -> LogLine:
    """Decode a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg)."""
    head, _, body = record.decode(errors="replace").partition(";")
    level, _, stamp = head.split(",")[:3]
    # Lines that begin with a blank are the record's dictionary.
    return LogLine(int(level) & 7, int(level) >> 3, int(stamp) * 1000, body.partition("\n")[0])


class KernelLog:
    """The lines of the kernel's log since the context was entered; a context manager.

    Reading takes nothing away from other readers. `facility` is that of the lines to look at. Entering it raises
    KernelLogUnavailable.
    """

    def __init__(self, *, facility: int = KERNEL) -> None:
        self.facility = facility
        self._fd = -1
        self._overwritten = 0

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EPERM, errno.EACCES):
                raise KernelLogUnavailable(f"{KMSG}: {error.strerror}") from error
            raise
        os.lseek(self._fd, 0, os.SEEK_END)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)
        self._fd = -1

    @property
    def overwritten(self) -> int:
        """How often lines were overwritten before they could be read."""
        return self._overwritten

    def faults(self) -> list[LogLine]:
        """Return the faults that the kernel has reported since the last call; none outside the context."""
        return [line for line in self._lines() if line.facility == self.facility and line.is_fault]

    def _lines(self) -> list[LogLine]:
        found: list[LogLine] = []
        while self._fd >= 0:
            try:
                found.append(decode(os.read(self._fd, RECORD)))
            except BlockingIOError:
                return found
            except OSError as error:
                # The next record is gone: the buffer has run over. Reading goes on with the oldest that is there.
                if error.errno != errno.EPIPE:
                    raise
                self._overwritten += 1
        return found
