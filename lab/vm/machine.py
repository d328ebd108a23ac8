"""One virtual machine: QEMU's command, its process, and the lines of its console until it says how it ended."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError
from lab.system import tools
from lab.system.process import end_with_parent
from lab.vm.guest import ENDED, READY
from lab.vm.kernels import Kernel

QEMU, PROCESSOR = "qemu-system-x86_64", "x86_64"
KVM, CPUINFO = Path("/dev/kvm"), Path("/proc/cpuinfo")
MEMORY, MEMORY_OF_A_CPU = 4096, 512
"""Megabytes of a guest, and of one with many CPUs for each: a scenario runs on each, its processes take 150, the tmpfs
holds what the command writes."""

LAST_LINES = 20
"""Lines of the console that a machine leaves that did not say how it ended."""

_LONGEST = 1 << 16
"""Bytes of a line of the console, at most."""

_OF_THE_KERNEL = re.compile(rb"\[ *\d+\.\d+\]")
"""How a line of the kernel's own begins, with printk.time."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")


class MachineFailed(ReloadlabError):
    """A virtual machine that never said how its command ended; `console` are its last lines."""

    def __init__(self, label: str, reason: str, console: Sequence[str]) -> None:
        lines = "".join(f"\n  {line}" for line in console)
        super().__init__(f"kernel {label}: {reason}; the last lines of its console:{lines or ' none'}")
        self.reason = reason
        self.console = tuple(console)


class OtherProcessor(ReloadlabError):
    """A machine whose programs, which the guest has as well, are not for the guest's processor."""

    def __init__(self, processor: str) -> None:
        super().__init__(
            f"kernels are booted on {PROCESSOR} alone, and this processor is {processor}: use another machine"
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command in a virtual machine ended. `boot_seconds` is the guest's uptime when it began."""

    exit_code: int
    boot_seconds: float
    seconds: float


X86_FEATURE_CX16 = 4 * 32 + 13
"""What an emulated kernel has to do without: QEMU 7.2 emulates cmpxchg16b wrongly, and Linux 6.12 dies of it.

The processor has it all the same: numpy, built for x86-64-v2, runs on no other.
"""

EMULATED = f"mitigations=off nokaslr clearcpuid={X86_FEATURE_CX16}"
"""What an emulated kernel is told: it needs no defence, and has to do without what QEMU cannot."""


def without_kvm() -> str:
    """Return why machines are emulated, which takes 10 to 20 times as long; empty where the processor itself runs them.

    The device alone does not say it: there are hosts whose KVM has no help of the processor, and runs only kernels that
    were made for that.
    """
    if not KVM.exists():
        return f"there is no {KVM}"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"{KVM} may not be opened"
    if not re.search(r"^flags\s*:.* (vmx|svm)\b", CPUINFO.read_text(), re.MULTILINE):
        return f"{KVM} is there, but the processor has neither vmx nor svm"
    return ""


def silence_allowed() -> float:
    """Return for how many seconds a machine may say nothing: a scenario takes minutes where it is emulated."""
    return 900.0 if without_kvm() else 180.0


def memory_of(cpus: int, total: int) -> int:
    """Return the megabytes of a guest with so many CPUs, on a machine with `total`."""
    return max(MEMORY, min(cpus * MEMORY_OF_A_CPU, total // 2))


def _megabytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def find_qemu() -> Path:
    """Return the path of QEMU; ToolMissing, OtherProcessor."""
    processor = os.uname().machine
    if processor != PROCESSOR:
        raise OtherProcessor(processor)
    return tools.find(QEMU)


def qemu_argv(kernel: Kernel, initramfs: Path, share: Path, *, cpus: int, kvm: bool) -> list[str]:
    """Return QEMU's command: no devices but the console and three directories, the host's root among them read-only."""
    append = "console=ttyS0 quiet panic=-1 printk.time=1" + ("" if kvm else f" {EMULATED}")
    argv = [str(find_qemu()), "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,thread=multi", "-cpu", "max"]
    argv += ["-m", str(memory_of(cpus, _megabytes())), "-smp", str(cpus), "-no-reboot", "-device", "virtio-rng-pci"]
    argv += ["-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", append]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    for tag, path, mode in (
        ("root", Path("/"), ",readonly=on,multidevs=remap"),
        ("modules", kernel.modules, ",readonly=on"),
        ("share", share, ""),
    ):
        argv += ["-fsdev", f"local,id={tag},security_model=none,path={_quoted(path)}{mode}"]
        argv += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return argv


def run(argv: Sequence[str], label: str, word: str, *, silence: float, say: Callable[[str], None]) -> Ended:
    """Run a machine to its end; `say` gets each line of the command's output. MachineFailed if it does not tell it.

    What QEMU returns means nothing, a kernel that panics included: only the guest's own line counts, which begins with
    `word` and, if need be, ends a line of the command's. A machine that says nothing for `silence` seconds is killed;
    what its kernel says does not count, as one that hangs complains of that for ever.
    """
    begin, boot = time.monotonic(), None
    # Output that ends in no line break stands before it, what the kernel says at that moment behind it.
    told = re.compile(rf"(.*){re.escape(word)} ({READY}|{ENDED}) (\d+(?:\.\d+)?)")
    last: deque[str] = deque(maxlen=LAST_LINES)
    with _started(argv) as process:
        assert process.stdout is not None
        for line in _lines(process.stdout.fileno(), silence):
            if line is None:
                raise MachineFailed(
                    label, f"it said nothing for {silence:g} s, apart from its kernel, and was killed", last
                )
            found = told.match(line)
            output = line if found is None else found[1]
            if found is None or output:
                last.append(output)
                if boot is not None:
                    say(output)
            if found is not None and found[2] == READY:
                boot = float(found[3])
            elif found is not None:
                return Ended(int(float(found[3])), boot or 0.0, time.monotonic() - begin)
        raise MachineFailed(label, "it ended without a word" + ("" if boot else ", before the command began"), last)


@contextmanager
def _started(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start QEMU, which dies with us, and is killed at the end."""
    process = subprocess.Popen(
        argv,
        # Nobody writes to it; at its end QEMU would do nothing but look at it again and again.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_killed_with_parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _lines(descriptor: int, silence: float) -> Iterator[str | None]:
    """Yield each line until the end, a longer one than _LONGEST in pieces.

    None if for `silence` seconds there was none but the kernel's.
    """
    rest = b""
    deadline = time.monotonic() + silence
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            yield None
            return
        data = os.read(descriptor, 1 << 16)
        *whole, rest = (rest + data).split(b"\n")
        if not all(_OF_THE_KERNEL.match(line) for line in whole) or (rest and not rest.startswith(b"[")):
            deadline = time.monotonic() + silence
        if not data or len(rest) > _LONGEST:
            whole, rest = [*whole, *([rest] if rest else [])], b""
        yield from (_ESCAPES.sub("", line.decode(errors="replace")) for line in whole)
        if not data:
            return
        if time.monotonic() >= deadline:
            yield None
            return


def _killed_with_parent() -> None:
    end_with_parent(signal.SIGKILL)


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
