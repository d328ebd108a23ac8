"""Work shared by forked processes: an interpreter lock for each, and all that the caller has read and opened inherited.

A reload is a hundred short system calls. Each lets go of the interpreter lock and has to get it back: threads that
reload side by side mostly wait for each other (measured: 4 threads do two thirds of what one does alone).

A process takes the number of its next task from an unlinked file whose offset all of them share (read(2) moves it
atomically), and appends what it begins and what came of it to a memory file of its own, which the caller reads when the
process has ended: meanwhile the caller has nothing to do, and a process that is killed loses only the task it was at.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import IO, Generic, NoReturn, TypeVar

from datapath.errors import Cancelled, ReloadlabError
from lab.system.process import Process, end_with_parent, fork
from lab.system.signals import SIGNALS, SignalEvent

T = TypeVar("T")
R = TypeVar("R")

Setup = Callable[[threading.Event], AbstractContextManager[Callable[[T], R]]]
"""Called in each process with the event that cancels its work; the value of the context manager does one task."""

POLL_MS = 20
"""How often the caller looks whether it has been cancelled."""

_NUMBER = struct.Struct("=I")
_FRAME = struct.Struct("=BIQ")  # kind, number of the task, bytes that follow
_BEGUN, _DONE, _RAISED = range(3)
_NO_TASK = 0xFFFFFFFF


class WorkerDied(ReloadlabError):
    """A worker process that ended by itself, or was killed: `how`. What it was doing may be half done."""

    def __init__(self, pid: int, how: str) -> None:
        super().__init__(f"worker process {pid} {how} before it was done")
        self.pid = pid
        self.how = how

    @property
    def killed(self) -> bool:
        """Whether it was by SIGKILL."""
        return self.how == _ended_by(signal.SIGKILL)


def fork_map(
    setup: Setup[T, R], tasks: Sequence[T], *, workers: int, cancel: threading.Event | None = None
) -> list[R | ReloadlabError]:
    """Do the tasks in `workers` forked processes; return what became of each, in their order.

    A task whose process died has a WorkerDied instead of its result, one that was not begun before `cancel` was set a
    Cancelled. An exception of a task or of `setup` ends all work and is raised here, its traceback in a note. SIGINT,
    SIGTERM or SIGHUP to a process, or the death of the calling thread, set the event that `setup` got.

    The processes are forked from the calling thread. No other thread may hold a lock that tasks take.
    """
    return _Pool(setup, tasks, cancel).run(workers)


def _ended_by(number: int) -> str:
    return f"was killed by {signal.Signals(number).name}"


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process of the pool, and the file that it writes to."""

    process: Process
    results: int

    def reap(self) -> str:
        """Wait for the end of the process; return how it ended, "" if as it should."""
        status = self.process.wait()
        if status >= 0:
            return f"exited with status {status}" if status else ""
        return _ended_by(-status)

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield what the process wrote; a frame that it did not live to finish is left out."""
        with open(self.results, "rb", closefd=False) as file:
            file.seek(0)
            while len(head := file.read(_FRAME.size)) == _FRAME.size:
                kind, number, length = _FRAME.unpack(head)
                body = file.read(length)
                if len(body) < length:
                    return
                yield kind, number, body

    def close(self) -> None:
        self.process.close()
        os.close(self.results)


class _Pool(Generic[T, R]):
    """The caller's side: the workers that live, and what those that have ended left."""

    def __init__(self, setup: Setup[T, R], tasks: Sequence[T], cancel: threading.Event | None) -> None:
        self._setup = setup
        self._tasks = tasks
        self._cancel = cancel
        self._workers: dict[int, _Worker] = {}
        self._results: dict[int, R | ReloadlabError] = {}
        self._raised: BaseException | None = None
        self._death: WorkerDied | None = None
        self._stopped = False

    def run(self, workers: int) -> list[R | ReloadlabError]:
        # A file on a disk, not memfd_create: the kernel locks the offset of files that were opened by a path only.
        with tempfile.TemporaryFile(buffering=0) as queue:
            queue.write(b"".join(map(_NUMBER.pack, range(len(self._tasks)))))
            queue.seek(0)
            try:
                for _ in range(min(workers, len(self._tasks))):
                    self._fork(queue)
                self._wait(queue)
            except BaseException:
                self._abandon(queue)
                raise
        if self._raised is not None:
            raise self._raised
        never = self._death or Cancelled("cancelled before it began")
        return [self._results.get(number, never) for number in range(len(self._tasks))]

    def _fork(self, queue: IO[bytes]) -> None:
        parent = os.getpid()
        results = os.memfd_create("reloadlab-results", os.MFD_CLOEXEC)
        with ExitStack() as stack:
            stack.callback(os.close, results)

            def keep(process: Process) -> None:
                self._workers[process.pidfd] = _Worker(process, results)
                stack.pop_all()

            fork(lambda: _serve(parent, self._setup, self._tasks, queue.fileno(), results), keep)

    def _wait(self, queue: IO[bytes]) -> None:
        """Wait until all processes have ended; stop them if the caller is cancelled or one of them raised."""
        while self._workers:
            poll = select.poll()
            for pidfd in self._workers:
                poll.register(pidfd, select.POLLIN)
            # Never for good: a signal right before the system call would not end it.
            for pidfd, _ in poll.poll(POLL_MS):
                self._end(self._workers[pidfd], queue)
            cancelled = self._cancel is not None and self._cancel.is_set()
            if not self._stopped and (cancelled or self._raised is not None):
                self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> None:
        self._stopped = True
        for worker in self._workers.values():
            worker.process.signal(number)

    def _abandon(self, queue: IO[bytes]) -> None:
        """Have the processes undo their tasks, and wait for that; a second interruption kills them."""
        try:
            self._stop(signal.SIGTERM)
            self._wait(queue)
        except BaseException:
            self._stop(signal.SIGKILL)
            for worker in list(self._workers.values()):
                self._end(worker, queue)
            raise

    def _end(self, worker: _Worker, queue: IO[bytes]) -> None:
        """Take over what an ended process did; another takes the place of one that died at its task."""
        how = worker.reap()
        held: int | None = None
        for kind, number, body in worker.frames():
            held = number if kind == _BEGUN else None
            if kind == _DONE:
                self._results[number] = pickle.loads(body)
            elif kind == _RAISED:
                self._raised = self._raised or pickle.loads(body)
        del self._workers[worker.process.pidfd]
        worker.close()
        if how:
            self._death = WorkerDied(worker.process.pid, how)
        if held is not None and held not in self._results:
            self._results[held] = WorkerDied(worker.process.pid, how or "ended")
            # Every death of this kind takes a task with it, so this comes to an end.
            if not self._stopped and queue.tell() < len(self._tasks) * _NUMBER.size:
                self._fork(queue)


