"""The system calls of processes with their times, recorded by a bcc program, and the time that they take of a step.

bcc runs in a process of its own (lab.watch.tracer) with its own mount namespace, in which tracefs and kernel headers
are where bcc looks for them. Times are CLOCK_MONOTONIC, like time.monotonic_ns() and the spans of a reload.
"""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from datapath.base.timing import Interval
from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import bpf
from datapath.reload.outcome import Span
from lab.system.companion import Child, ChildError
from lab.system.pace import slowness

SYSCALLS = ("bpf", "sendto", "sendmsg", "recvmsg", "recvfrom")
"""The system calls in which a reload waits: bpf(2) and netlink."""

RECORD = struct.Struct("=QQqIHH")
"""struct event of lab.watch.tracer: start, duration, result, thread, call (index of its name), command."""

_TRACING = Path("/sys/kernel/tracing")
_START_TIMEOUT, _STOP_TIMEOUT = 60.0, 30.0
"""Seconds on an ordinary machine (lab.system.pace)."""


class TracingUnavailable(ReloadlabError):
    """System calls cannot be traced here; str() says why and how to change that."""


class SyscallEvent(NamedTuple):
    """One finished system call; sorts by thread and start. A tuple, because there may be a hundred thousand.

    `command` is the first argument of bpf(2) (BPF_PROG_LOAD is 5), -1 for other calls. `result` is what the kernel
    returned: a negative errno after a failure.
    """

    tid: int
    start_ns: int
    duration_ns: int
    call: str
    command: int
    result: int


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Nanoseconds inside system calls: `elapsed` while at least one thread was in one, `summed` over all threads."""

    elapsed: int
    summed: int


def kernel_time(events: Sequence[SyscallEvent], work: Iterable[Interval]) -> KernelTime:
    """Return the time that threads spent in system calls during the given intervals of their work.

    `events` are sorted, as SyscallTracer.events are; intervals of one thread must not overlap. A call that crosses an
    end of an interval counts with the part inside. A receive that waits counts with its wait.
    """
    inside = sorted(part for piece in work for part in _calls_during(events, piece))
    elapsed = reached = 0
    for start, end in inside:
        elapsed += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return KernelTime(elapsed, sum(end - start for start, end in inside))


def kernel_share(events: Sequence[SyscallEvent], spans: Iterable[Span]) -> float:
    """Return the share of the spans' time (0 to 1), helper threads included, that passed inside system calls.

    A thread that waits for its helpers is in no traced call: that time counts for the helpers, and not twice.
    """
    work = [piece for span in spans for piece in (span.work, *span.helpers)]
    total = sum(piece.end_ns - piece.start_ns for piece in work)
    return kernel_time(events, work).summed / total if total else 0.0


def _calls_during(events: Sequence[SyscallEvent], work: Interval) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of a thread's system calls, cut off at both ends of `work`."""
    first = bisect_left(events, (work.tid, work.start_ns))
    # A thread makes one call at a time: only the one before can reach into the interval.
    if first > 0 and events[first - 1].tid == work.tid:
        first -= 1
    for index in range(first, len(events)):
        event = events[index]
        if event.tid != work.tid or event.start_ns >= work.end_ns:
            return
        start, end = max(event.start_ns, work.start_ns), min(event.start_ns + event.duration_ns, work.end_ns)
        if end > start:
            yield start, end


@dataclass(frozen=True, slots=True)
class Headers:
    """Kernel headers for bcc: the `build` tree and, where the distribution splits them, the `source` tree.

    `borrowed` if they are another kernel's: what tracepoint programs use of them is the same in all versions.
    """

    build: Path
    source: Path | None
    borrowed: bool


