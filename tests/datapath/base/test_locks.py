"""locks.py between threads and processes: who is first, who waits for whom, and what a killed process leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from datapath.base.locks import FairLock
from datapath.errors import Cancelled

ROOT = Path(__file__).parents[3]
PROCESS = """
import sys, threading, time
from pathlib import Path
from datapath.base.locks import FairLock
print("started", flush=True)
FairLock(Path(sys.argv[1]), threading.Event()).acquire(exclusive=sys.argv[2] == "alone")
print("acquired", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "maps.lock"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def lock(path: Path) -> FairLock:
    return FairLock(path, threading.Event())


def held(path: Path, *, exclusive: bool) -> FairLock:
    made = lock(path)
    made.acquire(exclusive=exclusive)
    return made


def is_free(path: Path, *, exclusive: bool) -> bool:
    """Tell whether the lock can be had at once."""
    cancelled = threading.Event()
    cancelled.set()
    with closing(FairLock(path, cancelled)) as probe:
        try:
            probe.acquire(exclusive=exclusive)
        except Cancelled:
            return False
    return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def process(path: Path, mode: str, *, says: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that acquires the lock, until it has said this word; it is killed at the end."""
    argv = [sys.executable, "-c", PROCESS, str(path), mode]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            while running.stdout.readline().strip() != says:
                assert running.poll() is None
            yield running
        finally:
            running.kill()


def test_many_share_and_one_has_it_alone(path: Path) -> None:
    with closing(held(path, exclusive=False)), closing(held(path, exclusive=False)):
        assert is_free(path, exclusive=False)
        assert not is_free(path, exclusive=True)
    with closing(held(path, exclusive=True)) as alone:
        alone.acquire(exclusive=False)
        assert alone.exclusive, "what is held alone stays so"
        assert not is_free(path, exclusive=False)
    assert is_free(path, exclusive=True)


def test_a_reader_that_comes_later_waits_behind_a_writer(path: Path, pool: ThreadPoolExecutor) -> None:
    order: list[str] = []

    def enter(name: str, exclusive: bool) -> None:
        with closing(held(path, exclusive=exclusive)):
            order.append(name)

    first = held(path, exclusive=False)
    done: list[Future[None]] = [pool.submit(enter, "writer", True)]
    until(lambda: not is_free(path, exclusive=False))
    done.append(pool.submit(enter, "reader", False))
    time.sleep(0.05)
    assert order == []
    first.close()
    for each in done:
        each.result(10)
    assert order == ["writer", "reader"]


def test_a_writer_gets_through_readers_without_a_gap(path: Path, pool: ThreadPoolExecutor) -> None:
    """Eight readers come and go so that somebody always has the lock."""
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with closing(held(path, exclusive=False)):
                time.sleep(0.02)

    with closing(lock(path)) as writer:
        readers = [pool.submit(read) for _ in range(8)]
        try:
            time.sleep(0.05)
            gave_up = threading.Timer(5, writer._queue._cancel.set)
            gave_up.start()
            writer.acquire(exclusive=True)
            gave_up.cancel()
        finally:
            stop.set()
    for each in readers:
        each.result(10)


def test_two_readers_that_want_it_alone_do_not_wait_for_each_other(path: Path, pool: ThreadPoolExecutor) -> None:
    both = [held(path, exclusive=False) for _ in range(2)]

    def upgrade(one: FairLock) -> bool:
        with closing(one):
            one.acquire(exclusive=True)
            return one.exclusive

    assert list(pool.map(upgrade, both, timeout=10)) == [True, True]


def test_of_several_readers_the_last_one_can_have_it_alone(path: Path) -> None:
    with closing(held(path, exclusive=False)) as one, closing(held(path, exclusive=False)) as two:
        assert not one.try_exclusive()
        assert two.try_exclusive()
        assert not is_free(path, exclusive=False)


@pytest.mark.parametrize("mode", ["alone", "shared"])
def test_a_killed_holder_leaves_nothing(path: Path, mode: str) -> None:
    with process(path, mode, says="acquired") as running:
        assert not is_free(path, exclusive=True)
        running.send_signal(signal.SIGKILL)
        running.wait(10)
        assert is_free(path, exclusive=True)


def test_a_killed_waiter_leaves_the_queue(path: Path) -> None:
    with closing(held(path, exclusive=False)), process(path, "alone", says="started") as running:
        until(lambda: not is_free(path, exclusive=False))
        running.send_signal(signal.SIGKILL)
        running.wait(10)
        assert is_free(path, exclusive=False)


@pytest.mark.parametrize("where", ["behind a reader", "behind a writer in the queue"])
def test_a_cancelled_waiter_leaves_the_queue(path: Path, pool: ThreadPoolExecutor, where: str) -> None:
    cancel = threading.Event()
    first = held(path, exclusive=False)
    writers = [pool.submit(held, path, exclusive=True)] if "queue" in where else []
    if writers:
        until(lambda: not is_free(path, exclusive=False))
    with closing(FairLock(path, cancel)) as cancelled:
        waiting = pool.submit(cancelled.acquire, exclusive=True)
        time.sleep(0.05)
        cancel.set()
        with pytest.raises(Cancelled, match=r"cancelled while waiting for .*maps\.lock"):
            waiting.result(10)
    first.close()
    for writer in writers:
        writer.result(10).close()
    assert is_free(path, exclusive=True)
