"""The one way to run an external tool: an argv list, output captured, a deadline, errors that carry the evidence."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from datapath.errors import ToolError, ToolMissing
from lab.system.pace import slowness

PACKAGES = {
    "clang": "clang",
    "ip": "iproute2",
    "tc": "iproute2",
    "strace": "strace",
    "bpftool": "bpftool",
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
}
"""Debian's package of a tool, where it has another name; there is none for those that are part of every system."""


def find(tool: str) -> Path:
    """Return the path of `tool`; ToolMissing names the Debian package to install."""
    path = shutil.which(tool)
    if path is None:
        raise ToolMissing(tool, f"apt-get install {PACKAGES.get(tool, tool)}")
    return Path(path)


def run(
    argv: Sequence[str], *, timeout: float = 60.0, stdin: str | None = None, output: IO[bytes] | None = None
) -> str:
    """Run a tool to its end and return its standard output; ToolError if it fails.

    `timeout` is in seconds of an ordinary machine (lab.system.pace).
    With `output`, a file, the standard output goes there as it is, and nothing is returned.
    """
    find(argv[0])
    timeout *= slowness()
    stdout = subprocess.PIPE if output is None else output
    try:
        done = subprocess.run(
            argv, input=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(argv, -signal.SIGKILL, f"killed after {timeout:g} s without a result") from error
    if done.returncode != 0:
        raise ToolError(argv, done.returncode, done.stderr)
    return done.stdout if output is None else ""
