"""The tracer against system calls that the test makes itself: known commands, known threads, known results."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.base.timing import Interval
from datapath.kernel.libc import function
from datapath.reload.outcome import Span
from lab.system.companion import ChildError
from lab.watch.tracer import program_text
from lab.watch.tracing import (
    RECORD,
    Headers,
    KernelTime,
    SyscallEvent,
    SyscallTracer,
    TracingUnavailable,
    explain,
    find_headers,
    kernel_share,
    kernel_time,
    probe,
)

ROOT = Path(__file__).resolve().parents[3]
BPF_PROG_GET_NEXT_ID = 11

_syscall = function("syscall")

traced = pytest.mark.skipif(probe() is not None, reason=str(probe()))


# Attribution


EVENTS = [
    SyscallEvent(1, 100, 50, "bpf", 5, 0),
    SyscallEvent(1, 200, 100, "sendto", -1, 0),
    SyscallEvent(1, 400, 10, "bpf", 2, 0),
    SyscallEvent(2, 90, 1000, "bpf", 5, 0),
]


@pytest.mark.parametrize(
    ("tid", "start", "end", "wanted"),
    [
        pytest.param(1, 0, 1000, 160, id="all of a thread"),
        pytest.param(1, 120, 250, 80, id="calls that reach over both ends"),
        pytest.param(1, 150, 200, 0, id="between two calls"),
        pytest.param(1, 210, 220, 10, id="within one call"),
        pytest.param(1, 400, 401, 1, id="starts with a call"),
        pytest.param(2, 0, 95, 5, id="the first call of another thread"),
        pytest.param(2, 500, 600, 100, id="a call that began long before"),
        pytest.param(3, 0, 1000, 0, id="unknown thread"),
        pytest.param(1, 500, 400, 0, id="empty interval"),
    ],
)
def test_kernel_time(tid: int, start: int, end: int, wanted: int) -> None:
    assert kernel_time(EVENTS, [Interval(tid, start, end)]) == KernelTime(wanted, wanted)


def test_kernel_time_counts_once_what_two_threads_do_together() -> None:
    """Thread 1 is inside from 100 to 150, thread 2 from 120 to 160; a third thread is not of this work."""
    events = sorted([*EVENTS, SyscallEvent(3, 100, 100, "bpf", 5, 0)])
    assert kernel_time(events, [Interval(1, 90, 180), Interval(2, 120, 160)]) == KernelTime(60, 90)
    assert kernel_time(events, []) == KernelTime(0, 0)


def test_kernel_share_counts_helpers_with_their_own_time() -> None:
    span = Span("load programs", "bpf_lxc.o", Interval(1, 100, 200), (Interval(2, 120, 160), Interval(3, 0, 10)))
    assert kernel_share(EVENTS, [span]) == (50 + 40) / (100 + 40 + 10)
    assert kernel_share(EVENTS, []) == 0.0


# What a machine lacks


def machine(tmp_path: Path, **lacks: object) -> str | None:
    (tmp_path / "libbcc.py").touch()
    has: dict[str, object] = {
        "root": True,
        "bcc": tmp_path,
        "filesystems": "nodev\tsysfs\nnodev\ttracefs\n",
        "headers": Headers(Path("/usr/src/linux"), None, False),
        "kheaders": False,
        "release": "6.1.0-9-amd64",
    }
    return explain(**{**has, **lacks})  # type: ignore[arg-type]


def test_nothing_is_missing(tmp_path: Path) -> None:
    assert machine(tmp_path) is None
    assert machine(tmp_path, headers=None, kheaders=True) is None


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        pytest.param({"root": False}, "needs root", id="root"),
        pytest.param({"bcc": None}, "apt-get install python3-bpfcc", id="bcc"),
        pytest.param({"bcc": Path("/nowhere/bcc")}, "/nowhere/bcc is not the BPF Compiler Collection", id="other bcc"),
        pytest.param({"filesystems": "nodev\tsysfs\n"}, "CONFIG_FTRACE_SYSCALLS", id="tracefs"),
        pytest.param({"headers": None}, "apt-get install linux-headers-6.1.0-9-amd64", id="headers"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, lacks: dict[str, object], words: str) -> None:
    assert words in (machine(tmp_path, **lacks) or "")


def tree(path: Path) -> Path:
    (path / "include/linux").mkdir(parents=True)
    (path / "include/linux/kconfig.h").touch()
    return path


def test_headers_of_the_running_kernel_come_first(tmp_path: Path) -> None:
    tree(tmp_path / "6.9.0/build")
    own = tree(tmp_path / "6.1.0/build")
    assert find_headers(tmp_path, "6.1.0") == Headers(own, None, False)


def test_headers_of_the_newest_other_kernel(tmp_path: Path) -> None:
    common, generated = tree(tmp_path / "src/common"), tmp_path / "src/amd64"
    generated.mkdir()
    for release in ("6.9.0-1", "6.10.0-2"):
        (tmp_path / "modules" / release).mkdir(parents=True)
    (tmp_path / "modules/6.10.0-2/build").symlink_to(generated)
    (tmp_path / "modules/6.10.0-2/source").symlink_to(common)
    tree(tmp_path / "modules/6.9.0-1/build")
    assert find_headers(tmp_path / "modules", "6.18.0") == Headers(generated, common, True)


def test_dangling_links_are_no_headers(tmp_path: Path) -> None:
    (tmp_path / "6.1.0").mkdir()
    (tmp_path / "6.1.0/build").symlink_to("/nowhere/linux")
    assert find_headers(tmp_path, "6.1.0") is None
    assert find_headers(tmp_path / "none", "6.1.0") is None


def test_record_has_the_size_of_the_struct_without_padding() -> None:
    # u64 start, u64 duration, s64 result, u32 tid, u16 call, u16 command
    assert RECORD.size == 8 + 8 + 8 + 4 + 2 + 2


def test_program_has_a_pair_of_probes_per_call() -> None:
    text = program_text(["bpf", "sendto"])
    assert text.count("TRACEPOINT_PROBE") == 4
    assert "return enter(args->cmd);" in text
    assert "return leave(1, args->ret);" in text


# On the kernel


def next_program_id(count: int) -> None:
    """Make `count` calls of bpf(2) that fail by EFAULT: known calls that change nothing."""
    for _ in range(count):
        assert _syscall(321 if os.uname().machine == "x86_64" else 280, BPF_PROG_GET_NEXT_ID, None, 0x10) == -1
        assert ctypes.get_errno() == errno.EFAULT


def in_thread(work: Callable[[], None]) -> tuple[int, int, int]:
    """Run `work` in a thread; return its native id, and when it started and ended."""
    times: list[int] = []

    def timed() -> None:
        times.extend((threading.get_native_id(), time.monotonic_ns()))
        work()
        times.append(time.monotonic_ns())

    thread = threading.Thread(target=timed)
    thread.start()
    thread.join()
    tid, start, end = times
    return tid, start, end


def netlink() -> None:
    """A request and its answer, by the calls that netlink libraries make."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        # RTM_GETLINK of interface 1, header and ifinfomsg.
        request = (32).to_bytes(4, "little") + bytes([18, 0, 1, 0]) + bytes(12) + (1).to_bytes(4, "little") + bytes(8)
        sock.sendmsg([request], [], 0, (0, 0))
        sock.recvmsg(65536)
        sock.sendto(request, (0, 0))
        sock.recvfrom(65536)