def find_headers(modules: Path, release: str) -> Headers | None:
    """Return the headers of `release` in `modules` (/lib/modules), else those of the newest kernel; None if none."""

    def version(directory: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", directory.name)]

    others = sorted((d for d in modules.glob("*") if d.name != release), key=version, reverse=True)
    for directory in (modules / release, *others):
        build, source = directory / "build", directory / "source"
        found = [tree.resolve() for tree in (build, source) if (tree / "include/linux/kconfig.h").is_file()]
        if found and build.is_dir():
            return Headers(build.resolve(), source.resolve() if source.is_dir() else None, directory.name != release)
    return None


def has_kheaders() -> bool:
    """Tell whether the kernel carries its own headers (CONFIG_IKHEADERS), which bcc unpacks by itself."""
    return Path("/sys/kernel/kheaders.tar.xz").exists()


def explain(
    *, root: bool, bcc: Path | None, filesystems: str, headers: Headers | None, kheaders: bool, release: str
) -> str | None:
    """Return why tracing is impossible on the described machine, with the remedy; None if it is possible.

    `bcc` is the directory of the Python package of that name, `filesystems` the content of /proc/filesystems.
    """
    if not root:
        return "tracing needs root"
    if bcc is None:
        return "the Python bindings of BCC are missing: apt-get install python3-bpfcc"
    if not (bcc / "libbcc.py").is_file():
        return f"{bcc} is not the BPF Compiler Collection: remove it, and apt-get install python3-bpfcc"
    if "tracefs" not in filesystems.split():
        return "the kernel has no tracefs: CONFIG_FTRACE_SYSCALLS is not set"
    if headers is None and not kheaders:
        return f"no kernel headers for BCC: apt-get install linux-headers-{release} (or linux-headers-amd64)"
    return None


def probe() -> str | None:
    """Return why system calls cannot be traced on this machine, with the remedy; None if they can, as far as is known.

    Nothing is mounted, loaded or compiled.
    """
    spec = importlib.util.find_spec("bcc")
    release = os.uname().release
    reason = explain(
        root=os.geteuid() == 0,
        bcc=Path(spec.origin).parent if spec is not None and spec.origin is not None else None,
        filesystems=Path("/proc/filesystems").read_text(),
        headers=find_headers(Path("/lib/modules"), release),
        kheaders=has_kheaders(),
        release=release,
    )
    events = _TRACING / "events"
    if reason is None and events.is_dir() and not (events / "syscalls" / "sys_enter_bpf").is_dir():
        return "the kernel has no system call tracepoints: CONFIG_FTRACE_SYSCALLS is not set"
    return reason


class SyscallTracer:
    """Records the system calls of processes and all their threads from start() to stop(). A context manager.

    After stop() `events` has them, sorted by thread and start; `lost` counts those that did not fit the buffer.
    `startup_ns` is the time that start() took: bcc compiles the program each time.
    """

    def __init__(self, pid: int | None = None, *, syscalls: Sequence[str] = SYSCALLS) -> None:
        """Prepare to trace the process `pid`, by default this one; see follow(). Nothing is started yet."""
        self._pid = pid
        self._syscalls = tuple(syscalls)
        # bcc keeps what it found when it was imported: that may have been in another mount namespace.
        self._child = Child("lab.watch.tracer", forked=False)
        self._running = False
        self._followed = -1
        self.events: list[SyscallEvent] = []
        self.lost = 0
        self.startup_ns = 0

    @property
    def pid(self) -> int:
        """Process id of the tracing process; 0 while it does not run."""
        return self._child.pid

    @property
    def incomplete(self) -> str | None:
        """Why `events` do not hold every call, None if they do."""
        return f"{self.lost} system calls did not fit the tracer's buffer" if self.lost else None

    def start(self) -> None:
        """Start tracing; calls that begin after this returns are recorded. TracingUnavailable says why not.

        Entering the context starts it as well: do one of the two, once. ChildError if it runs already.
        """
        if self._running:
            raise ChildError("lab.watch.tracer", "it runs already: enter its context or call start(), once")
        reason = probe()
        if reason is not None:
            raise TracingUnavailable(reason)
        begun = time.monotonic_ns()
        self._child.start()
        try:
            answer, _ = self._child.request({"syscalls": self._syscalls}, timeout=_START_TIMEOUT * slowness())
        except ChildError as error:
            self._child.close()
            raise TracingUnavailable(f"BCC failed: {error}") from error
        except BaseException:
            self._child.close()
            raise
        if "error" in answer:
            self._child.close()
            raise TracingUnavailable(answer["error"])
        try:
            self._followed = bpf.map_fd_by_id(answer["followed"])
        except BpfError as error:
            self._child.close()
            raise TracingUnavailable(str(error)) from error
        self._running = True
        self.follow(os.getpid() if self._pid is None else self._pid)
        self.startup_ns = time.monotonic_ns() - begun

    def follow(self, pid: int) -> None:
        """Trace another process as well, from now on. A forked process may call this for itself.

        Does nothing while the tracer does not run.
        """
        if self._running:
            bpf.map_update(self._followed, struct.pack("=I", pid), b"\1")

    def stop(self) -> None:
        """Stop tracing and fetch the events; later calls do nothing."""
        if not self._running:
            return
        self._running = False
        os.close(self._followed)
        try:
            answer, blob = self._child.request({"do": "stop"}, timeout=_STOP_TIMEOUT * slowness())
        finally:
            self._child.close()
        names = self._syscalls
        self.lost = int(answer["lost"])
        self.events = sorted(
            SyscallEvent(tid, start, duration, names[call], command if names[call] == "bpf" else -1, result)
            for start, duration, result, tid, call, command in RECORD.iter_unpack(blob)
        )

    def __enter__(self) -> SyscallTracer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
