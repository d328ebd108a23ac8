"""bpf(2), one function per command, through ctypes: the interpreter lock is free while the kernel works.

Descriptors are plain ints, opened close-on-exec by the kernel; whoever gets one closes it. Every function raises
BpfError with the errno that the kernel gave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass
from functools import cache, lru_cache

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import uapi
from datapath.kernel.libc import check, function
from datapath.kernel.uapi import Cmd, MapBtf, MapInfo, MapTypes, ProgBtf, ProgInfo, TestRun

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}.get(os.uname().machine, 280)

BPF_FS_MAGIC = 0xCAFE4A11
OBJ_NAME_LEN = 16
"""Length of a name in the kernel, its final NUL included (BPF_OBJ_NAME_LEN)."""

LOG_LEVEL1, LOG_LEVEL2, LOG_STATS = 1, 2, 4
BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
FUNC_INFO_SIZE, LINE_INFO_SIZE = 8, 16
"""Bytes of struct bpf_func_info and struct bpf_line_info."""

_MAP_IDS = 64  # more than one program of ours uses; a larger answer is asked for again


@dataclass(frozen=True, slots=True)
class ProgLoad:
    """A BPF_PROG_LOAD with everything encoded; `kept` is what the kernel will read or write."""

    attr: bytes
    kept: tuple[object, ...]

    def __call__(self) -> int:
        """Make the call: the program's descriptor, or the errno as a negative number."""
        return _raw(Cmd.PROG_LOAD, self.attr, len(self.attr))


_syscall = function("syscall", ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, result=ctypes.c_long)
_statfs = function("statfs", ctypes.c_char_p, ctypes.c_void_p)

# A call into the interpreter itself: several times faster than a cast, and every bpf(2) needs two or three addresses.
_bytes_as_string = ctypes.pythonapi.PyBytes_AsString
_bytes_as_string.argtypes = (ctypes.py_object,)
_bytes_as_string.restype = ctypes.c_void_p


def _raw(cmd: int, attr: bytes | ctypes.Array[ctypes.c_char], size: int) -> int:
    """Return what bpf(2) returned, or the errno as a negative number."""
    result: int = _syscall(SYS_BPF, cmd, attr, size)
    return result if result >= 0 else -ctypes.get_errno()


def call(cmd: Cmd, attr: bytes | ctypes.Array[ctypes.c_char], detail: str = "") -> int:
    """Make any call of bpf(2) and return its result; `detail` says in the error what the call was about."""
    result = _raw(cmd, attr, len(attr))
    if result < 0:
        raise _error(cmd, -result, detail)
    return result


def _error(cmd: Cmd, number: int, detail: str) -> BpfError:
    return BpfError(f"BPF_{cmd.name}", number, f"{detail}: {os.strerror(number)}" if detail else os.strerror(number))


