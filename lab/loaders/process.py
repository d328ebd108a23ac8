"""The process of a loader: started inside the node, asked one thing at a time, gone with the lab.

All that it has started goes with it (lab.loaders.family). It has the node's network namespace, a mount namespace of its
own with the node's BPF file system at /sys/fs/bpf, and the node's state directory as its own. Ctrl-C is not for it but
for the lab, which asks it to stop.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, TypeVar

from datapath.endpoint import DatapathConfig
from datapath.errors import Cancelled
from lab.loaders.command import LoaderCommand
from lab.loaders.entry import Entry
from lab.loaders.family import kill_members
from lab.loaders.protocol import BadAnswer, LoaderBroken, LoaderDied, parse
from lab.system.pace import slowness

T = TypeVar("T")

MOST_ANSWER = 1 << 20
"""Bytes of an answer."""
MOST_LOG = 1 << 16
"""Bytes of the loader's log that are kept, the last ones."""
STOP_SECONDS = 2.0
"""Seconds that a loader has to end, or, when it is cancelled and does not know how, to answer."""
CANCEL_SECONDS = 10.0
"""Seconds in which a loader that can be cancelled has to answer."""

_POLL_MS = 20


class LoaderProcess:
    """One process of a loader. `gate` is called in it before it becomes the loader: it may put itself under a filter.

    `timeout` are the seconds in which it has to answer. Not for several threads at a time.
    """

    def __init__(
        self,
        command: LoaderCommand,
        config: DatapathConfig,
        *,
        timeout: float,
        gate: Callable[[], None] | None = None,
    ) -> None:
        self.name = command.name
        self._timeout = timeout
        self._deadline = 0.0
        self._log = bytearray()
        self._output = bytearray()
        self._log_is_open = True
        self._over = threading.Event()
        self._descriptors = ExitStack()
        with ExitStack() as inner, ExitStack() as outer:
            entry = inner.enter_context(Entry(config.netns, config.bpffs, gate))
            theirs_in, self._stdin = _pipe(inner, outer)
            self._stdout, theirs_out = _pipe(outer, inner)
            self._stderr, theirs_err = _pipe(outer, inner)
            streams = (theirs_in, theirs_out, theirs_err)
            try:
                self._process = _in_a_lasting_thread(partial(_start, command, config, streams, entry.enter), self._over)
            except OSError as error:
                raise LoaderBroken(self.name, f"{command.argv[0]} cannot be run: {error.strerror}") from error
            except subprocess.SubprocessError as error:
                why = entry.failure() or str(error)
                raise LoaderBroken(self.name, f"its process cannot enter the node: {why}") from error
            self._mounts = entry.mounts()
            outer.callback(os.close, self._mounts)
            with ExitStack() as started:
                started.callback(self._reap)
                started.callback(self._process.kill)
                self._pidfd = os.pidfd_open(self._process.pid)
                started.pop_all()
            outer.callback(os.close, self._pidfd)
            self._descriptors = outer.pop_all()
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def mounts(self) -> int:
        """A descriptor of its mount namespace, in which all lives that it starts."""
        return self._mounts

    @property
    def has_ended(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def touch(self) -> None:
        """Give it its whole time once more: it was held up, by a gate say."""
        self._deadline = time.monotonic() + self._timeout

    def ask(
        self, request: Mapping[str, Any], *, cancel: threading.Event | None = None, can_cancel: bool = False
    ) -> dict[str, Any]:
        """Send a request and return the answer.

        LoaderBroken, and the process is gone with its children, unless one comes in time that is as it must be. Once
        `cancel` is set, one that `can_cancel` is told by SIGTERM; any other has STOP_SECONDS to answer, then it is
        killed: Cancelled.
        """
        try:
            self._refuse_stray_output()
            line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
            return parse(self._answer(line, cancel, can_cancel))
        except BadAnswer as error:
            reason = self._with_log(error.reason)
            self.kill()
            raise LoaderBroken(self.name, reason) from error
        except BaseException:
            # An answer that comes later would be taken for the next one's.
            self.kill()
            raise

    def _answer(self, request: bytes, cancel: threading.Event | None, can_cancel: bool) -> bytes:
        """Send a request and wait for one line."""
        self.touch()
        unsent = self._write(request)
        patience = (CANCEL_SECONDS if can_cancel else STOP_SECONDS) * slowness()
        cancelled_at = float("inf")
        while b"\n" not in self._output:
            now = time.monotonic()
            if cancel is not None and cancel.is_set() and cancelled_at > now:
                cancelled_at = now
                if can_cancel:
                    self._signal(signal.SIGTERM)
            if now >= cancelled_at + patience:
                raise Cancelled(f"cancelled; loader {self.name} did not end within {patience:g} s, and was killed")
            if now >= self._deadline:
                raise LoaderBroken(self.name, self._with_log(f"no answer within {self._timeout:g} s"))
            unsent = self._exchange(unsent)
        line, _, rest = bytes(self._output).partition(b"\n")
        self._output.clear()
        if rest.strip():
            raise BadAnswer("answered more than one line")
        if unsent:
            raise BadAnswer("answered before it had read the request")
        return line

    def _exchange(self, unsent: bytes) -> bytes:
        """Write what it takes and read what there is, waiting for a moment; return what is still to be written.

        LoaderDied if nothing more will come.
        """
        poll = select.poll()
        for descriptor in (self._stdout, self._pidfd, *((self._stderr,) if self._log_is_open else ())):
            poll.register(descriptor, select.POLLIN)
        if unsent:
            poll.register(self._stdin, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(_POLL_MS)}
        if self._stderr in ready:
            self._read_log()
        if self._stdin in ready:
            unsent = self._write(unsent)
        if ready & {self._stdout, self._pidfd}:
            self._read_answer(ended=self._pidfd in ready)
        return unsent

    def _write(self, data: bytes) -> bytes:
        """Write what the pipe takes, and return the rest."""
        try:
            return data[os.write(self._stdin, data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError:
            raise self.death() from None

    def _read_answer(self, *, ended: bool) -> None:
        """Read what it has answered so far; LoaderDied if nothing more will come."""
        closed = self._read_output()
        # Its children may have the other end as well: then there is no end of file.
        if b"\n" not in self._output and (closed or ended):
            raise self.death()

    def _read_output(self) -> bool:
        """Read what it has answered so far; return whether it can answer no more."""
        for data in _available(self._stdout):
            if not data:
                return True
            self._output += data
            if len(self._output) > MOST_ANSWER:
                raise BadAnswer(f"answered more than {MOST_ANSWER} bytes")
        return False

    def _read_log(self) -> None:
        if self._pidfd < 0:
            return
        for data in _available(self._stderr):
            # At its end it would be ready for ever.
            self._log_is_open = bool(data)
            self._log += data
            del self._log[:-MOST_LOG]

    def _refuse_stray_output(self) -> None:
        if not self._read_output() and self._output.strip():
            raise BadAnswer(f"said {bytes(self._output[:60])!r} without being asked")

    def death(self, when: str = "") -> LoaderDied:
        """Return the error for a process that has ended, or has closed its end; `when` begins with a space."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(STOP_SECONDS * slowness() * 1000):
            return LoaderDied(self.name, self._with_log("closed its output"), killed=False)
        self._read_log()
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        status = (info.si_code, info.si_status) if info is not None else (os.CLD_EXITED, 0)
        if status[0] == os.CLD_EXITED:
            return LoaderDied(self.name, self._with_log(f"ended{when} with exit code {status[1]}"), killed=False)
        number = signal.Signals(status[1])
        killed = number == signal.SIGKILL
        return LoaderDied(self.name, self._with_log(f"was killed{when} by {number.name}"), killed=killed)

    def _with_log(self, reason: str) -> str:
        """Return a reason with the last line of the log behind it."""
        self._read_log()
        lines = [line.strip() for line in self._log.decode(errors="replace").splitlines() if line.strip()]
        return f"{reason}: {lines[-1][:200]}" if lines else reason

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it and all that it has started. A second call does nothing."""
        if self._pidfd < 0:
            return
        self._signal(signal.SIGKILL)
        self._wait_for_end(None)
        self._reap()

    def close(self) -> tuple[int, ...]:
        """Ask it to stop, and kill it if it does not; return the processes that it left, which are killed."""
        if self._pidfd < 0:
            return ()
        with suppress(BrokenPipeError, BlockingIOError):
            os.write(self._stdin, b'{"request":"stop"}\n')
        # The end of its input means the same. Nothing is opened for that: this process may be under a filter itself.
        os.dup2(self._pidfd, self._stdin, inheritable=False)
        if not self._wait_for_end(STOP_SECONDS * slowness()):
            self._signal(signal.SIGKILL)
            self._wait_for_end(None)
        return self._reap()

    def _wait_for_end(self, seconds: float | None) -> bool:
        """Wait until the process has ended; False if it has not. What it still says is read, or it would wait."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.has_ended:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(_POLL_MS)
            self._read_log()
            with suppress(BadAnswer):
                self._read_output()
            self._output.clear()
        return True

    def _reap(self) -> tuple[int, ...]:
        """Kill what is left of it, while nobody else can have the number of the process, and let go of it."""
        left = kill_members(self._mounts, self._process.pid)
        self._process.wait()
        self._over.set()
        self._descriptors.close()
        self._pidfd = -1
        return left


def _start(
    command: LoaderCommand, config: DatapathConfig, streams: tuple[int, int, int], enter: Callable[[], None]
) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        command.argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=config.state,
        # A session of its own: Ctrl-C is for the lab, which asks it to stop.
        start_new_session=True,
        preexec_fn=enter,
    )


def _in_a_lasting_thread(start: Callable[[], T], over: threading.Event) -> T:
    """Start a process from a thread that does not end before `over` is set: PR_SET_PDEATHSIG fires at its end."""
    if threading.current_thread() is threading.main_thread():
        return start()
    started: Future[T] = Future()

    def run() -> None:
        try:
            started.set_result(start())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            started.set_exception(error)
        else:
            over.wait()

    threading.Thread(target=run, name="starts a loader", daemon=True).start()
    return started.result()


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """Return (end to read, end to write) of a pipe, each to be closed by the given stack."""
    ends = os.pipe()
    reading.callback(os.close, ends[0])
    writing.callback(os.close, ends[1])
    return ends


def _available(descriptor: int) -> Iterator[bytes]:
    """Yield what a descriptor has without waiting, at its end an empty piece; of what never ends, some of it."""
    for _ in range(16):
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        yield data
        if not data:
            return
