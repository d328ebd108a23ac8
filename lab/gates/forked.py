"""Gates for work that a process of ours does: it is forked, puts itself under the filter, and is decided on here."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.gates.memory import Process
from lab.gates.seccomp import Listener, NoUserNotification, install, install_nothing
from lab.gates.supervisor import Decide, Supervisor
from lab.system.forkpool import fork_map

_NUMBERS = struct.Struct("=ii")
_LISTENER = "anon_inode:seccomp notify"


def check_available() -> None:
    """Raise NoUserNotification where calls cannot be stopped; a process is forked to try it."""

    @contextmanager
    def worker(_: threading.Event) -> Iterator[Callable[[None], None]]:
        yield lambda _: _try()

    fork_map(worker, [None], workers=1)


def _try() -> None:
    listener = install_nothing()
    try:
        # As the supervisor takes it over, which can let calls go on since the Linux before this call.
        with Process(os.getpid()) as process, process.borrowed(listener):
            pass
    except OSError as error:
        raise NoUserNotification(f"pidfd_getfd(2): {error.strerror}") from error


@contextmanager
def gated(
    decide: Decide, *, directories: Sequence[Path], pins: Path, receives: bool = False, look_ups: bool = True
) -> Iterator[Callable[[], None]]:
    """Yield what a forked process calls to have its calls decided on from then on, by a thread of this process.

    The process has to be forked, and waited for, inside. What `decide` raises is raised at the end, and the calls that
    are left fail with ENOSYS. `directories`, `pins` and `receives` are as the Supervisor's, `look_ups` as install()'s.
    """
    raised: list[BaseException] = []
    with ExitStack() as stack:
        outer, inner = (stack.enter_context(end) for end in socket.socketpair())

        def serve() -> None:
            try:
                with _taken(outer) as taken:
                    if taken is None:
                        return
                    with Supervisor(
                        *taken, decide, directories=directories, pins=pins, receives=receives
                    ) as supervisor:
                        supervisor.serve()
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                raised.append(error)

        thread = threading.Thread(target=serve, name="gates", daemon=True)
        thread.start()
        try:
            yield lambda: _enter(inner, look_ups=look_ups)
        finally:
            # For a thread that waits for a process that has never come.
            inner.shutdown(socket.SHUT_RDWR)
            thread.join()
    if raised:
        raise raised[0]


def _enter(inner: socket.socket, *, look_ups: bool) -> None:
    """Put the calling process under the filter; return once the other side has the listener.

    Not by SCM_RIGHTS: sendmsg(2) is stopped by then, and nobody is there yet.
    """
    _close_inherited()
    listener = install(look_ups=look_ups)
    try:
        os.write(inner.fileno(), _NUMBERS.pack(os.getpid(), listener))
        os.read(inner.fileno(), 1)
    finally:
        # The other side's descriptor is the only one: if it dies, nothing waits for it.
        os.close(listener)


def _close_inherited() -> None:
    """Close the listeners that came with the fork: who is stopped by them must not wait for this process as well."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == _LISTENER:
                os.close(int(name))
        except FileNotFoundError:  # the directory itself
            continue


@contextmanager
def _taken(outer: socket.socket) -> Iterator[tuple[Listener, Process] | None]:
    """Yield the listener of the process that enters, and that process; None if none does."""
    data = os.read(outer.fileno(), _NUMBERS.size)
    if len(data) < _NUMBERS.size:
        yield None
        return
    pid, number = _NUMBERS.unpack(data)
    with Process(pid) as process:
        with process.borrowed(number) as listener:
            descriptor = os.dup(listener)
        os.write(outer.fileno(), b"\0")
        yield Listener(descriptor), process
