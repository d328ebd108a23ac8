"""Virtual machines of ours that run: QEMU processes that share a scratch directory with their guest."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError
from lab.system.scratch import PREFIX
from lab.vm.machine import QEMU

TAKEN_DOWN = "taken-down"
"""A file beside the shared directory of a machine: by it, who runs the machine knows that its end was wanted."""

_PROC = Path("/proc")
_SHARE = re.compile(rf"local,id=share,.*path=((?:[^,]|,,)*/{PREFIX}[^/]*)/")
_SECONDS = 10.0
"""For a QEMU to end, before it is killed, and after that."""


class DoesNotEnd(ReloadlabError):
    """A virtual machine that SIGKILL does not end: it waits in the kernel for what does not come."""


@dataclass(frozen=True, slots=True)
class Running:
    """A QEMU process: its PID, the name of its guest as far as its command tells.

    `scratch` is the directory of the command that started it, None if that was none of ours.
    """

    pid: int
    guest: str
    scratch: Path | None

    @property
    def ours(self) -> bool:
        """Whether a command of ours started it."""
        return self.scratch is not None


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
    shares = [found[1] for word in argv if (found := _SHARE.match(word))] if Path(argv[0]).name == QEMU else []
    scratch = Path(shares[0].replace(",,", ",")) if shares else None
    for option, prefix in (("-name", "guest="), ("-kernel", "")):
        if option in argv[:-1]:
            guest = argv[argv.index(option) + 1].removeprefix(prefix).split(",")[0]
            return Running(pid, guest, scratch)
    return Running(pid, "without a name", scratch)


def end(machine: Running) -> None:
    """End a QEMU of ours, and wait for its end; nothing happens if it has ended. DoesNotEnd if it does not.

    The command that started it is told by TAKEN_DOWN: it boots no other kernel then.
    """
    try:
        descriptor = os.pidfd_open(machine.pid)
    except ProcessLookupError:
        return
    try:
        # Meanwhile the number may be another process's.
        if machine not in running():
            return
        if machine.scratch is not None:
            _tell(machine.scratch)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], _SECONDS)[0]:
                return
    finally:
        os.close(descriptor)
    raise DoesNotEnd(f"{machine.guest} (PID {machine.pid}) does not end, not even by SIGKILL")


def _tell(scratch: Path) -> None:
    """Make TAKEN_DOWN in a directory, if it is one of this user's.

    Any process may have named it, and any other directory or link. It may be gone: with the command, whose end is that
    of the machine as well. Whatever fails here, a full disk say, must not keep the machine from being ended.
    """
    with suppress(OSError), ExitStack() as stack:
        directory = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        if os.fstat(directory).st_uid == os.geteuid():
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(TAKEN_DOWN, flags, 0o600, dir_fd=directory))
