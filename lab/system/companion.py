"""A process of our own beside this one: same interpreter, framed messages over a socket pair, gone with its parent.

Measuring must not share an interpreter with what is measured: a reload would wait for the probe's interpreter lock, and
the probe for the reload's. Hence traffic and tracing run as processes of their own, with a `Control` at the other end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from types import TracebackType
from typing import IO, Any

from datapath.errors import ReloadlabError
from lab.system.launch import module_argv

_LENGTH = struct.Struct("!I")
_KILL_AFTER = 2.0
"""Seconds that a child has to leave after its control socket was closed."""

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
    """The parent's end. Requests are answered in order; any thread may send one."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the module; the caller's next request is its configuration. ChildError if it runs already."""
        if self._process is not None:
            raise ChildError(self._module, "it runs already: a second start would orphan the first process")
        ours, theirs = socket.socketpair()
        self._socket, self._stderr = ours, tempfile.TemporaryFile()  # noqa: SIM115 (closed in close())
        try:
            # A session of its own: Ctrl-C is for the parent, which stops us and wants our report.
            self._process = subprocess.Popen(
                module_argv(self._module, str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()

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
                self._process.wait(_KILL_AFTER)
            except subprocess.TimeoutExpired:
                self._kill()
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
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _died(self) -> ChildError:
        status = self._process.wait(_KILL_AFTER) if self._process else 0
        said = self._said()
        last = said.strip().splitlines()[-1:]
        return ChildError(self._module, f"died with status {status}" + "".join(f": {line}" for line in last), said)

    def _said(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")