@pytest.mark.privileged
@traced
def test_calls_are_seen_with_thread_command_result_and_time() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    with SyscallTracer() as tracer:
        next_program_id(3)
        first = in_thread(lambda: next_program_id(5))
        second = in_thread(netlink)
        # Another process's calls are not ours.
        subprocess.run([sys.executable, "-c", "import socket; a, b = socket.socketpair(); a.send(b'x')"], check=True)
    after = time.monotonic_ns()
    next_program_id(1)

    assert tracer.lost == 0
    assert tracer.startup_ns > 0
    assert tracer.events == sorted(tracer.events)
    by_thread = {tid: [e for e in tracer.events if e.tid == tid] for tid in (first[0], second[0], os.getpid())}
    assert {e.tid for e in tracer.events} == set(by_thread)
    wanted = ("bpf", BPF_PROG_GET_NEXT_ID, -errno.EFAULT)
    assert [(e.call, e.command, e.result) for e in by_thread[first[0]]] == [wanted] * 5
    assert [e.call for e in by_thread[second[0]]] == ["sendmsg", "recvmsg", "sendto", "recvfrom"]
    assert all(e.command == -1 and e.result > 0 for e in by_thread[second[0]])
    assert [e.command for e in by_thread[os.getpid()] if e.call == "bpf"] == [BPF_PROG_GET_NEXT_ID] * 3
    for tid, start, end in (first, second):
        assert all(start < e.start_ns < e.start_ns + e.duration_ns < end < after for e in by_thread[tid])
        total = sum(e.duration_ns for e in by_thread[tid])
        assert kernel_time(tracer.events, [Interval(tid, start, end)]).summed == total
        assert 0 < total < end - start
    assert kernel_time(tracer.events, [Interval(first[0], second[1], second[2])]).summed == 0
    assert set(os.listdir("/proc/self/fd")) == fds


