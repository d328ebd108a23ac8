"""Threads that help to verify programs: one per CPU, each bound to its own.

A helper has to begin at once: all programs of an object may be verified in less time than the scheduler takes to move a
woken thread away from its waker's CPU, and the waker does not leave that CPU, it is in the verifier. Measured on two
CPUs that share no cache: a thread of concurrent.futures' own pool began 1.4 ms late, when everything was nearly done.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeAlias, TypeVar

from datapath.errors import ReloadlabError
from datapath.kernel.libc import function

P = ParamSpec("P")
T = TypeVar("T")

_sched_getcpu = function("sched_getcpu")


class NoThread(ReloadlabError):
    """The kernel has no room for another thread: RLIMIT_NPROC, or pids.max of a control group."""

    def __init__(self, cpu: int) -> None:
        super().__init__(f"no thread can be started to verify on CPU {cpu}")


_Jobs: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"


@dataclass(slots=True)
class _Worker:
    """A thread, its CPU, and what it still has to do; None in the queue ends it."""

    cpu: int
    jobs: _Jobs = field(default_factory=queue.SimpleQueue)
    pending: int = 0
    thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, jobs: _Jobs) -> None:
        os.sched_setaffinity(0, {self.cpu})
        while (job := jobs.get()) is not None:
            self._do(*job)
            del job  # a thread that waits must not keep the last result alive

    def _do(self, future: Future[Any], call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            self._count(-1)
            return
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed over to who waits for the future
            self._count(-1)
            future.set_exception(error)
        else:
            # First the count: whoever waits may submit the next job at once, and looks for an idle thread.
            self._count(-1)
            future.set_result(result)

    def _count(self, change: int) -> None:
        with self._lock:
            self.pending += change

    def give(self, job: tuple[Future[Any], Callable[[], Any]]) -> None:
        """Add a job; the first one starts the thread. NoThread if that fails: nothing is added."""
        if self.thread is None:
            thread = threading.Thread(target=self.run, args=(self.jobs,), name=f"verifier-{self.cpu}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise NoThread(self.cpu) from error
            self.thread = thread
        self._count(1)
        self.jobs.put(job)


class VerifierThreads(Executor):
    """An executor whose jobs run on another CPU than the one that submits them, as far as there is another."""

    def __init__(self, cpus: Iterable[int] | None = None) -> None:
        """Use the given CPUs, or all that this process may use. Threads are started at the first submission."""
        allowed = os.sched_getaffinity(0)
        self._workers = [_Worker(cpu) for cpu in sorted(allowed.intersection(cpus) if cpus is not None else allowed)]
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Give `fn` to the thread with the least to do, and of equals to one that is bound to another CPU than this.

        NoThread if that is yet to be started, and cannot be.
        """
        future: Future[T] = Future()
        here = _sched_getcpu()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads have been shut down")
            worker = min(self._workers, key=lambda w: (w.pending, w.cpu == here))
            worker.give((future, lambda: fn(*args, **kwargs)))
        return future

    def stop_idle(self) -> None:
        """End the threads that have nothing to do, before a fork(2) for example; a submission starts them again."""
        with self._lock:
            idle = [worker for worker in self._workers if worker.thread is not None and not worker.pending]
            threads = [worker.thread for worker in idle if worker.thread is not None]
            for worker in idle:
                worker.jobs.put(None)
                # The next thread has a queue of its own: it must not take the end of this one.
                worker.thread, worker.jobs = None, queue.SimpleQueue()
        for thread in threads:
            thread.join()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when they have done what was submitted (or, with `cancel_futures`, what they have begun)."""
        with self._lock:
            first, self._closed = not self._closed, True
        for worker in self._workers if first else ():
            while cancel_futures:
                try:
                    job = worker.jobs.get_nowait()
                except queue.Empty:
                    break
                if job is not None:
                    job[0].cancel()
            worker.jobs.put(None)
        for worker in self._workers:
            if wait and worker.thread is not None:
                worker.thread.join()
