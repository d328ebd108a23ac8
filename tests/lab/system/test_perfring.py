from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from datapath.build.compile import compile_source
from datapath.kernel.bpf import prog_test_run
from datapath.load.collection import Collection
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec
from lab.system.perfring import PerfReader

pytestmark = pytest.mark.privileged

COUNTING = """
typedef unsigned int __u32;
typedef unsigned long long __u64;
struct __sk_buff;
#define __section(name) __attribute__((section(name), used))
#define __uint(name, value) int (*name)[value]
struct { __uint(type, 4); __uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 64); } events
    __section(".maps");
static long (*perf_event_output)(void *, void *, __u64, void *, __u64) = (void *)25;
volatile __u64 count;
__section("tc") int cil_count(struct __sk_buff *skb) {
    __u64 message[16] = { ++count };

    return perf_event_output(skb, &events, 0xffffffffULL, message, sizeof(message));
}
char licence[] __section("license") = "GPL";
"""
"""A program that writes a message with a number; each is one more than the last."""

RUNS = 10_000
PAUSES = 10
"""A reader that is never late loses nothing: each time that it has read a multiple of so many, it comes too late."""


@contextmanager
def written_all_the_time(program: int, cpu: int) -> Iterator[None]:
    """Have the program run on a CPU without a pause."""
    over = threading.Event()

    def run() -> None:
        os.sched_setaffinity(0, {cpu})
        while not over.is_set():
            prog_test_run(program, bytes(64), repeat=RUNS)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def spec(tmp_path: Path) -> CollectionSpec:
    source = tmp_path / "count.c"
    source.write_text(COUNTING)
    return read_object(compile_source(source, tmp_path / "count.o")).spec


@pytest.mark.parametrize("wakes", [True, False], ids=["woken", "not-woken"])
def test_a_ring_that_runs_over_loses_messages_and_no_others(spec: CollectionSpec, wakes: bool) -> None:
    """The kernel overwrites what is not yet read if it sees half a number of how far its reader is."""
    numbers: list[int] = []
    with (
        Collection.load(spec, pin_dir=None) as loaded,
        PerfReader(loaded.maps["events"], pages=1, wakes=wakes) as reader,
    ):
        with written_all_the_time(loaded.programs["cil_count"].fd, min(os.sched_getaffinity(0))):
            while len(numbers) < 5_000:
                if len(numbers) % PAUSES == 0:
                    time.sleep(0.001)  # A thousand messages: the ring holds 26.
                numbers += [struct.unpack_from("<Q", sample.data)[0] for sample in reader.read(0.0) if sample.data]
        assert reader.lost > 0
    assert all(number < later for number, later in pairwise(numbers))


def test_a_message_wakes_no_reader_that_comes_by_itself(spec: CollectionSpec) -> None:
    with (
        Collection.load(spec, pin_dir=None) as loaded,
        PerfReader(loaded.maps["events"], wakes=False) as reader,
    ):
        prog_test_run(loaded.programs["cil_count"].fd, bytes(64))
        began = time.monotonic()
        found = reader.read(0.2)
        assert time.monotonic() - began > 0.19
        assert len(found) == 1
