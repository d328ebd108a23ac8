"""What bpf(2) takes and gives: commands, layouts, and the values made of them (include/uapi/linux/bpf.h).

A layout of union bpf_attr ends after the last field that is used, which every kernel that knows the command accepts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAP_CREATE = struct.Struct("=7I16s5IQ")
ELEM = struct.Struct("=IxxxxQQQ")
BATCH = struct.Struct("=4Q2I2Q")
PROG_LOAD = struct.Struct("=2IQQ2IQ2I16s2I")
PROG_LOAD_BTF = struct.Struct("=2IQ2IQI")
"""What follows in union bpf_attr: descriptor of the BTF, then record size, place and number of func_info, line_info."""
FREEZE = struct.Struct("=I")
OBJ = struct.Struct("=Q2I")
ID = struct.Struct("=3I")
INFO = struct.Struct("=2IQ")
TEST_RUN = struct.Struct("=4I2Q4I2Q2I")
CONTEXT_ROOM = 1024
"""Bytes that hold struct __sk_buff (192 in Linux 6.18): the kernel refuses to write a part of it."""
RAW_TRACEPOINT = struct.Struct("=Q2I")
BTF_LOAD = struct.Struct("=2Q4I")
MAP_INFO = struct.Struct("=6I16s2I2Q3I")
"""The head of struct bpf_map_info, up to btf_value_type_id."""
BTF_INFO = struct.Struct("=Q2I")
# the head of struct bpf_prog_info, type to name; run_time_ns, run_cnt, recursion_misses and verified_insns follow later
PROG_INFO = struct.Struct("=2I8s2I2QQ2IQ16s")
PROG_INFO_LEN = 232
QUERY = struct.Struct("=4IQI4x4Q")
LINK_CREATE = struct.Struct("=4I")
LINK_UPDATE = struct.Struct("=4I")
LINK_DETACH = struct.Struct("=I")
LINK_INFO = struct.Struct("=3I4x2I")
"""The head of struct bpf_link_info, and what the kinds that belong to an interface say of it."""
RUN_STATS = struct.Struct("=3QI")
RUN_STATS_OFFSET = 192


class Cmd(IntEnum):
    """enum bpf_cmd, up to Linux 6.9."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    TASK_FD_QUERY = 20
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    BTF_GET_NEXT_ID = 23
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_AND_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ENABLE_STATS = 32
    ITER_CREATE = 33
    LINK_DETACH = 34
    PROG_BIND_MAP = 35
    TOKEN_CREATE = 36


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info; sizes in bytes. `type` stays an int, the kernel may know types that we do not.

    `types` says where the kernel has the types of keys and values, None if nobody told it.
    """

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    types: MapTypes | None = None


@dataclass(frozen=True, slots=True)
class MapTypes:
    """The types of a map's keys and values: the id of the kernel's BTF, and type ids in it (0: not told)."""

    btf: int
    key: int
    value: int


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """struct bpf_prog_info; lengths in bytes, `load_time` in nanoseconds since boot, `tag` in hex.

    `verified_insns` is 0 before Linux 5.16; `run_time_ns` and `run_cnt` move only while BPF_ENABLE_STATS is on.
    """

    id: int
    type: int
    tag: str
    name: str
    map_ids: tuple[int, ...]
    jited_len: int
    xlated_len: int
    verified_insns: int
    load_time: int
    run_time_ns: int
    run_cnt: int


@dataclass(frozen=True, slots=True)
class MapBtf:
    """The types of a map's keys and values: ids in the BTF that a descriptor stands for."""

    fd: int
    key: int = 0
    value: int = 0


@dataclass(frozen=True, slots=True)
class ProgBtf:
    """Where a program's instructions came from: struct bpf_func_info and bpf_line_info records, and their BTF."""

    fd: int
    func_info: bytes
    line_info: bytes


@dataclass(frozen=True, slots=True)
class TestRun:
    """What BPF_PROG_TEST_RUN gave: the program's return value, the packet after it, nanoseconds per run.

    `context` is struct __sk_buff after it.
    """

    __test__ = False  # not a test class, whatever pytest reads into the name

    retval: int
    data: bytes
    duration_ns: int
    context: bytes = b""
