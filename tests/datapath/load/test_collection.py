from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.timing import Interval, VerifyTimes
from datapath.errors import BpfError, MapDifference, MapIncompatible, PinPathError, VerifierError
from datapath.kernel import bpf
from datapath.kernel.cpus import possible_cpus
from datapath.kernel.map import Map, MapCache, open_pin
from datapath.load.collection import Collection, fill_program_arrays
from datapath.load.maps import differences, load_maps, open_maps
from datapath.load.programs import load_programs, longest_first
from datapath.load.threads import VerifierThreads
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec, MapSpec, Substitution

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

OBJECT = r"""
volatile __u16 FIRST = 7;
volatile __u32 ANSWER = 42;
struct bpf_elf_map __section("maps") cilium_calls_65535 = { 3, 4, 4, 8, 0, 2, 2 };
struct bpf_elf_map __section("maps") cilium_call_policy = { 3, 4, 4, 65535, 0, 1, 2 };
struct { __uint(type, 1); __type(key, __u32); __type(value, __u64); __uint(max_entries, 16);
         __uint(map_flags, 1); __uint(pinning, 1); } cilium_shared __section(".maps");
struct { __uint(type, 6); __type(key, __u32); __type(value, __u32); __uint(max_entries, 1); }
  scratch __section(".maps");
__section("from-container") int cil_from_container(struct __sk_buff *skb) {
    tail_call(skb, &cilium_calls_65535, 7);
    return 1;
}
__section("2/7") int tail_seven(struct __sk_buff *skb) {
    __u32 key = 5;
    __u64 *count = map_lookup_elem(&cilium_shared, &key);
    __u32 *own = map_lookup_elem(&scratch, &key);
    if (own) return 99;
    if ((__u16)__fetch(FIRST) != 7) return 98;
    if (count) __sync_fetch_and_add(count, 1);
    return __fetch(ANSWER);
}
__section("1/0xffff") int handle_policy(struct __sk_buff *skb) { return 2; }
"""
REFUSED = (
    OBJECT
    + r"""
__section("2/3") int tail_bad(struct __sk_buff *skb) {
    __u32 key = 0;
    __u64 *value = map_lookup_elem(&cilium_shared, &key);
    return *value;
}
"""
)
POLICY = frozenset(("cilium_call_policy",))
PACKET = bytes(64)
KEY5 = struct.pack("=I", 5)


@pytest.fixture
def spec(compile_c: Compile) -> CollectionSpec:
    return read_object(compile_c(OBJECT)).spec


@pytest.fixture
def refused(compile_c: Compile) -> CollectionSpec:
    return read_object(compile_c(REFUSED)).spec


@pytest.fixture
def pins(bpffs: Path) -> Path:
    return bpffs / "tc" / "globals"


@pytest.fixture(params=[VerifierThreads, ThreadPoolExecutor])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as pool:
        yield pool


@pytest.fixture
def cache() -> Iterator[MapCache]:
    held = MapCache()
    yield held
    held.close()


def test_loaded_object_runs_through_its_tail_call(spec: CollectionSpec, pins: Path) -> None:
    with Collection.load(spec, pin_dir=pins, skip_contents=POLICY) as loaded:
        assert {p.name for p in pins.iterdir()} == {"cilium_calls_65535", "cilium_call_policy", "cilium_shared"}
        shared = loaded.maps["cilium_shared"]
        shared.update(KEY5, struct.pack("=Q", 10))
        run = bpf.prog_test_run(loaded.programs["cil_from_container"].fd, PACKET)
        assert run.retval == 42
        assert shared.lookup(KEY5) == struct.pack("=Q", 11)
        info = loaded.programs["cil_from_container"].info()
        assert info.name == "cil_from_contai"
        assert info.map_ids == (loaded.maps["cilium_calls_65535"].info.id,)
        assert loaded.programs["tail_seven"].id in {
            struct.unpack("=I", value)[0] for _, value in loaded.maps["cilium_calls_65535"].items()
        }
        assert list(loaded.maps["cilium_call_policy"].items()) == []


