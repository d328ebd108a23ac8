"""Reading whole maps: every entry once, however many there are and whatever happens to them meanwhile."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.base.bpftypes import HASH_TYPES, MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, map
from datapath.kernel.map import Map
from tests.datapath import support

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

ENTRIES = 1000


@pytest.fixture(params=sorted(HASH_TYPES), ids=lambda kind: kind.name.lower())
def table(request: pytest.FixtureRequest) -> Iterator[Map]:
    # Room for more than are put in: an LRU begins to evict before it is full.
    fd = bpf.map_create(request.param, 4, 8, 4 * ENTRIES, name="table")
    with Map(fd, "table", bpf.map_info(fd)) as opened:
        yield opened


def key_of(number: int) -> bytes:
    return struct.pack("=I", number)


def fill(table: Map) -> dict[bytes, bytes]:
    wanted = {
        key_of(number): struct.pack("=Q", number * 3) * (table.value_bytes // 8) for number in range(1, ENTRIES + 1)
    }
    for key, value in wanted.items():
        table.update(key, value)
    return wanted


@pytest.mark.parametrize("room", [1, 7, map._BATCH], ids=["smaller than a bucket", "small", "usual"])
def test_every_entry_once(table: Map, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map, "_FIRST_BATCH", min(room, map._FIRST_BATCH))
    monkeypatch.setattr(map, "_BATCH", room)
    assert list(table.items()) == []
    assert list(table.keys()) == []
    wanted = fill(table)
    found = list(table.items())
    assert len(found) == len(wanted)
    assert dict(found) == wanted
    assert sorted(table.keys()) == sorted(wanted)


def test_values_of_all_cpus(table: Map) -> None:
    wanted = fill(table)
    found = dict(table.items_percpu())
    assert found.keys() == wanted.keys()
    assert all(table.lookup_percpu(key) == values for key, values in found.items())
    assert {b"".join(values) for values in found.values()} == set(wanted.values())


def test_key_by_key_is_the_same(table: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fill(table)
    monkeypatch.setattr(bpf, "has_lookup_batch", lambda: False)
    monkeypatch.setattr(bpf, "map_lookup_batch", None)
    assert dict(table.items()) == wanted
    assert sorted(table.keys()) == sorted(wanted)


def test_deleted_on_the_way(table: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deletes what he reads sees each entry once; by key the kernel would begin anew with each of them."""
    monkeypatch.setattr(map, "_FIRST_BATCH", 16)
    monkeypatch.setattr(map, "_BATCH", 16)
    fill(table)
    seen = [key for key, _ in table.items() if table.delete(key)]
    assert len(seen) == len(set(seen)) == ENTRIES
    assert list(table.keys()) == []


def test_the_kernel_says_whether_it_can() -> None:
    """It has been able to since Linux 5.6; whatever fails for another reason is an error."""
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    assert bpf.has_lookup_batch() == ((major, minor) >= (5, 6))
    with pytest.raises(BpfError, match="BPF_MAP_LOOKUP_BATCH: Bad file descriptor"):
        bpf.map_lookup_batch(1 << 20, None, 4, 8, 1)


def test_pinned_maps_leaves_out_what_others_pin_beside_them(bpffs: Path) -> None:
    """Directories and programs: iproute2 and others keep theirs in the same place."""
    first, second = bpf.map_create(MapType.ARRAY, 4, 4, 1), bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1)
    program = support.load_using(second)
    bpf.obj_pin(second, bpffs / "b_map")
    bpf.obj_pin(first, bpffs / "a_map")
    bpf.obj_pin(program, bpffs / "a_program")
    (bpffs / "directory").mkdir()
    bpf.obj_pin(first, bpffs / "directory/map")
    for fd in (first, second, program):
        os.close(fd)
    assert [(found.name, found.info.type) for found in map.pinned_maps(bpffs)] == [
        ("a_map", MapType.ARRAY),
        ("b_map", MapType.PROG_ARRAY),
    ]
    assert list(map.pinned_maps(bpffs / "missing")) == []
