"""Helper functions that not every kernel has. The probe loads a program that calls the helper."""

from __future__ import annotations

import errno
import os
import struct
from enum import IntEnum
from functools import cache

from datapath.base.bpftypes import ProgType
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.uapi import Cmd

_INSN = struct.Struct("<BBhi")  # struct bpf_insn
_CALL, _SET, _EXIT = 0x85, 0xB7, 0x95


class Helper(IntEnum):
    """enum bpf_func_id: helpers without arguments that our programs call only where the kernel has them."""

    KTIME_GET_COARSE_NS = 160


@cache
def is_known(helper: int) -> bool:
    """Tell whether programs of tc may call a helper without arguments. False for those who may load no program."""
    insns = _INSN.pack(_CALL, 0, 0, helper) + _INSN.pack(_SET, 0, 0, 0) + _INSN.pack(_EXIT, 0, 0, 0)
    result = bpf.prog_load(ProgType.SCHED_CLS, insns, "GPL", name="probe")
    if result >= 0:
        os.close(result)
        return True
    if result not in (-errno.EINVAL, -errno.EPERM):
        raise BpfError(f"BPF_{Cmd.PROG_LOAD.name}", -result, f"probe of helper {helper:d}: {os.strerror(-result)}")
    return False