def test_substituted_constants_are_immediates(spec: CollectionSpec, pins: Path) -> None:
    changed = spec.substitute(
        Substitution({"ANSWER": 0x8000_0001}, {"cilium_calls_65535": "cilium_calls_00123", "1/0xffff": "1/0x007b"})
    )
    with Collection.load(changed, pin_dir=pins) as loaded:
        assert bpf.prog_test_run(loaded.programs["cil_from_container"].fd, PACKET).retval == 0x8000_0001
        policy = dict(loaded.maps["cilium_call_policy"].items())
        assert policy == {struct.pack("=I", 123): struct.pack("=I", loaded.programs["handle_policy"].id)}
    assert (pins / "cilium_calls_00123").exists()


def test_unsubstituted_template_is_refused(spec: CollectionSpec, pins: Path) -> None:
    with pytest.raises(BpfError, match="slot 65535 of cilium_call_policy") as caught:
        Collection.load(spec, pin_dir=pins)
    assert caught.value.errno == errno.E2BIG
    assert list(pins.iterdir()) == []


def test_pinned_maps_are_used_again(spec: CollectionSpec, pins: Path) -> None:
    with Collection.load(spec, pin_dir=pins, skip_contents=POLICY) as first:
        ids = {name: m.info.id for name, m in first.maps.items()}
        assert {pin.path.name for pin in first.map_set.created_pins} == set(ids) - {"scratch"}
        first.maps["cilium_shared"].update(KEY5, bytes(8))
    with Collection.load(spec, pin_dir=pins, skip_contents=POLICY) as second:
        assert second.map_set.created_pins == []
        assert second.maps["cilium_shared"].info.id == ids["cilium_shared"]
        assert second.maps["scratch"].info.id != ids["scratch"]
        assert second.maps["cilium_shared"].lookup(KEY5) == bytes(8)


def test_without_a_pin_directory_nothing_is_pinned(spec: CollectionSpec, bpffs: Path) -> None:
    before = set(bpffs.iterdir())
    with Collection.load(spec, pin_dir=None, skip_contents=POLICY) as loaded:
        assert loaded.map_set.created_pins == []
    assert set(bpffs.iterdir()) == before


def test_every_difference_of_every_map_is_listed_before_anything_is_made(spec: CollectionSpec, pins: Path) -> None:
    load_maps(spec, pins).close()
    (pins / "cilium_call_policy").unlink()
    shared = replace(spec.maps["cilium_shared"], type=int(MapType.LRU_HASH), value_size=16, flags=0)
    calls = replace(spec.maps["cilium_calls_65535"], max_entries=47)
    other = replace(spec, maps={**spec.maps, "cilium_shared": shared, "cilium_calls_65535": calls})
    with pytest.raises(MapIncompatible) as caught:
        load_maps(other, pins)
    assert set(caught.value.differences) == {
        MapDifference("cilium_shared", "type", MapType.HASH, MapType.LRU_HASH),
        MapDifference("cilium_shared", "value_size", 8, 16),
        MapDifference("cilium_shared", "flags", 1, 0),
        MapDifference("cilium_calls_65535", "max_entries", 8, 47),
    }
    assert not (pins / "cilium_call_policy").exists()
    assert "cilium_shared: value_size is 8, wanted 16" in str(caught.value)
    assert {p.name for p in pins.iterdir()} == {"cilium_shared", "cilium_calls_65535"}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("type", lambda m: replace(m, type=int(MapType.PERCPU_HASH))),
        ("key_size", lambda m: replace(m, key_size=32)),
        ("value_size", lambda m: replace(m, value_size=32)),
        ("max_entries", lambda m: replace(m, max_entries=32)),
        ("flags", lambda m: replace(m, flags=0)),
    ],
    ids=["type", "key_size", "value_size", "max_entries", "flags"],
)
def test_each_property_is_compared(spec: CollectionSpec, field: str, change: Callable[[MapSpec], MapSpec]) -> None:
    wanted = spec.maps["cilium_shared"]
    with load_open(wanted) as made:
        assert differences(wanted, made.info) == []
        assert [d.field for d in differences(change(wanted), made.info)] == [field]


