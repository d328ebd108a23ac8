"""The filter that stops a process at system calls, and the descriptor at which it is told and answered (seccomp(2)).

The filter holds for the process that installs it, its threads and its children, and cannot be removed. Its listener is
the only way to let a stopped call go on: when its last descriptor is closed, such calls fail with ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from datapath.errors import ReloadlabError
from datapath.kernel.libc import function
from datapath.kernel.uapi import Cmd

_SECCOMP_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE_RECV = 1 << 5
"""A call that was received is not restarted by a signal, such as those with which Go preempts (Linux 5.19)."""
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_ID_VALID, _NOTIF_SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_X86_64 = {
    "bpf": 321,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "sendmmsg": 307,
    "recvmmsg": 299,
    "open": 2,
    "creat": 85,
    "openat": 257,
    "openat2": 437,
    "rename": 82,
    "renameat": 264,
    "renameat2": 316,
    "link": 86,
    "linkat": 265,
    "symlink": 88,
    "symlinkat": 266,
    "unlink": 87,
    "unlinkat": 263,
    "mkdir": 83,
    "mkdirat": 258,
    "rmdir": 84,
}
_GENERIC = {
    "bpf": 280,
    "sendto": 206,
    "recvfrom": 207,
    "sendmsg": 211,
    "recvmsg": 212,
    "sendmmsg": 269,
    "recvmmsg": 243,
    "openat": 56,
    "openat2": 437,
    "renameat": 38,
    "renameat2": 276,
    "linkat": 37,
    "symlinkat": 36,
    "unlinkat": 35,
    "mkdirat": 34,
}
_MACHINES = {"x86_64": (0xC000003E, 317, _X86_64), "aarch64": (0xC00000B7, 277, _GENERIC)}
"""By machine: its AUDIT_ARCH, its number of seccomp(2), its numbers of the calls that can be gates."""

_syscall = function("syscall", ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, result=ctypes.c_long)


class NoUserNotification(ReloadlabError):
    """A kernel or a machine that does not stop calls for us: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"system calls cannot be gates here: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that is stopped: its `id` for the answer, the thread that makes it, its name and arguments."""

    id: int
    thread: int
    name: str
    args: tuple[int, ...]


def _machine() -> tuple[int, int, dict[str, int]]:
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise NoUserNotification(f"the numbers of system calls of {machine} are not known")
    return _MACHINES[machine]


def number_of(name: str) -> int:
    """Return the number of a system call that can be a gate; KeyError for another one."""
    return _machine()[2][name]


def install(*, look_ups: bool = True) -> int:
    """Put the calling process under the filter, and return the listener, which exec closes. Needs CAP_SYS_ADMIN.

    Without `look_ups`, the bpf(2) by which one element of a map is looked up, or the next key, is not stopped: some
    loaders read tens of thousands.
    The caller hands the listener on, and closes its own descriptor: else nothing ends the calls when the other end
    dies.
    """
    arch, _, numbers = _machine()
    return _install(_program(arch, numbers, look_ups=look_ups))


def install_nothing() -> int:
    """Do the same with a filter that stops nothing: where that fails, so does every other."""
    return _install(_INSTRUCTION.pack(_RETURN, 0, 0, _RET_ALLOW))


def _install(program: bytes) -> int:
    _, seccomp, _ = _machine()
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER):
        result = int(_syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, fprog))
        if result >= 0:
            return result
        if ctypes.get_errno() != errno.EINVAL:
            break
    number = ctypes.get_errno()
    raise NoUserNotification(f"seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER): {os.strerror(number)}")


def _program(arch: int, numbers: dict[str, int], *, look_ups: bool) -> bytes:
    """Return the filter: these calls are stopped, those that open a file only if it may be written."""
    flags = {"open": 1, "openat": 2}
    body: list[tuple[int, int, int, int]] = []
    for name, number in numbers.items():
        if name == "bpf" and not look_ups:
            body += [
                (_JUMP_EQUAL, 0, 5, number),
                (_LOAD, 0, 0, 16),
                (_JUMP_EQUAL, 1, 0, Cmd.MAP_LOOKUP_ELEM),
                (_JUMP_EQUAL, 0, 1, Cmd.MAP_GET_NEXT_KEY),
                (_RETURN, 0, 0, _RET_ALLOW),
                (_RETURN, 0, 0, _RET_USER_NOTIF),
            ]
        elif name in flags:
            # seccomp_data.args[n], its lower half: both machines are little-endian.
            body += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16 + 8 * flags[name]),
                (_JUMP_ANY_BIT, 0, 1, _WRITES),
                (_RETURN, 0, 0, _RET_USER_NOTIF),
                (_RETURN, 0, 0, _RET_ALLOW),
            ]
        else:
            body += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_LOAD, 0, 0, 0),
        *body,
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


class Listener:
    """The end of a filter that decides. It owns the descriptor, and is a context manager."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _, _, numbers = _machine()
        self._names = {number: name for name, number in numbers.items()}
        self._buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(descriptor, _NOTIF_SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:  # before Linux 6.6 a call costs another few microseconds
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def receive(self) -> Notification | None:
        """Return the next stopped call, waiting for one; None if its thread has gone meanwhile."""
        self._buffer[:] = bytes(_NOTIF.size)
        try:
            fcntl.ioctl(self.descriptor, _NOTIF_RECV, self._buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        number, thread, _, call, _, _, *args = _NOTIF.unpack(self._buffer)
        return Notification(number, thread, self._names[call], tuple(args))

    def is_waiting(self, notification: Notification) -> bool:
        """Tell whether the call is still stopped: only then was what was read of its thread that thread's."""
        try:
            fcntl.ioctl(self.descriptor, _NOTIF_ID_VALID, struct.pack("=Q", notification.id))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def let_go(self, notification: Notification) -> None:
        """Let the call happen."""
        self._answer(_RESPONSE.pack(notification.id, 0, 0, _CONTINUE))

    def fail(self, notification: Notification, number: int) -> None:
        """Have the call fail with this errno; it does not happen."""
        self._answer(_RESPONSE.pack(notification.id, 0, -number, 0))

    def _answer(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.descriptor, _NOTIF_SEND, response)
        except OSError as error:
            # The thread has been killed.
            if error.errno != errno.ENOENT:
                raise
