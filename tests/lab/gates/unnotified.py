"""A kernel without user notification, for a command: `python -m tests.lab.gates.unnotified CALL COMMAND`.

A filter, which holds for the command and its children, has that call, seccomp or pidfd_getfd, fail with ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {"x86_64": {"seccomp": 317, "pidfd_getfd": 438}, "aarch64": {"seccomp": 277, "pidfd_getfd": 438}}
_PR_SET_SECCOMP, _FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def refuse(number: int) -> None:
    """Have a system call fail from now on, in this process and in what it starts."""
    program = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    code = b"".join(struct.pack("=HBBI", *each) for each in [*program, (_RETURN, 0, 0, _ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(fprog)) < 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    refuse(NUMBERS[platform.machine()][sys.argv[1]])
    os.execvp(sys.argv[2], sys.argv[2:])
