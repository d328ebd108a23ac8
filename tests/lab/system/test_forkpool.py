"""Forked workers: every task once, whatever becomes of a process; errors, cancellation and death in between."""

from __future__ import annotations

import gc
import json
import os
import pickle
import pkgutil
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import pytest

import datapath
import lab
from datapath.errors import Cancelled, CompileError, MapDifference, MapIncompatible, ReloadlabError, VerifierError
from datapath.reload.step import Step
from datapath.reload.transaction import RollbackFailed
from datapath.reload.workspace import Workspace
from lab.agent.agent import Failure
from lab.system.forkpool import Setup, WorkerDied, fork_map
from lab.system.signals import SignalEvent

T = TypeVar("T")
R = TypeVar("R")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    fds = set(os.listdir("/proc/self/fd"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert set(os.listdir("/proc/self/fd")) == fds
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text() == ""


def each(do: Callable[[T], R]) -> Setup[T, R]:
    @contextmanager
    def setup(_: threading.Event) -> Iterator[Callable[[T], R]]:
        yield do

    return setup


def waiting(seconds: float = 20) -> Setup[int, str]:
    """Tasks that last until they are cancelled."""

    @contextmanager
    def setup(cancel: threading.Event) -> Iterator[Callable[[int], str]]:
        yield lambda number: f"cancelled {number}" if cancel.wait(seconds) else "not cancelled"

    return setup


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_task_is_done_once_and_in_other_processes() -> None:
    results = fork_map(each(lambda task: (task, os.getpid())), range(2000), workers=4)
    pairs = [result for result in results if isinstance(result, tuple)]
    assert [task for task, _ in pairs] == list(range(2000))
    assert os.getpid() not in {pid for _, pid in pairs}


def test_tasks_go_to_who_is_free() -> None:
    read, write = os.pipe()

    def do(task: int) -> int:
        if task == 0:
            os.read(read, 1)  # until all the others are done, which takes another process
        if task == 9:
            os.write(write, b"x")
        return os.getpid()

    results = fork_map(each(do), range(10), workers=2)
    os.close(read)
    os.close(write)
    assert results[0] not in results[1:]
    assert len(set(results[1:])) == 1


def test_no_task_and_more_workers_than_tasks() -> None:
    assert fork_map(each(str), [], workers=4) == []
    assert fork_map(each(str), [1, 2], workers=8) == ["1", "2"]


def test_results_of_any_size() -> None:
    assert fork_map(each(lambda size: b"x" * size), [0, 1 << 24], workers=2) == [b"", b"x" * (1 << 24)]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_loses_its_task_only(workers: int) -> None:
    def do(task: int) -> int:
        if task % 5 == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    results = fork_map(each(do), range(12), workers=workers)
    assert [r for r in results if not isinstance(r, WorkerDied)] == [t for t in range(12) if t % 5 != 3]
    for task in (3, 8):
        died = results[task]
        assert isinstance(died, WorkerDied)
        assert str(died).endswith("was killed by SIGKILL before it was done")
        assert died.killed


def test_a_worker_that_exits_is_named_with_its_status() -> None:
    results = fork_map(each(lambda task: os._exit(7) if task else "done"), range(2), workers=1)
    assert results[0] == "done"
    assert isinstance(results[1], WorkerDied)
    assert results[1].how == "exited with status 7"
    assert not results[1].killed


def test_a_worker_that_dies_before_its_first_task_is_not_replaced_for_ever() -> None:
    @contextmanager
    def setup(_: threading.Event) -> Iterator[Callable[[int], int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield abs

    assert [type(result) for result in fork_map(setup, range(3), workers=2)] == [WorkerDied] * 3


def test_an_exception_is_raised_with_where_it_came_from() -> None:
    def fail(task: int) -> int:
        if task == 1:
            raise ZeroDivisionError("one")
        return task

    with pytest.raises(ZeroDivisionError) as caught:
        fork_map(each(fail), range(3), workers=2)
    assert str(caught.value) == "one"
    assert "in worker process" in caught.value.__notes__[0]
    assert "in fail" in caught.value.__notes__[0]


def test_an_exception_of_the_setup_is_raised() -> None:
    @contextmanager
    def setup(_: threading.Event) -> Iterator[Callable[[int], int]]:
        raise PermissionError(1, "no")
        yield abs

    with pytest.raises(PermissionError) as caught:
        fork_map(setup, range(3), workers=2)
    assert caught.value.errno == 1


def test_an_exception_that_cannot_be_pickled_keeps_its_words() -> None:
    class Local(Exception):
        pass

    def fail(_: int) -> int:
        raise Local("mine")

    with pytest.raises(RuntimeError, match="Local: mine"):
        fork_map(each(fail), range(1), workers=1)


def test_an_exception_stops_the_others() -> None:
    @contextmanager
    def setup(cancel: threading.Event) -> Iterator[Callable[[int], bool]]:
        def do(task: int) -> bool:
            if task == 1:
                raise ValueError("stop")
            return cancel.wait(20)

        yield do

    begun = time.monotonic()
    with pytest.raises(ValueError, match="stop"):
        fork_map(setup, range(5), workers=2)
    assert time.monotonic() - begun < 10


def test_cancel_reaches_the_tasks_and_keeps_others_from_beginning() -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    results = fork_map(waiting(), range(5), workers=2, cancel=cancel)
    timer.join()
    assert results[:2] == ["cancelled 0", "cancelled 1"]
    assert [type(result) for result in results[2:]] == [Cancelled] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_worker_cancels_what_it_does(number: int) -> None:
    @contextmanager
    def setup(cancel: threading.Event) -> Iterator[Callable[[int], object]]:
        def do(task: int) -> object:
            if task == 0:
                os.kill(os.getpid(), number)
                return cancel.is_set()
            return task

        yield do

    assert fork_map(setup, range(50), workers=2) == [True, *range(1, 50)]


def test_an_interrupt_cancels_waits_and_goes_on() -> None:
    read, write = os.pipe()

    @contextmanager
    def setup(cancel: threading.Event) -> Iterator[Callable[[int], None]]:
        def do(_: int) -> None:
            os.write(write, b"begun ")
            cancel.wait(20)
            os.write(write, b"undone ")

        yield do

    # What Ctrl-C does to the caller; the processes get their signal from it.
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        os.read(read, 6)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fork_map(setup, range(4), workers=1)
    thread.join()
    os.close(write)
    assert os.read(read, 100) == b"undone "
    os.close(read)


def test_who_is_interrupted_twice_kills() -> None:
    read, write = os.pipe()

    @contextmanager
    def stubborn(cancel: threading.Event) -> Iterator[Callable[[int], None]]:
        def do(_: int) -> None:
            os.write(write, b"x")
            cancel.wait()
            os.write(write, b"x")
            until(lambda: False, 60)

        yield do

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        for _ in range(2):
            os.read(read, 1)
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fork_map(stubborn, range(1), workers=1)
    assert time.monotonic() - begun < 30
    thread.join()
    os.close(read)
    os.close(write)


ORPHANS = """
import os, sys, threading, time
from contextlib import contextmanager
from lab.system.forkpool import fork_map

@contextmanager
def setup(cancel):
    def do(task):
        os.write(1, b"%d\\n" % os.getpid())
        cancel.wait(10)
        os.write(2, b"undone ")
    yield do

if sys.argv[1] == "main":
    fork_map(setup, range(100), workers=2)
else:
    thread = threading.Thread(target=lambda: fork_map(setup, range(100), workers=2))
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_workers_undo_and_leave_when_their_parent_is_killed(thread: str) -> None:
    argv = [sys.executable, "-c", ORPHANS, thread]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        workers = [os.pidfd_open(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
        for worker in workers:
            assert select.select([worker], [], [], 10)[0], "a worker has outlived its parent"
            os.close(worker)
        assert parent.stderr.read() == "undone undone "
        assert parent.stdout.read() == "", "a further task was begun"


def test_a_fork_beside_other_threads_warns_nobody() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fork_map(each(abs), [1, 2], workers=2) == [1, 2]
    stop.set()
    thread.join()


def test_an_event_for_signal_handlers() -> None:
    event = SignalEvent()
    assert not event.wait(0.01)
    assert not event.is_set()
    before = signal.signal(signal.SIGALRM, lambda *_: event.set())
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    assert event.wait(10)
    signal.signal(signal.SIGALRM, before)
    event.clear()
    assert not event.is_set()


# Errors on their way from a process to another


def subclasses(kind: type[ReloadlabError]) -> Iterator[type[ReloadlabError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


for package in (datapath, lab):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            import_module(found.name)

TREE = sorted({kind for kind in subclasses(ReloadlabError) if kind.__module__.split(".")[0] != "tests"}, key=str)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_comes_through_with_words_and_attributes(kind: type[ReloadlabError]) -> None:
    # Not by the constructor: what counts is that none of them has to be called.
    error = kind.__new__(kind, "pod-1: no")
    vars(error).update(evidence=("a", 1), path=Path("/x"))
    error.add_note("note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error) == {"evidence": ("a", 1), "path": Path("/x"), "__notes__": ["note"]}


class Undoable(Step):
    name = "undoable"

    def describe(self) -> str:
        return "nothing"

    def apply(self, work: Workspace) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    "error",
    [
        CompileError("bpf_lxc.o", ["clang"], "x.c:1: error: no"),
        MapIncompatible([MapDifference("cilium_lxc", "key size", 4, 8)]),
        VerifierError("cil_from_container", 13, 12, "R1 bad\nprocessed 1 insns"),
        RollbackFailed(OSError(5, "cause"), [(Undoable("lxc1"), OSError(2, "gone", "/sys/x"))]),
        WorkerDied(7, "was killed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_through_the_workers(error: ReloadlabError) -> None:
    (failure,) = fork_map(each(lambda subject: Failure(subject, error)), ["pod-1"], workers=1)
    assert isinstance(failure, Failure)
    assert (failure.subject, type(failure.error), str(failure.error)) == ("pod-1", type(error), str(error))
    assert json.dumps(vars(failure.error), default=repr) == json.dumps(vars(error), default=repr)


def test_evidence_that_cannot_be_pickled_becomes_its_text() -> None:
    error = ReloadlabError("words")
    vars(error).update(lock=threading.Lock(), number=1)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "words"
    assert copy.number == 1
    assert copy.lock.startswith("<unlocked _thread.lock")


def test_the_collector_of_the_caller_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    fork_map(each(abs), [1], workers=1)
    assert gc.get_freeze_count() == frozen
