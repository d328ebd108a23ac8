"""content.py on real maps: what may be carried over, and that all of it arrives."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, progarray
from datapath.kernel.cpus import possible_cpus
from datapath.kernel.map import Map
from datapath.load.content import can_copy, copy
from tests.datapath import support

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

NO_PREALLOC = 1
HASHES = (MapType.HASH, MapType.LRU_HASH)
PERCPU_HASHES = (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
ALL = (*HASHES, *PERCPU_HASHES, MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE, MapType.PROG_ARRAY)
SAME_KIND = [
    *itertools.product(HASHES, HASHES),
    *itertools.product(PERCPU_HASHES, PERCPU_HASHES),
    *((kind, kind) for kind in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE)),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def make(stack: ExitStack, kind: MapType, *, entries: int = 16, key: int = 4, value: int = 4, flags: int = 0) -> Map:
    """Create a map; a trie has 4 bytes of prefix length before its key."""
    if kind is MapType.LPM_TRIE:
        key, flags = key + 4, flags | NO_PREALLOC
    fd = bpf.map_create(kind, key, value, entries, flags=flags, name="content")
    return stack.enter_context(Map(fd, "content", bpf.map_info(fd)))


def fill(target: Map, count: int) -> dict[bytes, bytes]:
    """Put entries with different keys, lengths and, per CPU, values; return all of them as the kernel has them."""
    cpus = possible_cpus()
    step = target.value_bytes // cpus if target.value_bytes != target.info.value_size else 0
    for number in range(count):
        key = struct.pack("=I", number)
        if target.info.type == MapType.LPM_TRIE:
            key = struct.pack("=I", 32 - number % 3 * 8) + bytes((10, number + 1, 0, 0))
        value = b"".join(struct.pack("=I", 1000 * cpu + number + 1).ljust(step, b"\0") for cpu in range(cpus))
        target.update(key, value if step else struct.pack("=I", number + 1).ljust(target.info.value_size, b"\7"))
    return dict(target.items())


def name(value: object) -> str:
    return value.name.lower() if isinstance(value, MapType) else str(value)


@pytest.mark.parametrize(("old", "new"), SAME_KIND, ids=name)
def test_every_entry_arrives(stack: ExitStack, old: MapType, new: MapType) -> None:
    """Between types whose keys and values mean the same; per CPU, every CPU's value. LRU lists have room enough."""
    source, target = make(stack, old, entries=256), make(stack, new, entries=1024)
    entries = fill(source, 9)
    assert can_copy(source, target)
    assert copy(source, target) == 0
    arrived = dict(target.items())
    assert {key: arrived.get(key) for key in entries} == entries
    assert len({value for value in entries.values() if any(value)}) == 9, "the entries do not differ"
    if old in (MapType.HASH, MapType.LPM_TRIE):
        assert len(arrived) == len(entries)


@pytest.mark.parametrize(
    ("old", "new"),
    [pair for pair in itertools.product(ALL, ALL) if pair not in (*SAME_KIND, (MapType.PROG_ARRAY,) * 2)],
    ids=name,
)
def test_other_types_are_not_copied(stack: ExitStack, old: MapType, new: MapType) -> None:
    """A hash is no array, a value per CPU is none for all, a program is no number."""
    assert not can_copy(make(stack, old), make(stack, new))


def test_programs_keep_their_slots(stack: ExitStack) -> None:
    """Where the new array ends earlier, what lies beyond its end is counted."""
    old, new = make(stack, MapType.PROG_ARRAY), make(stack, MapType.PROG_ARRAY, entries=8)
    ids = {}
    for slot in (0, 3, 7, 8, 15):
        with support.program() as fd:
            progarray.put(old.fd, slot, fd)
            ids[slot] = support.program_id(fd)
    assert can_copy(old, new)
    assert copy(old, new) == 2
    assert progarray.programs(old.fd) == ids
    assert progarray.programs(new.fd) == {slot: ids[slot] for slot in (0, 3, 7)}
    assert [progarray.clear(new.fd, slot) for slot in (3, 3, 9)] == [True, False, False]
    assert progarray.programs(new.fd).keys() == {0, 7}


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LPM_TRIE, MapType.PERCPU_HASH], ids=name)
@pytest.mark.parametrize("other", [{"key": 8}, {"value": 8}], ids=["key size", "value size"])
def test_other_sizes_are_not_copied(stack: ExitStack, kind: MapType, other: dict[str, int]) -> None:
    assert not can_copy(make(stack, kind), make(stack, kind, **other))
    assert not can_copy(make(stack, kind, **other), make(stack, kind))


def test_other_flags_do_not_matter(stack: ExitStack) -> None:
    source, target = make(stack, MapType.HASH), make(stack, MapType.HASH, flags=NO_PREALLOC)
    entries = fill(source, 5)
    assert can_copy(source, target)
    assert copy(source, target) == 0
    assert dict(target.items()) == entries


@pytest.mark.parametrize(
    "kind", [MapType.HASH, MapType.PERCPU_HASH, MapType.LPM_TRIE, MapType.ARRAY, MapType.PERCPU_ARRAY], ids=name
)
def test_what_does_not_fit_is_counted(stack: ExitStack, kind: MapType) -> None:
    source, target = make(stack, kind, entries=10), make(stack, kind, entries=4)
    entries = fill(source, 10)
    assert can_copy(source, target)
    assert copy(source, target) == 6
    arrived = dict(target.items())
    assert len(arrived) == 4
    assert arrived.items() <= entries.items()


def test_what_is_there_is_overwritten(stack: ExitStack) -> None:
    source, target = make(stack, MapType.HASH), make(stack, MapType.HASH)
    entries = fill(source, 3)
    for key in entries:
        target.update(key, bytes(4))
    assert copy(source, target) == 0
    assert dict(target.items()) == entries


def test_another_error_is_raised(stack: ExitStack) -> None:
    """A target that programs alone may write to: nothing is counted as left out."""
    read_only = 1 << 3  # BPF_F_RDONLY
    source, target = make(stack, MapType.HASH), make(stack, MapType.HASH, flags=read_only)
    fill(source, 1)
    with pytest.raises(BpfError, match="Operation not permitted"):
        copy(source, target)
