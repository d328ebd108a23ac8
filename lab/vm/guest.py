"""The guest's side: the first process on the host's files mounts what a machine has, runs one command, and powers off.

It is told what to run by job.json in the shared directory, and says on the console when it begins and how it ended, in
lines that begin with a word that nobody else knows.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from datapath.kernel.libc import check, function
from lab.system import tools

JOB = "job.json"
READY, ENDED = "ready", "ended"
NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a shell for a command that cannot be run, or is not there."""

HOSTNAME = "reloadlab"

_DRAIN_SECONDS = 10.0
_POWER_OFF = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF
_reboot = function("reboot", ctypes.c_int)

_MOUNTS = (
    ("devpts", Path("/dev/pts")),
    ("tmpfs", Path("/dev/shm")),
    ("bpf", Path("/sys/fs/bpf")),
    ("cgroup2", Path("/sys/fs/cgroup")),
    ("tracefs", Path("/sys/kernel/tracing")),
    ("debugfs", Path("/sys/kernel/debug")),
)


def main() -> None:
    """Run the job of the shared directory that the arguments name."""
    share = Path(sys.argv[1])
    job = json.loads((share / JOB).read_text())
    os.environ.clear()
    os.environ.update(job["environment"])
    for kind, place in mounts(_MOUNTS, Path("/sys")):
        tools.run(["mount", "-t", kind, kind, str(place)])
    socket.sethostname(HOSTNAME)
    tools.run(["ip", "link", "set", "lo", "up"])
    uptime = Path("/proc/uptime").read_text().split()[0]
    _say(f"{job['word']} {READY} {uptime}")
    code = run(job["argv"], job["directory"])
    os.sync()
    _say(f"{job['word']} {ENDED} {code}")
    check(_reboot(_POWER_OFF), "reboot")


def mounts(wanted: Sequence[tuple[str, Path]], sysfs: Path) -> Iterator[tuple[str, Path]]:
    """Yield the kinds of file systems that this kernel has, each with the directory where it is to be mounted.

    A kernel makes those below sysfs itself, where nobody else can: one that is not there is of a kernel without them,
    such as debugfs without CONFIG_DEBUG_FS. What the lab misses then, the doctor says.
    """
    for kind, place in wanted:
        if not place.is_relative_to(sysfs):
            place.mkdir(parents=True, exist_ok=True)
        elif not place.is_dir():
            continue
        yield kind, place


def run(argv: Sequence[str], directory: str) -> int:
    """Run a command to its end and return its exit code; 128 and the signal if it was killed.

    127 if there is no such command, 126 if it cannot be run, as a shell has it.

    Its output is a pipe, from which it comes to the console: for a terminal, commands draw what moves.
    """
    try:
        process = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        # The command, or the directory: what lies in a tmpfs of the host's, such as /run, is not here.
        _say(f"reloadlab: {error.filename}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    assert process.stdout is not None
    forwarding = threading.Thread(target=_forward, args=(process.stdout.fileno(),), daemon=True)
    forwarding.start()
    code = _reaped(process.pid)
    # What the command left running may hold the pipe open for ever.
    forwarding.join(_DRAIN_SECONDS)
    return code


def _forward(descriptor: int) -> None:
    while data := os.read(descriptor, 1 << 16):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _reaped(pid: int) -> int:
    """Wait for a child, and meanwhile for all orphans, which are ours; return its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