@pytest.mark.parametrize(
    "wanted",
    [
        MapSpec("perf_all", MapType.PERF_EVENT_ARRAY, 4, 4, 0),
        MapSpec("perf_many", MapType.PERF_EVENT_ARRAY, 4, 4, 4096),
        MapSpec("perf_one", MapType.PERF_EVENT_ARRAY, 4, 4, 1),
        MapSpec("devmap", MapType.DEVMAP, 4, 4, 4),
        MapSpec("lru", MapType.LRU_HASH, 4, 4, 99, flags=2),
        MapSpec("lpm", MapType.LPM_TRIE, 12, 4, 10, flags=1),
        MapSpec("write_only", MapType.LPM_TRIE, 12, 4, 10, flags=1 | 1 << 4),
        MapSpec("read_only", MapType.HASH, 4, 4, 10, flags=1 << 3),
        MapSpec("ring", MapType.RINGBUF, 0, 0, 4096),
        MapSpec("outer", MapType.HASH_OF_MAPS, 4, 4, 4, inner=MapSpec("", MapType.ARRAY, 4, 4, 1)),
    ],
    ids=lambda m: m.name,
)
def test_what_the_kernel_changes_is_no_difference(wanted: MapSpec) -> None:
    with load_open(wanted) as made:
        assert differences(wanted, made.info) == []


def load_open(wanted: MapSpec) -> Map:
    """Create one map and nothing else; the caller closes it."""
    return load_maps(CollectionSpec("test", {wanted.name: wanted}, {}, {}, b"", ""), None).maps[wanted.name]


def test_maps_of_maps_are_filled(compile_c: Compile) -> None:
    spec = read_object(
        compile_c(r"""
        struct inner { __uint(type, 2); __type(key, __u32); __type(value, __u64); __uint(max_entries, 8); };
        struct inner first __section(".maps");
        struct { __uint(type, 12); __uint(max_entries, 4); __type(key, __u32); __array(values, struct inner); }
          outer __section(".maps") = { .values = { [2] = &first } };
        __section("tc") int cil_look(struct __sk_buff *skb) {
            __u32 slot = 2, key = 1;
            void *inner = map_lookup_elem(&outer, &slot);
            __u64 *value = inner ? map_lookup_elem(inner, &key) : 0;
            return value ? *value : -1;
        }
        """)
    ).spec
    with Collection.load(spec, pin_dir=None) as loaded:
        loaded.maps["first"].update(struct.pack("=I", 1), struct.pack("=Q", 314))
        assert bpf.prog_test_run(loaded.programs["cil_look"].fd, PACKET).retval == 314


def test_per_cpu_values_are_told_apart(spec: CollectionSpec) -> None:
    maps = load_maps(spec, None)
    scratch = maps.maps["scratch"]
    cpus = possible_cpus()
    scratch.update(bytes(4), b"".join(struct.pack("=II", cpu + 1, 0) for cpu in range(cpus)))
    assert scratch.lookup_percpu(bytes(4)) == [struct.pack("=I", cpu + 1) for cpu in range(cpus)]
    with pytest.raises(ValueError, match="do not fit"):
        scratch.update(bytes(4), bytes(4 if cpus > 1 else 5))
    maps.close()


def test_refusal_has_the_whole_log_and_leaves_nothing(refused: CollectionSpec, pins: Path) -> None:
    with pytest.raises(VerifierError) as caught:
        Collection.load(refused, pin_dir=pins, skip_contents=POLICY)
    error = caught.value
    assert (error.program, error.errno) == ("tail_bad", errno.EACCES)
    assert error.instructions == refused.programs["tail_bad"].instructions
    assert "invalid mem access 'map_value_or_null'" in error.log
    assert "invalid mem access 'map_value_or_null'" in str(error)
    assert "processed " in error.log
    assert "0: (" in error.log
    assert list(pins.iterdir()) == []


