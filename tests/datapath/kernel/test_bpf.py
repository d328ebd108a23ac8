from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType, ProgType
from datapath.errors import BpfError
from datapath.kernel import bpf

# r0 = 7; exit
RETURN_7 = struct.pack("<BBhi", 0xB7, 0, 0, 7) + struct.pack("<BBhi", 0x95, 0, 0, 0)
# exit without a value in r0
NO_RESULT = struct.pack("<BBhi", 0x95, 0, 0, 0)

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]


@pytest.fixture
def table() -> Iterator[int]:
    fd = bpf.map_create(MapType.HASH, 4, 8, 16, flags=1, name="a-name.longer_than_15")
    yield fd
    os.close(fd)


@pytest.fixture
def program() -> Iterator[int]:
    fd = bpf.prog_load(ProgType.SCHED_CLS, RETURN_7, "GPL", name="seven")
    assert fd >= 0
    yield fd
    os.close(fd)


def test_map_info_reads_back_what_was_asked_for(table: int) -> None:
    info = bpf.map_info(table)
    assert (info.type, info.key_size, info.value_size, info.max_entries, info.flags) == (MapType.HASH, 4, 8, 16, 1)
    assert info.name == "a_name.longer_t"
    again = bpf.map_fd_by_id(info.id)
    assert bpf.map_info(again) == info
    os.close(again)


def test_elements_are_set_found_listed_and_deleted(table: int) -> None:
    for number in range(5):
        bpf.map_update(table, struct.pack("=I", number), struct.pack("=Q", number * 10))
    assert bpf.map_lookup(table, struct.pack("=I", 3), 8) == struct.pack("=Q", 30)
    assert bpf.map_lookup(table, struct.pack("=I", 9), 8) is None

    keys, key = [], bpf.map_next_key(table, None, 4)
    while key is not None:
        keys.append(struct.unpack("=I", key)[0])
        key = bpf.map_next_key(table, key, 4)
    assert sorted(keys) == [0, 1, 2, 3, 4]

    assert bpf.map_delete(table, struct.pack("=I", 3))
    assert not bpf.map_delete(table, struct.pack("=I", 3))
    assert bpf.map_lookup(table, struct.pack("=I", 3), 8) is None


def test_update_flags_are_the_kernels(table: int) -> None:
    key, value = bytes(4), bytes(8)
    bpf.map_update(table, key, value, flags=bpf.BPF_NOEXIST)
    with pytest.raises(BpfError) as caught:
        bpf.map_update(table, key, value, flags=bpf.BPF_NOEXIST)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.command == "BPF_MAP_UPDATE_ELEM"


def test_a_refused_map_names_itself_and_the_reason() -> None:
    with pytest.raises(BpfError, match="BPF_MAP_CREATE: bad: Invalid argument") as caught:
        bpf.map_create(MapType.HASH, 0, 8, 1, name="bad")
    assert caught.value.errno == errno.EINVAL


def test_program_info_and_run(program: int) -> None:
    info = bpf.prog_info(program)
    assert (info.type, info.name, info.verified_insns, info.map_ids) == (ProgType.SCHED_CLS, "seven", 2, ())
    assert len(info.tag) == 16
    assert info.xlated_len == len(RETURN_7)
    run = bpf.prog_test_run(program, bytes(range(64)), repeat=3)
    assert (run.retval, run.data) == (7, bytes(range(64)))
    marked = bpf.prog_test_run(program, bytes(range(64)), context=struct.pack("=8xI", 0xABCD))
    # mark as given; ifindex, which was left out, is that of lo
    assert struct.unpack_from("=8xI28xI", marked.context) == (0xABCD, 1)


def test_program_info_lists_many_maps() -> None:
    maps = [bpf.map_create(MapType.ARRAY, 4, 4, 1, name=f"m{i}") for i in range(70)]
    load = b"".join(struct.pack("<BBhiBBhi", 0x18, 0x11, 0, fd, 0, 0, 0, 0) for fd in maps)
    program = bpf.prog_load(ProgType.SCHED_CLS, load + RETURN_7, "GPL")
    if program == -errno.E2BIG:
        ids = {bpf.map_info(fd).id for fd in maps[:64]}
        program = bpf.prog_load(ProgType.SCHED_CLS, load[: 64 * 16] + RETURN_7, "GPL")
    else:
        ids = {bpf.map_info(fd).id for fd in maps}
    assert set(bpf.prog_info(program).map_ids) == ids
    for fd in (program, *maps):
        os.close(fd)


def test_a_refused_program_is_an_errno_and_a_log() -> None:
    import ctypes

    log = ctypes.create_string_buffer(4096)
    result = bpf.prog_load(ProgType.SCHED_CLS, bytearray(NO_RESULT), "GPL", log_level=1, log=log)
    assert result == -errno.EACCES
    assert b"R0 !read_ok" in log.value


def test_ids_lead_to_what_is_loaded(program: int) -> None:
    found, ident = set(), bpf.prog_next_id(0)
    while ident is not None:
        found.add(ident)
        ident = bpf.prog_next_id(ident)
    wanted = bpf.prog_info(program).id
    assert bpf.prog_id(program) == wanted
    assert wanted in found
    again = bpf.prog_fd_by_id(wanted)
    assert bpf.prog_info(again).id == wanted
    os.close(again)
    with pytest.raises(BpfError) as caught:
        bpf.prog_fd_by_id(0x7FFFFFFF)
    assert caught.value.errno == errno.ENOENT


def test_pins_are_opened_by_path(bpffs: Path, table: int) -> None:
    path = bpffs / "table:pending"
    bpf.obj_pin(table, path)
    with pytest.raises(BpfError) as caught:
        bpf.obj_pin(table, path)
    assert caught.value.errno == errno.EEXIST
    again = bpf.obj_get(path)
    assert bpf.map_info(again) == bpf.map_info(table)
    os.close(again)
    path.unlink()
    with pytest.raises(BpfError) as caught:
        bpf.obj_get(path)
    assert caught.value.errno == errno.ENOENT


def test_btf_is_taken() -> None:
    strings = b"\0int\0"
    # BTF_KIND_INT, 4 bytes, signed, 32 bits
    kind = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(kind), len(kind), len(strings))
    fd = bpf.btf_load(header + kind + strings)
    assert fd > 2
    os.close(fd)


def test_file_systems_are_told_apart(bpffs: Path, tmp_path: Path) -> None:
    assert bpf.fs_magic(bpffs) == bpf.BPF_FS_MAGIC
    assert bpf.fs_magic(tmp_path) != bpf.BPF_FS_MAGIC
    with pytest.raises(FileNotFoundError):
        bpf.fs_magic(tmp_path / "missing")
