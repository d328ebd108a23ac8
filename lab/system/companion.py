"""A process of our own beside this one: framed messages over a socket pair, gone with its parent.

Measuring must not share an interpreter with what is measured: a reload would wait for the probe's interpreter lock, and
the probe for the reload's. Hence traffic and tracing run as processes of their own, with a `Control` at the other end.
A new interpreter takes a tenth of a second to import a module of ours, and more where no bytecode is kept; a forked
process has it already.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import IO, Any, NoReturn

from datapath.errors import ReloadlabError
from lab.system.launch import module_argv
from lab.system.pace import slowness
from lab.system.process import Process, fork
from lab.system.signals import SIGNALS

_LENGTH = struct.Struct("!I")
_KILL_AFTER = 2.0
"""Seconds that a child has to leave after its control socket was closed, on an ordinary machine."""

_NO_DESCRIPTOR = (1 << 31) - 1
"""No process has a descriptor of this number or a higher one."""

Message = dict[str, Any]


class ChildError(ReloadlabError):
    """A child process that failed or fell silent; `stderr` is what it said."""

    def __init__(self, module: str, reason: str, stderr: str = "") -> None:
        super().__init__(f"{module}: {reason}")
        self.module = module
        self.reason = reason
        self.stderr = stderr


def _read(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    """Read `size` bytes; fewer mean that the other end is gone. TimeoutError at the deadline (time.monotonic)."""
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = sock.recv(min(size - len(data), 1 << 20))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _receive(sock: socket.socket, deadline: float | None = None) -> bytes | None:
    header = _read(sock, _LENGTH.size, deadline)
    if len(header) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(header)
    body = _read(sock, size, deadline)
    return body if len(body) == size else None


class Control:
    """The child's end: messages from the parent, and the news of the parent's death."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        # PR_SET_PDEATHSIG fires when the thread that started us ends, not the process: a pidfd means the process.
        # A parent that is dead already shows as end of file on the socket.
        self._parent = os.pidfd_open(os.getppid())

    @property
    def descriptors(self) -> tuple[int, int]:
        """The control socket and the parent's pidfd; the child leaves as soon as the second is readable."""
        return self._socket.fileno(), self._parent

    def receive(self) -> Message | None:
        """Return the next message, waiting for it; None if the parent has gone."""
        try:
            body = _receive(self._socket)
        except ConnectionResetError:
            return None
        return None if body is None else json.loads(body)

    def send(self, message: Message, blob: bytes = b"") -> None:
        """Send a message, and bytes that are too many for JSON after it."""
        body = json.dumps(message, separators=(",", ":")).encode()
        self._socket.sendall(_LENGTH.pack(len(body)) + body + _LENGTH.pack(len(blob)) + blob)


class Child:
    """The parent's end. Requests are answered in order; any thread may send one.

    The child calls the module's `main` with the descriptor of its control socket, and ends with what that returns:
    forked from this process, or in a new interpreter for a module that must not find what is imported here.
    """

    def __init__(self, module: str, *, forked: bool = True) -> None:
        self._module = module
        self._forked = forked
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: Process | None = None
        self._stderr: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the module; the caller's next request is its configuration. ChildError if it runs already."""
        if self._process is not None:
            raise ChildError(self._module, "it runs already: a second start would orphan the first process")
        # Here, so that every process that is forked has it.
        main = import_module(self._module).main if self._forked else _in_new_interpreter(self._module)
        ours, theirs = socket.socketpair()
        self._socket, self._stderr = ours, tempfile.TemporaryFile()  # noqa: SIM115 (closed in close())
        descriptor, stderr = theirs.fileno(), self._stderr.fileno()
        try:
            fork(lambda: _serve(main, descriptor, stderr), self._keep)
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()

    def _keep(self, process: Process) -> None:
        self._process = process

    def request(self, message: Message, *, timeout: float) -> tuple[Message, bytes]:
        """Send a message and return the answer and its blob; ChildError if none comes within `timeout` seconds."""
        with self._lock:
            if self._socket is None:
                raise ChildError(self._module, "not running")
            body = json.dumps(message, separators=(",", ":")).encode()
            deadline = time.monotonic() + timeout
            try:
                self._socket.settimeout(timeout)
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
                answer = _receive(self._socket, deadline)
                blob = _receive(self._socket, deadline) if answer is not None else None
            except TimeoutError as error:
                # A late answer would be taken for the next one's: this channel is of no use any more.
                self._kill()
                raise ChildError(self._module, f"no answer within {timeout:g} s", self._said()) from error
            except OSError as error:
                raise self._died() from error
            except KeyboardInterrupt:
                self._kill()
                raise
            if answer is None or blob is None:
                raise self._died()
            return json.loads(answer), blob

    def close(self) -> None:
        """End the process: it leaves when its control socket closes, and is killed if it does not."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(_KILL_AFTER * slowness())
            except TimeoutError:
                self._kill()
            self._process.close()
            self._process = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def __enter__(self) -> Child:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.wait()

    def _died(self) -> ChildError:
        try:
            status = self._process.wait(_KILL_AFTER * slowness()) if self._process else 0
        except TimeoutError:
            self._kill()
            status = -signal.SIGKILL
        said = self._said()
        last = said.strip().splitlines()[-1:]
        return ChildError(self._module, f"died with status {status}" + "".join(f": {line}" for line in last), said)

    def _said(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")


def _serve(main: Callable[[int], int], descriptor: int, stderr: int) -> NoReturn:
    """Be the child, from the fork to its end: nothing of the parent's but the control socket and a place for errors."""
    status = 1
    try:
        # A session of its own: Ctrl-C is for the parent, which stops us and wants our report.
        os.setsid()
        _leave_behind(descriptor, stderr)
        # What was inherited is not looked at by the collector, and so stays shared with the parent's memory.
        gc.freeze()
        # Those of a test runner write to files that are closed now.
        with open(2, "w", buffering=1, errors="backslashreplace", closefd=False) as sys.stderr:
            sys.stdout = sys.stderr
            faulthandler.enable(sys.stderr)
            status = _status(main, descriptor)
    finally:
        os._exit(status)


def _status(main: Callable[[int], int], descriptor: int) -> int:
    try:
        return main(descriptor)
    except BaseException:  # noqa: BLE001 - what is printed is part of the parent's error
        traceback.print_exc()
        return 1


def _leave_behind(descriptor: int, stderr: int) -> None:
    """Give up the parent's files, output and signal handlers."""
    null = os.open(os.devnull, os.O_RDWR)
    for number, standard in ((null, 0), (null, 1), (stderr, 2)):
        os.dup2(number, standard)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, _NO_DESCRIPTOR)
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _in_new_interpreter(module: str) -> Callable[[int], int]:
    """Return a main that puts a new interpreter, which runs the module, in the place of the child."""

    def main(descriptor: int) -> NoReturn:
        os.set_inheritable(descriptor, True)
        argv = module_argv(module, str(descriptor))
        os.execv(argv[0], argv)

    return main
