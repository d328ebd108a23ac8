"""The kernel's log: nothing that the lab does makes the kernel report a fault of its own (invariant 13)."""

from __future__ import annotations

from lab.watch.kernel_log import KernelLog
from lab.watch.violation import Violation


def check_kernel_log(log: KernelLog) -> list[Violation]:
    """Return the faults that the kernel has reported since the last call, quoted."""
    return [Violation(13, f"the kernel says: {line.text}", (line.time_ns,)) for line in log.faults()]