@pytest.mark.privileged
@traced
def test_only_the_chosen_calls_are_traced() -> None:
    with SyscallTracer(syscalls=["sendto"]) as tracer:
        tid, _, _ = in_thread(netlink)
    assert [e.call for e in tracer.events if e.tid == tid] == ["sendto"]


@pytest.mark.privileged
@traced
def test_processes_are_followed_from_when_they_say_so() -> None:
    with SyscallTracer() as tracer:
        pids = []
        for follow in (True, False):
            pid = os.fork()
            if pid == 0:
                next_program_id(1)
                if follow:
                    tracer.follow(os.getpid())
                next_program_id(2)
                os._exit(0)
            pids.append(pid)
            os.waitpid(pid, 0)
        followed, stranger = pids
        next_program_id(4)
    count = {
        tid: [e.tid for e in tracer.events if e.command == BPF_PROG_GET_NEXT_ID].count(tid)
        for tid in (*pids, os.getpid())
    }
    assert count == {followed: 2, stranger: 0, os.getpid(): 4}


def test_a_tracer_that_does_not_run_follows_nobody() -> None:
    SyscallTracer().follow(os.getpid())


@pytest.mark.privileged
@traced
def test_nothing_of_the_tracer_is_seen_outside() -> None:
    def mounts() -> list[str]:
        """Return the mounts; those of other tests, labs and directories of pytest, come and go meanwhile."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line for line in lines if not line.split()[1].startswith(("/run/", "/tmp/"))]

    before, modules = mounts(), sorted(os.listdir("/lib/modules"))
    with SyscallTracer():
        assert mounts() == before
        assert sorted(os.listdir("/lib/modules")) == modules
    assert mounts() == before


@pytest.mark.privileged
@traced
def test_a_call_that_the_kernel_does_not_have_is_an_error() -> None:
    with pytest.raises(TracingUnavailable, match=r"BCC failed: lab\.watch\.tracer: died with status 1"):
        SyscallTracer(syscalls=["no_such_call"]).start()


@pytest.mark.privileged
@traced
def test_a_tracer_that_is_not_started_has_nothing_to_stop() -> None:
    tracer = SyscallTracer()
    tracer.stop()
    assert (tracer.events, tracer.lost) == ([], 0)


@pytest.mark.privileged
@traced
def test_a_tracer_starts_once() -> None:
    with SyscallTracer() as tracer:
        pid = tracer.pid
        with pytest.raises(ChildError, match="it runs already"):
            tracer.start()
        assert tracer.pid == pid
    assert tracer.pid == 0


PARENT = """
import json, sys
from lab.system.companion import ChildError
from lab.watch.tracing import SyscallTracer
tracer = SyscallTracer()
tracer.start()
print(json.dumps(tracer.pid), flush=True)
sys.stdin.read()
"""


@pytest.mark.privileged
@traced
def test_the_tracer_dies_with_its_parent() -> None:
    argv = [sys.executable, "-c", PARENT]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        tracer = os.pidfd_open(json.loads(parent.stdout.readline()))
        try:
            parent.send_signal(signal.SIGKILL)
            assert select.select([tracer], [], [], 5)[0], "the tracer has outlived its parent by five seconds"
        finally:
            os.close(tracer)