def _address(data: bytes) -> int:
    """Return where the bytes lie; the caller keeps `data` alive during the call."""
    address: int = _bytes_as_string(data)
    return address


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    """Return `name` as the kernel takes it: at most 15 bytes of letters, digits, '_' and '.' (bpf_obj_name_cpy)."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    return kept[: OBJ_NAME_LEN - 1].encode()


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def fs_magic(path: str | os.PathLike[str]) -> int:
    """Return the f_type of the file system at `path` (statfs(2)); OSError if there is nothing."""
    buffer = ctypes.create_string_buffer(256)
    name = os.fsencode(path)
    check(_statfs(name, buffer), os.fsdecode(name))
    magic: int = struct.unpack_from("=q", buffer)[0]
    return magic & 0xFFFFFFFF


# --- maps ---


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    name: str = "",
    inner_map_fd: int = 0,
    numa_node: int = 0,
    map_extra: int = 0,
    btf: MapBtf | None = None,
) -> int:
    """Create a map and return its descriptor; sizes in bytes."""
    types = btf or MapBtf(0)
    attr = uapi.MAP_CREATE.pack(
        *(map_type, key_size, value_size, max_entries, flags, inner_map_fd, numa_node),
        *(_name(name), 0, types.fd, types.key, types.value, 0, map_extra),
    )
    return call(Cmd.MAP_CREATE, attr, name)


def map_freeze(fd: int) -> None:
    """Make a map read-only for bpf(2): the verifier then knows what a read-only map of the program holds."""
    call(Cmd.MAP_FREEZE, uapi.FREEZE.pack(fd))


def map_lookup(fd: int, key: bytes, value_size: int, *, flags: int = 0) -> bytes | None:
    """Return the value under `key`, None if there is none. `value_size` is what the kernel writes (all CPUs)."""
    value = ctypes.create_string_buffer(value_size)
    result = _raw(
        Cmd.MAP_LOOKUP_ELEM, uapi.ELEM.pack(fd, _address(key), ctypes.addressof(value), flags), uapi.ELEM.size
    )
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise _error(Cmd.MAP_LOOKUP_ELEM, -result, "")
    return value.raw


def map_slots(fd: int, count: int) -> dict[int, int]:
    """Return the words in the first `count` slots of an array, without those that are empty.

    For large arrays: the buffers of `map_lookup` are made once.
    """
    key, value = ctypes.c_uint32(), ctypes.c_uint32()
    attr = ctypes.create_string_buffer(
        uapi.ELEM.pack(fd, ctypes.addressof(key), ctypes.addressof(value), 0), uapi.ELEM.size
    )
    found = {}
    for slot in range(count):
        key.value = slot
        result = _raw(Cmd.MAP_LOOKUP_ELEM, attr, uapi.ELEM.size)
        if result == 0:
            found[slot] = value.value
        elif result != -errno.ENOENT:
            raise _error(Cmd.MAP_LOOKUP_ELEM, -result, f"slot {slot}")
    return found


def map_update(fd: int, key: bytes, value: bytes, *, flags: int = BPF_ANY) -> None:
    """Set the value under `key`."""
    call(Cmd.MAP_UPDATE_ELEM, uapi.ELEM.pack(fd, _address(key), _address(value), flags))


def map_delete(fd: int, key: bytes) -> bool:
    """Delete `key`; False if it was not there."""
    result = _raw(Cmd.MAP_DELETE_ELEM, uapi.ELEM.pack(fd, _address(key), 0, 0), uapi.ELEM.size)
    if result < 0 and result != -errno.ENOENT:
        raise _error(Cmd.MAP_DELETE_ELEM, -result, "")
    return result == 0


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """Return the key after `key` (the first one for None), None after the last."""
    following = ctypes.create_string_buffer(key_size)
    attr = uapi.ELEM.pack(fd, 0 if key is None else _address(key), ctypes.addressof(following), 0)
    result = _raw(Cmd.MAP_GET_NEXT_KEY, attr, uapi.ELEM.size)
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise _error(Cmd.MAP_GET_NEXT_KEY, -result, "")
    return following.raw


def map_lookup_batch(
    fd: int, cursor: bytes | None, key_size: int, value_size: int, room: int
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Return up to `room` keys and values of a hash, and the cursor of those that follow, None after the last.

    None begins. The kernel (Linux 5.6) reads whole buckets: one with more entries than `room` is ENOSPC.
    """
    keys, values = ctypes.create_string_buffer(key_size * room), ctypes.create_string_buffer(value_size * room)
    following = ctypes.create_string_buffer(4)
    start = 0 if cursor is None else _address(cursor)
    buffers = (ctypes.addressof(buffer) for buffer in (following, keys, values))
    attr = ctypes.create_string_buffer(uapi.BATCH.pack(start, *buffers, room, fd, 0, 0), uapi.BATCH.size)
    result = _raw(Cmd.MAP_LOOKUP_BATCH, attr, uapi.BATCH.size)
    if result not in (0, -errno.ENOENT):
        raise _error(Cmd.MAP_LOOKUP_BATCH, -result, "")
    count = uapi.BATCH.unpack(attr.raw)[4]
    names, contents = keys.raw, values.raw
    ends = zip(range(0, key_size * count, key_size), range(0, value_size * count, value_size), strict=True)
    found = [(names[k : k + key_size], contents[v : v + value_size]) for k, v in ends]
    return found, following.raw if result == 0 else None


@cache
def has_lookup_batch() -> bool:
    """Tell whether the kernel knows BPF_MAP_LOOKUP_BATCH."""
    fd = map_create(MapType.HASH, 4, 4, 1, name="probe")
    try:
        map_lookup_batch(fd, None, 4, 4, 1)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(fd)
    return True


def map_info(fd: int) -> MapInfo:
    """Describe a map (bpf_map_get_info_by_fd)."""
    info = ctypes.create_string_buffer(uapi.MAP_INFO.size)
    call(Cmd.OBJ_GET_INFO_BY_FD, uapi.INFO.pack(fd, uapi.MAP_INFO.size, ctypes.addressof(info)))
    map_type, ident, key_size, value_size, max_entries, flags, name, *rest = uapi.MAP_INFO.unpack(info.raw)
    types = MapTypes(*rest[-3:])
    return MapInfo(ident, map_type, key_size, value_size, max_entries, flags, _text(name), types if types.btf else None)


