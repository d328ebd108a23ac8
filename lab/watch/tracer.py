"""The tracing process (`python -m lab.watch.tracer`): a bcc program on the system call tracepoints.

The program filters by process (the caller adds ids to the map of followed processes) and writes one record per call
into a ring buffer without waking up the reader, which empties it once a second and at the end. So tracing costs the
traced process two short programs per call.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from pathlib import Path
from typing import Any

from datapath.kernel.bpf import map_info
from lab.system.companion import Control
from lab.system.mounts import leave_mount_namespace, mount
from lab.system.scratch import scratch
from lab.watch.tracing import RECORD, Headers, find_headers, has_kheaders

BUFFER_PAGES = 4096
"""Pages of the ring buffer: 16 MiB, 400,000 events, far more than a second produces."""

FOLLOWED = 4096
"""The number of processes that can be followed."""

INTERVAL = 1.0
"""Seconds between two reads of the ring buffer."""

MODULES = Path("/lib/modules")
TRACING = Path("/sys/kernel/tracing")

HEAD = """
struct entry { u64 start; u32 command; u32 unused; };
struct event { u64 start; u64 duration; s64 result; u32 tid; u16 call; u16 command; };

BPF_HASH(entered, u32, struct entry);
BPF_RINGBUF_OUTPUT(events, BUFFER_PAGES);
BPF_ARRAY(lost, u64, 1);
/* The processes to trace. Of those that have ended, the longest unused make room. */
BPF_TABLE("lru_hash", u32, u8, followed, FOLLOWED);

/* The thread's id in the pid namespace of who asks, or 0 if it is not of a traced process. */
static __always_inline u32 traced(void)
{
	struct bpf_pidns_info ids = {};

	if (bpf_get_ns_current_pid_tgid(PIDNS_DEV, PIDNS_INO, &ids, sizeof(ids)))
		return 0;
	return followed.lookup(&ids.tgid) ? ids.pid : 0;
}

static __always_inline int enter(u32 command)
{
	struct entry entry = { .command = command };
	u32 tid = traced();

	if (!tid)
		return 0;
	entry.start = bpf_ktime_get_ns();
	entered.update(&tid, &entry);
	return 0;
}

static __always_inline int leave(u16 call, s64 result)
{
	u64 now = bpf_ktime_get_ns();
	struct event event = {};
	struct entry *entry;
	int none = 0;
	u64 *count;
	u32 tid = traced();

	if (!tid)
		return 0;
	entry = entered.lookup(&tid);
	if (!entry)
		return 0;
	event.start = entry->start;
	event.duration = now - entry->start;
	event.result = result;
	event.tid = tid;
	event.call = call;
	event.command = entry->command;
	entered.delete(&tid);
	if (events.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP)) {
		count = lost.lookup(&none);
		if (count)
			lock_xadd(count, 1);
	}
	return 0;
}
"""

PAIR = """
TRACEPOINT_PROBE(syscalls, sys_enter_{name})
{{
	return enter({command});
}}

TRACEPOINT_PROBE(syscalls, sys_exit_{name})
{{
	return leave({index}, args->ret);
}}
"""


def arrange_mounts(headers: Headers | None, release: str) -> None:
    """Leave the machine's mount namespace, then mount tracefs and link kernel headers where bcc looks for them.

    OSError if that fails. No other process sees the mounts.
    """
    leave_mount_namespace()
    if not (TRACING / "events").is_dir():
        mount("tracefs", TRACING)
    if not (TRACING / "events/syscalls/sys_enter_bpf").is_dir():
        raise OSError("the kernel has no system call tracepoints: CONFIG_FTRACE_SYSCALLS is not set")
    if headers is not None and headers.borrowed:
        mount("tmpfs", MODULES)
        ours = MODULES / release
        ours.mkdir()
        (ours / "build").symlink_to(headers.build)
        if headers.source is not None:
            (ours / "source").symlink_to(headers.source)


def program_text(syscalls: list[str]) -> str:
    """Return the C source for the given calls: a pair of probes for each, numbered in their order."""
    return HEAD + "".join(
        PAIR.format(name=name, index=index, command="args->cmd" if name == "bpf" else "0")
        for index, name in enumerate(syscalls)
    )


def load_program(syscalls: list[str]) -> Any:
    """Compile, load and attach the program; return bcc's BPF object."""
    from bcc import BPF  # Looks for tracefs when it is imported.

    namespace = Path("/proc/self/ns/pid").stat()
    # The kernel's own form of a device number, not the C library's.
    device = os.major(namespace.st_dev) << 20 | os.minor(namespace.st_dev)
    flags = {
        "PIDNS_DEV": f"{device}ULL",
        "PIDNS_INO": f"{namespace.st_ino}ULL",
        "FOLLOWED": str(FOLLOWED),
        "BUFFER_PAGES": str(BUFFER_PAGES),
    }
    # bcc unpacks the kernel's own headers into the temporary directory and does not remove them.
    with scratch() as directory:
        os.environ["TMPDIR"] = str(directory)
        return BPF(text=program_text(syscalls), cflags=[f"-D{name}={value}" for name, value in flags.items()])


def serve(control: Control, program: Any) -> bool:
    """Collect events until the parent sends a stop, then send them and return True; False if the parent is gone."""
    records = bytearray()

    def take(_: object, data: int, size: int) -> int:
        records.extend(ctypes.string_at(data, size)[: RECORD.size])
        return 0

    program["events"].open_ring_buffer(take)
    control.send({"followed": map_info(program["followed"].map_fd).id})
    messages, parent = control.descriptors
    while True:
        ready, _, _ = select.select([messages, parent], [], [], INTERVAL)
        if parent in ready:
            return False
        if messages in ready:
            if control.receive() is None:
                return False
            program.ring_buffer_consume()
            lost = sum(int(count.value) for count in program["lost"].values())
            control.send({"lost": lost}, bytes(records))
            return True
        program.ring_buffer_consume()


def main(descriptor: int) -> int:
    """Trace the system calls that the first message on the control socket `descriptor` names; return the exit code."""
    control = Control(descriptor)
    message = control.receive()
    if message is None:
        return 1
    release = os.uname().release
    headers = find_headers(MODULES, release)
    if headers is not None and headers.borrowed and has_kheaders():
        headers = None
    try:
        arrange_mounts(headers, release)
    except OSError as error:
        control.send({"error": error.strerror or str(error)})
        return 1
    program = load_program(message["syscalls"])
    return 0 if serve(control, program) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
