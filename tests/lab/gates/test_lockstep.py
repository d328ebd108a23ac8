"""Lockstep: the calls of two processes come in the order that was chosen, and nobody waits for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.gates.call import Call
from lab.gates.forked import gated
from lab.gates.lockstep import QUIET, InTurns, Lockstep, Order, Within
from lab.gates.supervisor import Answer
from lab.system.forkpool import fork_map


def at_once(directory: Path, order: Order, *do: Callable[[], object]) -> list[str]:
    """Do two things at once, each in a process; return the calls in the order in which they were let on."""
    lockstep, seen = Lockstep(order), list[str]()

    def run(who: int) -> None:
        def decide(call: Call) -> Answer:
            answer = lockstep.decide(who)(call)
            seen.append(os.path.basename(call.subject))
            return answer

        with gated(decide, directories=[directory], pins=directory) as enter:

            @contextmanager
            def setup(cancel: threading.Event) -> Iterator[Callable[[None], object]]:
                enter()
                yield lambda _: do[who]()

            fork_map(setup, [None], workers=1)
        lockstep.end(who)

    threads = [threading.Thread(target=run, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def make(directory: Path, name: str, count: int) -> Callable[[], None]:
    def do() -> None:
        for number in range(count):
            (directory / f"{name}{number}").mkdir()

    return do


def test_calls_in_turns_alternate(tmp_path: Path) -> None:
    """When one has ended the other goes on alone."""
    seen = at_once(tmp_path, InTurns(), make(tmp_path, "a", 3), make(tmp_path, "b", 5))
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2", "b3", "b4"]


def test_one_process_ends_within_a_call_of_the_other(tmp_path: Path) -> None:
    met: list[list[str]] = []
    order = Within(
        lambda call: call.subject.endswith("a2"), lambda: met.append(sorted(path.name for path in tmp_path.iterdir()))
    )
    seen = at_once(tmp_path, order, make(tmp_path, "a", 4), make(tmp_path, "b", 2))
    assert seen == ["a0", "a1", "b0", "b1", "a2", "a3"]
    assert met == [["a0", "a1", "b0", "b1"]]
    assert order.reached


def test_without_the_call_one_process_follows_the_other(tmp_path: Path) -> None:
    order = Within(lambda call: False, lambda: None)
    seen = at_once(tmp_path, order, make(tmp_path, "a", 2), make(tmp_path, "b", 2))
    assert seen == ["a0", "a1", "b0", "b1"]
    assert not order.reached


def test_one_that_waits_for_a_lock_of_the_other(tmp_path: Path) -> None:
    """It can do nothing until the other goes on, which is let on then."""
    lock = tmp_path.parent / "lock"
    lock.touch()

    def locked(name: str) -> Callable[[], None]:
        def do() -> None:
            make(tmp_path, f"{name}-free", 1)()
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                make(tmp_path, f"{name}-locked", 2)()

        return do

    order = Within(lambda call: call.subject.endswith("a-locked1"), lambda: None)
    seen = at_once(tmp_path, order, locked("a"), locked("b"))
    assert seen == ["a-free0", "a-locked0", "b-free0", "a-locked1", "b-locked0", "b-locked1"]


def test_one_that_computes_does_not_wait(tmp_path: Path) -> None:
    """It makes no call for a time because it has other things to do, or no CPU."""

    def compute() -> None:
        make(tmp_path, "b", 1)()
        begin = time.process_time()
        while time.process_time() - begin < 4 * QUIET:
            pass
        make(tmp_path, "later", 1)()

    seen = at_once(tmp_path, InTurns(), make(tmp_path, "a", 3), compute)
    assert seen == ["a0", "b0", "a1", "later0", "a2"]


def test_one_that_is_in_a_call_does_not_wait(tmp_path: Path) -> None:
    """What was let on takes its time, and is not over yet."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        os.close(os.open(pipe, os.O_WRONLY))
        make(tmp_path, "b", 1)()

    reader = threading.Timer(4 * QUIET, lambda: os.close(os.open(pipe, os.O_RDONLY)))
    reader.start()
    seen = at_once(tmp_path, InTurns(), make(tmp_path, "a", 3), write)
    reader.join()
    assert seen == ["a0", "pipe", "a1", "b0", "a2"]


def test_the_end_of_this_process_is_the_end_of_both(tmp_path: Path) -> None:
    """Neither keeps the other's listener open: each is let go, with calls that fail."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        ready = threading.Barrier(3)

        def run() -> None:
            def decide(call: Call) -> Answer:
                ready.wait()
                threading.Event().wait()
                return None

            with gated(decide, directories=[tmp_path], pins=tmp_path) as enter:
                child = os.fork()
                if child == 0:
                    enter()
                    try:
                        (tmp_path / "x").mkdir()
                    except OSError as error:
                        os.write(writer, b"!" if error.errno == errno.ENOSYS else b"?")
                    os._exit(0)
                os.waitpid(child, 0)

        for _ in range(2):
            threading.Thread(target=run, daemon=True).start()
        ready.wait()
        os._exit(0)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0
    failed = b""
    while data := os.read(reader, 8):
        failed += data
    os.close(reader)
    assert failed == b"!!"
