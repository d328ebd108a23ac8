"""Virtual machines of ours that run: QEMU processes that share a scratch directory with their guest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.system.scratch import PREFIX
from lab.vm.machine import QEMU

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Running:
    """A QEMU process: its PID, the name of its guest as far as its command tells, and whether we started it."""

    pid: int
    guest: str
    ours: bool


def running() -> Iterator[Running]:
    """Yield every QEMU that runs on this machine."""
    for path in _PROC.iterdir():
        if not path.name.isdigit():
            continue
        try:
            argv = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if Path(argv[0]).name.startswith("qemu-system-"):
            yield described(int(path.name), argv)


def described(pid: int, argv: list[str]) -> Running:
    """Return what the command of a QEMU tells of it."""
    ours = Path(argv[0]).name == QEMU and any(
        word.startswith("local,id=share,") and f"/{PREFIX}" in word for word in argv
    )
    for option, prefix in (("-name", "guest="), ("-kernel", "")):
        if option in argv[:-1]:
            guest = argv[argv.index(option) + 1].removeprefix(prefix).split(",")[0]
            return Running(pid, guest, ours)
    return Running(pid, "without a name", ours)


def end(machine: Running) -> None:
    """End a QEMU; nothing happens if it has ended."""
    try:
        descriptor = os.pidfd_open(machine.pid)
    except ProcessLookupError:
        return
    try:
        # Meanwhile the number may be another process's.
        if machine in running():
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