def test_failure_keeps_pins_that_were_there_or_lead_elsewhere(
    spec: CollectionSpec, refused: CollectionSpec, pins: Path
) -> None:
    only_shared = replace(spec, maps={"cilium_shared": spec.maps["cilium_shared"]}, programs={})
    load_maps(only_shared, pins).close()
    with pytest.raises(VerifierError):
        Collection.load(refused, pin_dir=pins, skip_contents=POLICY)
    assert [p.name for p in pins.iterdir()] == ["cilium_shared"]

    # Somebody replaces a pin of ours while we are at it: what is there now is not ours to remove.
    ours = load_maps(spec, pins)
    (pins / "cilium_calls_65535").unlink()
    theirs = load_maps(spec, pins)
    ours.remove_pins()
    ours.close()
    assert {p.name for p in pins.iterdir()} == {"cilium_shared", "cilium_calls_65535"}
    with open_pin(pins / "cilium_calls_65535") as left:
        assert left.info.id == theirs.maps["cilium_calls_65535"].info.id
    theirs.remove_pins()
    theirs.close()
    assert [p.name for p in pins.iterdir()] == ["cilium_shared"]


def test_pin_directory_must_be_a_bpffs(spec: CollectionSpec, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tc" / "globals"):
        with pytest.raises(PinPathError, match=f"{path} is not on a BPF file system"):
            Collection.load(spec, pin_dir=path)
    assert not (tmp_path / "tc").exists()


def test_racing_loaders_end_with_the_same_maps(spec: CollectionSpec, pins: Path) -> None:
    loaders = 4
    for _ in range(10):
        start = threading.Barrier(loaders)

        def load(start: threading.Barrier = start) -> tuple[dict[str, int], int]:
            start.wait()
            maps = load_maps(spec, pins)
            ids = {name: m.info.id for name, m in maps.maps.items() if name != "scratch"}
            made = len(maps.created_pins)
            maps.close()
            return ids, made

        with ThreadPoolExecutor(loaders) as pool:
            done = [f.result() for f in [pool.submit(load) for _ in range(loaders)]]
        assert all(ids == done[0][0] for ids, _ in done)
        assert sum(made for _, made in done) == 3
        for pin in pins.iterdir():
            with open_pin(pin) as there:
                assert there.info.id == done[0][0][pin.name]
            pin.unlink()


def test_pin_that_appears_with_another_shape_is_incompatible(spec: CollectionSpec, pins: Path) -> None:
    """The map is pinned by somebody else between our look and our own pin."""
    wanted = spec.maps["cilium_shared"]
    other = replace(spec, maps={"cilium_shared": replace(wanted, value_size=16)}, programs={})
    ours = open_maps(spec, pins)
    load_maps(other, pins).close()
    with pytest.raises(MapIncompatible, match="value_size is 16, wanted 8"):
        ours.pin_created()
    ours.discard()
    assert [p.name for p in pins.iterdir()] == ["cilium_shared"]


def test_programs_load_in_several_threads(spec: CollectionSpec, executor: Executor) -> None:
    intervals: list[Interval] = []
    order = VerifyTimes()
    with Collection.load(
        spec, pin_dir=None, executor=executor, order=order, skip_contents=POLICY, on_interval=intervals.append
    ) as loaded:
        assert list(loaded.programs) == list(spec.programs)
    assert set(order.seconds) == set(spec.programs)
    assert all(i.start_ns <= i.end_ns and i.tid != threading.get_native_id() for i in intervals)


def test_a_busy_executor_delays_nothing(spec: CollectionSpec) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(release.wait)
        with Collection.load(spec, pin_dir=None, executor=pool, skip_contents=POLICY) as loaded:
            assert len(loaded.programs) == 3
        release.set()


def test_programs_load_without_the_threads_that_cannot_be_started(
    spec: CollectionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with VerifierThreads() as pool:
        monkeypatch.setattr(threading.Thread, "start", fail)
        with Collection.load(spec, pin_dir=None, executor=pool, skip_contents=POLICY) as loaded:
            assert loaded.programs.keys() == spec.programs.keys()


def test_loading_inside_the_executor_does_not_block(spec: CollectionSpec) -> None:
    def load(pool: ThreadPoolExecutor) -> int:
        with Collection.load(spec, pin_dir=None, executor=pool, skip_contents=POLICY) as loaded:
            return len(loaded.programs)

    with ThreadPoolExecutor(2) as pool:
        assert [f.result(timeout=30) for f in [pool.submit(load, pool) for _ in range(6)]] == [3] * 6


def test_refusal_in_a_thread_closes_what_the_others_loaded(refused: CollectionSpec, executor: Executor) -> None:
    maps = load_maps(refused, None)
    with pytest.raises(VerifierError, match="tail_bad"):
        load_programs(refused, maps.maps, executor=executor)
    maps.close()


def test_longest_first(spec: CollectionSpec) -> None:
    programs = spec.programs
    by_size = sorted(programs.values(), key=lambda p: -p.instructions)
    assert longest_first(programs.values(), VerifyTimes()) == by_size
    known = VerifyTimes({"handle_policy": 1.0, "tail_seven": 0.5, "cil_from_container": 0.7})
    assert [p.name for p in longest_first(programs.values(), known)] == [
        "handle_policy",
        "cil_from_container",
        "tail_seven",
    ]


def test_steps_can_be_taken_one_by_one(spec: CollectionSpec, pins: Path) -> None:
    maps = load_maps(spec, pins)
    collection = Collection(spec, maps, {})
    collection.programs = load_programs(spec, maps.maps)
    fill_program_arrays(spec, maps.maps, collection.programs, skip_contents=POLICY)
    assert bpf.prog_test_run(collection.programs["cil_from_container"].fd, PACKET).retval == 42
    collection.remove_pins()
    collection.close()
    collection.close()
    assert list(pins.iterdir()) == []


def test_cache_gives_the_same_descriptor_until_the_pin_changes(
    spec: CollectionSpec, pins: Path, cache: MapCache
) -> None:
    load_maps(spec, pins).close()
    first = load_maps(spec, pins, cache=cache)
    second = load_maps(spec, pins, cache=cache)
    shared = first.maps["cilium_shared"]
    assert second.maps["cilium_shared"].fd == shared.fd
    # a program array is never held: its last descriptor decides when the kernel empties it
    assert second.maps["cilium_calls_65535"].fd != first.maps["cilium_calls_65535"].fd
    second.close()

    (pins / "cilium_shared").unlink()
    third = load_maps(spec, pins, cache=cache)
    assert third.maps["cilium_shared"].info.id != shared.info.id
    assert shared.lookup(KEY5) is None  # still open: the first load has not ended
    first.close()
    with pytest.raises(BpfError) as caught:
        bpf.map_fd_by_id(shared.info.id)
    assert caught.value.errno == errno.ENOENT
    third.close()


def test_cache_lends_a_map_for_a_block(spec: CollectionSpec, pins: Path, cache: MapCache) -> None:
    load_maps(spec, pins).close()
    with cache.borrow(pins / "cilium_shared") as one, cache.borrow(pins / "cilium_shared") as two:
        assert one.fd == two.fd
    with pytest.raises(FileNotFoundError), cache.borrow(pins / "missing"):
        pass


def test_cache_describes_what_is_pinned_now(spec: CollectionSpec, pins: Path, cache: MapCache) -> None:
    load_maps(spec, pins).close()
    for name in ("cilium_shared", "cilium_calls_65535"):
        path = pins / name
        before = cache.info(str(path))
        assert before is not None
        assert cache.info(str(path)) == before
        path.unlink()
        assert cache.info(str(path)) is None
        load_maps(spec, pins).close()
        after = cache.info(str(path))
        with open_pin(path) as pinned:
            assert after == pinned.info
        assert after.id != before.id


def test_closed_cache_leaves_what_is_in_use(spec: CollectionSpec, pins: Path, cache: MapCache) -> None:
    load_maps(spec, pins).close()
    held = load_maps(spec, pins, cache=cache)
    cache.close()
    assert held.maps["cilium_shared"].lookup(KEY5) is None
    held.close()


def test_closed_program_array_is_emptied_only_without_its_pin(spec: CollectionSpec, pins: Path) -> None:
    """What the rule about program arrays in the cache rests on: a pin is a user reference."""
    with Collection.load(spec, pin_dir=pins, skip_contents=POLICY) as loaded:
        entry = bpf.prog_fd_by_id(loaded.programs["cil_from_container"].id)
    with open_pin(pins / "cilium_calls_65535") as calls:
        assert len(list(calls.items())) == 1
    (pins / "cilium_calls_65535").unlink()
    deadline = time.monotonic() + 10
    while bpf.prog_test_run(entry, PACKET).retval != 1:  # until the tail call misses
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.close(entry)