def _serve(parent: int, setup: Setup[T, R], tasks: Sequence[T], queue: int, results: int) -> NoReturn:
    """Be a worker process, from the fork to its end."""
    status = 1
    try:
        cancel = _cancelled_by_signals(parent)
        # What was inherited is not looked at by the collector, and so stays shared with the caller's memory.
        gc.freeze()
        number = _NO_TASK
        try:
            with setup(cancel) as do:
                while not cancel.is_set() and len(taken := os.read(queue, _NUMBER.size)) == _NUMBER.size:
                    (number,) = _NUMBER.unpack(taken)
                    _write(results, _BEGUN, number)
                    _write(results, _DONE, number, pickle.dumps(do(tasks[number]), pickle.HIGHEST_PROTOCOL))
                    number = _NO_TASK
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            _write(results, _RAISED, number, _pack(error))
        else:
            status = 0
    finally:
        # Not a step further: what is on the stack belongs to the caller.
        os._exit(status)


def _cancelled_by_signals(parent: int) -> threading.Event:
    cancel = SignalEvent()

    def handler(number: int, frame: FrameType | None) -> None:
        cancel.set()

    for number in SIGNALS:
        # What is ignored stays so (nohup, a shell's background job), but for the one that the caller sends.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    # Sent when the thread that forked ends. It does nothing but wait for us: it ends with its process, by SIGKILL.
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        cancel.set()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return cancel


def _write(results: int, kind: int, number: int, body: bytes = b"") -> None:
    left = memoryview(_FRAME.pack(kind, number, len(body)) + body)
    while left:
        left = left[os.write(results, left) :]


def _pack(error: BaseException) -> bytes:
    """Return a pickled error, with its traceback as a note; one that does not survive that becomes a RuntimeError."""
    note = f"in worker process {os.getpid()}:\n{''.join(traceback.format_exception(error)).rstrip()}"
    try:
        error.add_note(note)
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # noqa: BLE001 - whatever a foreign class does when it is pickled
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(note)
        return pickle.dumps(plain)
    return packed
