"""What a stopped thread points at: bytes of its memory, its descriptors, the paths that it names."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from datapath.kernel.libc import check, function

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PATH_MAX = 4096
_SYS_PIDFD_GETFD = 438
_AT_FDCWD = -100 & 0xFFFFFFFF
_IOV = struct.Struct("@PN")

_readv = function(
    "process_vm_readv",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
    result=ctypes.c_ssize_t,
)
_syscall = function("syscall", ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint, result=ctypes.c_long)


class Process:
    """A process whose calls are stopped, seen through one of its threads. A context manager around `pidfd`.

    OSError where the process has died meanwhile.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def of_thread(cls, thread: int) -> Process:
        """Return the process that a thread belongs to."""
        with open(f"/proc/{thread}/status") as status:
            line = next(line for line in status if line.startswith("Tgid:"))
        return cls(int(line.split()[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self.pidfd)

    def has(self, thread: int) -> bool:
        """Tell whether a thread that is alive is one of this process."""
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return False
        # Nobody else has the id of the process now, so this is its directory.
        return os.access(f"/proc/{self.pid}/task/{thread}", os.F_OK)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is alive."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at an address; fewer where the memory ends."""
        buffer = ctypes.create_string_buffer(size)
        local, remote = _IOV.pack(ctypes.addressof(buffer), size), _IOV.pack(address, size)
        got = check(_readv(self.pid, local, 1, remote, 1, 0), f"memory of process {self.pid}")
        return buffer.raw[:got]

    def string(self, address: int) -> str:
        """Return the path, or other text, that ends with a NUL, at most PATH_MAX bytes."""
        found = bytearray()
        while len(found) < _PATH_MAX:
            # Not beyond a page, which may be the last.
            chunk = self.read(address + len(found), _PAGE - (address + len(found)) % _PAGE)
            found += chunk
            if b"\0" in chunk or not chunk:
                break
        return os.fsdecode(bytes(found.split(b"\0", 1)[0]))

    def path(self, directory: int, address: int) -> str:
        """Return the absolute path that a call names, relative to the descriptor `directory` as openat(2) takes it."""
        named = self.string(address)
        if named.startswith("/"):
            return os.path.normpath(named)
        base = "cwd" if directory & 0xFFFFFFFF == _AT_FDCWD else f"fd/{directory & 0xFFFFFFFF}"
        return os.path.normpath(os.path.join(os.readlink(f"/proc/{self.pid}/{base}"), named))

    def link(self, descriptor: int) -> str:
        """Return what a descriptor is, as /proc says it: a path, socket:[...], anon_inode:bpf-map."""
        return os.readlink(f"/proc/{self.pid}/fd/{descriptor}")

    @contextmanager
    def borrowed(self, descriptor: int) -> Iterator[int]:
        """Yield a descriptor of our own of what a descriptor of the process stands for."""
        own = check(_syscall(_SYS_PIDFD_GETFD, self.pidfd, descriptor, 0), f"descriptor {descriptor}")
        try:
            yield own
        finally:
            os.close(own)