def map_fd_by_id(ident: int) -> int:
    """Open a map by id; ENOENT if there is none."""
    return call(Cmd.MAP_GET_FD_BY_ID, uapi.ID.pack(ident, 0, 0), f"map {ident}")


# --- programs ---


def prog_load(
    prog_type: int,
    insns: bytes | bytearray,
    license_: str,
    *,
    name: str = "",
    log_level: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
    flags: int = 0,
    attach_type: int = 0,
    btf: ProgBtf | None = None,
) -> int:
    """Load a program and return its descriptor, or the errno as a negative number: a refusal is not an exception here.

    The caller needs the errno and the log buffer together to tell a verifier's refusal from anything else.
    """
    call = prepare_prog_load(
        *(prog_type, insns, license_),
        name=name,
        log_level=log_level,
        log=log,
        flags=flags,
        attach_type=attach_type,
        btf=btf,
    )
    return call()


def prepare_prog_load(
    prog_type: int,
    insns: bytes | bytearray,
    license_: str,
    *,
    name: str = "",
    log_level: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
    flags: int = 0,
    attach_type: int = 0,
    btf: ProgBtf | None = None,
) -> ProgLoad:
    """Return the call that `prog_load` makes, for those who have several to make one after the other."""
    writable = isinstance(insns, bytearray)
    address = ctypes.addressof(ctypes.c_char.from_buffer(insns)) if writable else _address(bytes(insns))
    licence = license_.encode() + b"\0"
    attr = uapi.PROG_LOAD.pack(
        *(prog_type, len(insns) // 8, address, _address(licence)),
        *(log_level, len(log) if log is not None else 0, ctypes.addressof(log) if log is not None else 0),
        *(0, flags, _name(name), 0, attach_type),
    )
    if btf is not None:
        attr += uapi.PROG_LOAD_BTF.pack(
            *(btf.fd, FUNC_INFO_SIZE, _address(btf.func_info), len(btf.func_info) // FUNC_INFO_SIZE),
            *(LINE_INFO_SIZE, _address(btf.line_info), len(btf.line_info) // LINE_INFO_SIZE),
        )
    return ProgLoad(attr, (insns, licence, log, btf))


def prog_info(fd: int) -> ProgInfo:
    """Describe a program (bpf_prog_get_info_by_fd)."""
    room = _MAP_IDS
    while True:
        ids = (ctypes.c_uint32 * room)()
        info = ctypes.create_string_buffer(uapi.PROG_INFO_LEN)
        uapi.PROG_INFO.pack_into(info, 0, 0, 0, b"", 0, 0, 0, 0, 0, 0, room, ctypes.addressof(ids), b"")
        call(Cmd.OBJ_GET_INFO_BY_FD, uapi.INFO.pack(fd, uapi.PROG_INFO_LEN, ctypes.addressof(info)))
        fields = uapi.PROG_INFO.unpack_from(info)
        if fields[9] <= room:
            break
        room = fields[9]
    run_time, run_count, _, verified = uapi.RUN_STATS.unpack_from(info, uapi.RUN_STATS_OFFSET)
    return ProgInfo(
        id=fields[1],
        type=fields[0],
        tag=fields[2].hex(),
        name=_text(fields[11]),
        map_ids=tuple(ids[: fields[9]]),
        jited_len=fields[3],
        xlated_len=fields[4],
        verified_insns=verified,
        load_time=fields[7],
        run_time_ns=run_time,
        run_cnt=run_count,
    )


def prog_id(fd: int) -> int:
    """Return a program's id: the first words of what `prog_info` asks for."""
    info = ctypes.create_string_buffer(8)
    call(Cmd.OBJ_GET_INFO_BY_FD, uapi.INFO.pack(fd, len(info), ctypes.addressof(info)))
    return int.from_bytes(info.raw[4:], sys.byteorder)


def prog_fd_by_id(ident: int) -> int:
    """Open a program by id; ENOENT if there is none."""
    return call(Cmd.PROG_GET_FD_BY_ID, uapi.ID.pack(ident, 0, 0), f"program {ident}")


def prog_next_id(ident: int) -> int | None:
    """Return the next program id after `ident` (0 to begin), None after the last."""
    return next_id(Cmd.PROG_GET_NEXT_ID, ident)


def has_map(ident: int) -> bool:
    """Tell whether there is a map of this id, without opening it: one that is opened ever again is never freed."""
    return next_id(Cmd.MAP_GET_NEXT_ID, ident - 1) == ident


def next_id(cmd: Cmd, ident: int) -> int | None:
    """Return the next id of a kind of objects after `ident` (0 to begin), None after the last."""
    attr = ctypes.create_string_buffer(uapi.ID.pack(ident, 0, 0), uapi.ID.size)
    result = _raw(cmd, attr, uapi.ID.size)
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise _error(cmd, -result, "")
    following: int = uapi.ID.unpack(attr.raw)[1]
    return following


def prog_test_run(fd: int, data: bytes, *, repeat: int = 1, context: bytes = b"", room: int = 512) -> TestRun:
    """Run a program on a packet, in the caller's network namespace; `room` is how many bytes it may add.

    `context` is a struct __sk_buff, or the head of one; if there is one, the whole of it comes back.
    """
    out = ctypes.create_string_buffer(len(data) + room)
    packet = ctypes.create_string_buffer(data, len(data))
    around = ctypes.create_string_buffer(context, max(len(context), uapi.CONTEXT_ROOM))
    where, size_out = (ctypes.addressof(around), len(around)) if context else (0, 0)
    attr = ctypes.create_string_buffer(
        uapi.TEST_RUN.pack(
            *(fd, 0, len(data), len(out), ctypes.addressof(packet), ctypes.addressof(out)),
            *(repeat, 0, len(context), size_out, where, where, 0, 0),
        ),
        uapi.TEST_RUN.size,
    )
    call(Cmd.PROG_TEST_RUN, attr)
    _, retval, _, size, _, _, _, duration, _, context_size, *_ = uapi.TEST_RUN.unpack(attr.raw)
    return TestRun(retval, out.raw[:size], duration, around.raw[:context_size])


# --- pins, ids, BTF, tracepoints ---


def obj_pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin a map, program or link; EEXIST if the name is taken."""
    name = os.fsencode(path) + b"\0"
    call(Cmd.OBJ_PIN, uapi.OBJ.pack(_address(name), fd, 0), os.fsdecode(path))


def obj_get(path: str | os.PathLike[str]) -> int:
    """Open a pinned object; ENOENT if nothing is pinned there."""
    name = os.fsencode(path) + b"\0"
    return call(Cmd.OBJ_GET, uapi.OBJ.pack(_address(name), 0, 0), os.fsdecode(path))


def btf_load(data: bytes) -> int:
    """Give BTF to the kernel and return its descriptor."""
    return call(Cmd.BTF_LOAD, uapi.BTF_LOAD.pack(_address(data), 0, len(data), 0, 0, 0))


def btf_of_id(ident: int) -> bytes:
    """Return the BTF that the kernel has under an id; ENOENT if there is none."""
    fd = call(Cmd.BTF_GET_FD_BY_ID, uapi.ID.pack(ident, 0, 0), f"BTF {ident}")
    try:
        data = ctypes.create_string_buffer(_read_btf(fd, ctypes.create_string_buffer(0)))
        _read_btf(fd, data)
        return data.raw
    finally:
        os.close(fd)


def _read_btf(fd: int, data: ctypes.Array[ctypes.c_char]) -> int:
    """Fill `data` with the beginning of the BTF, as far as it goes; return how many bytes there are."""
    head = uapi.BTF_INFO.pack(ctypes.addressof(data), len(data), 0)
    info = ctypes.create_string_buffer(head, uapi.BTF_INFO.size)
    call(Cmd.OBJ_GET_INFO_BY_FD, uapi.INFO.pack(fd, uapi.BTF_INFO.size, ctypes.addressof(info)), "BTF")
    return int(uapi.BTF_INFO.unpack(info.raw)[1])


def raw_tracepoint_open(name: str, prog_fd: int) -> int:
    """Attach a program to a tracepoint of the kernel; it stays there until the returned descriptor is closed.

    ENOENT if the kernel has no such tracepoint, EINVAL if the program reads more arguments than that one has.
    """
    encoded = name.encode() + b"\0"
    attr = uapi.RAW_TRACEPOINT.pack(_address(encoded), prog_fd, 0)
    return call(Cmd.RAW_TRACEPOINT_OPEN, attr, f"tracepoint {name}")
