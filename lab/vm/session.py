"""One command on one kernel: what it needs is made, the machine runs, its files are kept."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from datapath.errors import ReloadlabError
from lab.system.launch import module_argv
from lab.system.pace import SLOWNESS_VARIABLE
from lab.system.scratch import scratch
from lab.vm import guest, initramfs, machine
from lab.vm.initramfs import SHARE
from lab.vm.kernels import Kernel
from lab.vm.machine import Ended, MachineFailed
from lab.vm.running import TAKEN_DOWN

OUTPUT = "out"
"""In the shared directory: what the command leaves."""

GUEST_OUTPUT = f"{SHARE}/{OUTPUT}"
"""The same as the command sees it."""

_HANDED_ON = ("PATH", "LANG", "CI")
_PREFIX = "RELOADLAB_"
_STAYS = ("RELOADLAB_RUN", "RELOADLAB_KERNELS")
"""What concerns this machine alone."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the kernel says where there is no room."""


class TakenDown(ReloadlabError):
    """A virtual machine that was ended by `reloadlab vm down`, and with it the command that ran in it."""

    def __init__(self, label: str) -> None:
        super().__init__(f"kernel {label}: reloadlab vm down ended it")


class NoRoom(ReloadlabError):
    """A directory of temporary files without room for what a machine needs."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory} has no room for a machine: make room, or name another directory in TMPDIR")
        self.directory = directory


def check_bootable(kernel: Kernel) -> None:
    """Raise what `run_in` would before the machine starts: NoKernel, ToolMissing, UnfitBusybox, OtherProcessor."""
    machine.find_qemu()
    initramfs.check(kernel)


def run_in(
    kernel: Kernel,
    argv: Sequence[str],
    *,
    cpus: int,
    silence: float,
    say: Callable[[str], None],
    before: Mapping[str, str] | None = None,
    keep: Callable[[Path], None] | None = None,
) -> Ended:
    """Run a command in this directory, as root, on another kernel; `say` gets its output line by line.

    Its environment has PATH and the variables of ours. It finds the files `before` in GUEST_OUTPUT and may leave others
    there: `keep` is called with that directory at the end, whatever became of the command. MachineFailed if the machine
    does not tell how it ended, TakenDown if its end was wanted, NoRoom, and what check_bootable raises.
    """
    with scratch() as directory:
        share, image = directory / "share", directory / "initramfs"
        output = share / OUTPUT
        kvm = not machine.without_kvm()
        word = f"vm-{secrets.token_hex(8)}"
        variables = environment(os.environ, emulated=not kvm)
        job = {"argv": list(argv), "directory": os.getcwd(), "environment": variables, "word": word}
        with _room(directory.parent):
            output.mkdir(parents=True)
            for name, content in (before or {}).items():
                (output / name).write_text(content)
            (share / guest.JOB).write_text(json.dumps(job))
            initramfs.write(image, kernel, module_argv("lab.vm.guest", SHARE))
        command = machine.qemu_argv(kernel, image, share, cpus=cpus, kvm=kvm)
        try:
            return machine.run(command, kernel.label, word, silence=silence, say=say)
        except MachineFailed:
            if (directory / TAKEN_DOWN).exists():
                raise TakenDown(kernel.label) from None
            raise
        finally:
            if keep is not None:
                keep(output)


@contextmanager
def _room(temporary: Path) -> Iterator[None]:
    """Raise NoRoom if the disk is too full for what is written inside to a directory of temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoRoom(temporary) from error


def environment(own: Mapping[str, str], *, emulated: bool) -> dict[str, str]:
    """Return the guest's environment: of ours, what concerns the command and not this machine."""
    stays = (*_STAYS, SLOWNESS_VARIABLE) if emulated else _STAYS
    kept = {name: value for name, value in own.items() if name in _HANDED_ON or name.startswith(_PREFIX)}
    return {name: value for name, value in kept.items() if name not in stays} | {"HOME": "/root", "LANG": "C.UTF-8"}
