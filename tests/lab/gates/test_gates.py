"""Gates at system calls: what a stopped process is seen to do, and what becomes of it."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError, NetlinkError, ReloadlabError
from datapath.kernel import bpf
from datapath.kernel.netlink import NLM_F_REQUEST, RTM_GETLINK, NetlinkSocket
from lab.gates.bpfcalls import name_of
from lab.gates.call import RECEIVE, Call
from lab.gates.forked import check_available, gated
from lab.gates.seccomp import NoUserNotification
from lab.gates.supervisor import Answer, Fail, Kill, Signal
from lab.system.forkpool import WorkerDied, fork_map

R = TypeVar("R")


class Refused(ReloadlabError):
    """What a test's supervisor raises."""


def under_gates(decide: Callable[[Call], Answer], do: Callable[[], R], directory: Path, *, receives: bool = False) -> R:
    """Do something in a process of its own, every call of which is decided on."""
    with gated(decide, directories=[directory], pins=directory, receives=receives) as enter:

        @contextmanager
        def setup(cancel: threading.Event) -> Iterator[Callable[[None], R]]:
            enter()
            yield lambda _: do()

        (result,) = fork_map(setup, [None], workers=1)
    if isinstance(result, ReloadlabError):
        raise result
    return result


def seen(do: Callable[[], object], directory: Path) -> list[Call]:
    calls: list[Call] = []
    under_gates(lambda call: calls.append(call), do, directory)
    return calls


def make_a_map(path: Path, kind: MapType = MapType.ARRAY) -> None:
    fd = bpf.map_create(kind, 4, 4, 8, name="doors_with_a_long_name")
    bpf.obj_pin(fd, path)
    bpf.map_update(fd, (3).to_bytes(4, "little"), b"open")
    os.close(fd)


def test_maps_are_called_as_their_pins(bpffs: Path) -> None:
    path = bpffs / "doors_with_a_long_name"
    texts = [call.text for call in seen(lambda: make_a_map(path), bpffs)]
    assert texts == ["MAP_CREATE doors_with_a_lo", f"OBJ_PIN {path}", "MAP_UPDATE doors_with_a_long_name[3]"]
    assert path.exists()


def test_keys_of_hashes_are_written_in_hexadecimal(bpffs: Path) -> None:
    calls = seen(lambda: make_a_map(bpffs / "doors", MapType.HASH), bpffs)
    assert calls[-1].text == "MAP_UPDATE doors[0x03000000]"
    assert calls[-1].map == "doors"


def test_files_below_the_directories_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    def do() -> None:
        for directory in (inside, outside):
            (directory / "a").write_text("")
            (directory / "a").read_text()
            (directory / "a").rename(directory / "b")
            os.link(directory / "b", directory / "c")
            (directory / "c").unlink()
            (directory / "d").mkdir()
            (directory / "d").rmdir()

    assert [call.text for call in seen(do, inside)] == [
        f"openat {inside}/a",
        f"rename {inside}/a -> {inside}/b",
        f"link {inside}/b -> {inside}/c",
        f"unlink {inside}/c",
        f"mkdir {inside}/d",
        f"rmdir {inside}/d",
    ]


def test_paths_relative_to_a_directory(tmp_path: Path) -> None:
    def do() -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        os.mkdir("new", dir_fd=fd)
        os.chdir(tmp_path)
        os.rmdir("new")

    assert [call.subject for call in seen(do, tmp_path)] == [f"{tmp_path}/new"] * 2


def test_netlink_messages_and_no_other_sockets(tmp_path: Path) -> None:
    def do() -> None:
        with NetlinkSocket() as netlink:
            netlink.ifindex("lo")
        one, other = socket.socketpair()
        one.send(b"x")
        one.sendmsg([b"y"])
        other.recv(1)

    (call,) = seen(do, tmp_path)
    assert call.text == "RTM_GETLINK lo"
    assert call.syscall == "sendto"
    assert not call.changes


def test_a_message_by_sendmsg_in_parts(tmp_path: Path) -> None:
    def do() -> None:
        header = (32).to_bytes(4, "little") + RTM_GETLINK.to_bytes(2, "little") + NLM_F_REQUEST.to_bytes(2, "little")
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.sendmsg([header, bytes(8), bytes(4) + (1).to_bytes(4, "little") + bytes(8)])

    assert [call.text for call in seen(do, tmp_path)] == ["RTM_GETLINK lo"]


def test_several_messages_by_one_sendmmsg(tmp_path: Path) -> None:
    def do() -> None:
        header = (32).to_bytes(4, "little") + RTM_GETLINK.to_bytes(2, "little") + NLM_F_REQUEST.to_bytes(2, "little")
        message = header + bytes(8 + 4) + (1).to_bytes(4, "little") + bytes(8)
        data = ctypes.create_string_buffer(message, len(message))
        part = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(data), len(message)), 16)
        one = struct.pack("@PIxxxxPNPNixxxxIxxxx", 0, 0, ctypes.addressof(part), 1, 0, 0, 0, 0)
        both = ctypes.create_string_buffer(one * 2, 2 * len(one))
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            assert ctypes.CDLL(None, use_errno=True).sendmmsg(netlink.fileno(), both, 2, 0) == 2

    (call,) = seen(do, tmp_path)
    assert (call.text, call.syscall) == ("RTM_GETLINK lo + RTM_GETLINK lo", "sendmmsg")


def test_an_answer_is_a_call_if_it_is_asked_for(tmp_path: Path) -> None:
    """One that fails: what was asked for is done all the same."""

    def do() -> int | None:
        with NetlinkSocket() as netlink:
            try:
                netlink.ifindex("lo")
            except (NetlinkError, OSError) as error:
                return error.errno
        return None

    def decide(call: Call) -> Answer:
        texts.append(call.text)
        return Fail(errno.ENOBUFS) if call.name == RECEIVE else None

    texts: list[str] = []
    assert under_gates(decide, do, tmp_path, receives=True) == errno.ENOBUFS
    assert texts == ["RTM_GETLINK lo", RECEIVE]
    assert not Call(1, RECEIVE, "", "recvfrom", 1).changes


def test_a_call_that_fails_does_not_happen(bpffs: Path) -> None:
    def decide(call: Call) -> Answer:
        return Fail(errno.ENOSPC) if call.fits("OBJ_PIN *") else None

    with pytest.raises(BpfError) as raised:
        under_gates(decide, lambda: make_a_map(bpffs / "doors"), bpffs)
    assert raised.value.errno == errno.ENOSPC
    assert not (bpffs / "doors").exists()


def test_a_process_that_is_killed_at_a_call(bpffs: Path) -> None:
    def decide(call: Call) -> Answer:
        return Kill() if call.fits("MAP_UPDATE doors[3]") else None

    with pytest.raises(WorkerDied, match="SIGKILL"):
        under_gates(decide, lambda: make_a_map(bpffs / "doors"), bpffs)
    fd = bpf.obj_get(bpffs / "doors")
    assert bpf.map_lookup(fd, (3).to_bytes(4, "little"), 4) == bytes(4)
    os.close(fd)


def test_a_supervisor_that_fails_leaves_nobody_waiting(bpffs: Path) -> None:
    """The process goes on, with calls that fail."""
    failed: list[int] = []

    def decide(call: Call) -> Answer:
        raise Refused("no")

    def do() -> None:
        try:
            make_a_map(bpffs / "doors")
        except BpfError as error:
            os.write(writer, bytes([error.errno]))

    reader, writer = os.pipe()
    with pytest.raises(Refused):
        under_gates(decide, do, bpffs)
    failed += os.read(reader, 8)
    os.close(reader)
    os.close(writer)
    assert failed == [errno.ENOSYS]


def test_calls_of_many_threads_and_processes(tmp_path: Path) -> None:
    """Each happens once, also those of processes that are forked by the stopped one."""
    count, each = 4, 8

    def make(name: str) -> None:
        for number in range(each):
            (tmp_path / f"{name}-{number}").mkdir()

    def do() -> None:
        pid = os.fork()
        if pid == 0:
            make("child")
            os._exit(0)
        threads = [threading.Thread(target=make, args=(f"thread-{at}",)) for at in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.waitpid(pid, 0)

    calls = seen(do, tmp_path)
    assert len(calls) == (count + 1) * each
    assert len({call.subject for call in calls}) == len(calls)
    assert len(list(tmp_path.iterdir())) == len(calls)
    assert len({call.thread for call in calls}) == count + 1


def test_what_outlives_the_process_is_not_waited_for(tmp_path: Path) -> None:
    """Its calls fail from then on: nobody is there who could decide on them."""
    ended, (asked, ask), (answered, answer) = threading.Event(), os.pipe(), os.pipe()

    def do() -> None:
        if os.fork() == 0:
            os.setsid()
            os.close(ask)
            os.read(asked, 1)
            try:
                (tmp_path / "late").mkdir()
            except OSError as error:
                os.write(answer, bytes([error.errno or 0]))
            os._exit(0)

    def give_up() -> None:
        if not ended.wait(60):
            os.write(ask, b"!")

    waiting = threading.Thread(target=give_up)
    waiting.start()
    calls = seen(do, tmp_path)
    ended.set()
    waiting.join()
    os.close(ask)
    os.close(answer)
    assert os.read(answered, 1) == bytes([errno.ENOSYS])
    assert calls == []
    os.close(asked)
    os.close(answered)


def test_a_signal_is_for_the_process_that_entered(tmp_path: Path) -> None:
    """Also at a call of another one that it has started, such as a compiler, which goes on."""

    def do() -> tuple[list[int], int]:
        got: list[int] = []
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            (tmp_path / "by-the-child").mkdir()
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
        return got, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def decide(call: Call) -> Answer:
        return Signal(signal.SIGTERM) if call.subject.endswith("by-the-child") else None

    assert under_gates(decide, do, tmp_path) == ([signal.SIGTERM], 0)


def test_where_somebody_else_has_the_listener_calls_cannot_be_stopped(tmp_path: Path) -> None:
    """The kernel knows one listener a process: a container's, say."""
    check_available()
    with pytest.raises(NoUserNotification, match="Device or resource busy"):
        under_gates(lambda call: None, check_available, tmp_path)


def test_gates_that_nobody_enters_end(tmp_path: Path) -> None:
    with gated(lambda call: None, directories=[tmp_path], pins=tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "name"), [(2, "MAP_UPDATE"), (27, "MAP_DELETE_BATCH"), (29, "LINK_UPDATE"), (999, "BPF_999")]
)
def test_commands_have_the_names_of_the_kernels_enum(number: int, name: str) -> None:
    assert name_of(number) == name


@pytest.mark.parametrize(
    ("name", "changes"), [("MAP_LOOKUP", False), ("MAP_LOOKUP_AND_DELETE", True), ("MAP_UPDATE_BATCH", True)]
)
def test_which_calls_change_something(name: str, changes: bool) -> None:
    assert Call(1, name, "doors[1]", "bpf", 1).changes is changes


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("MAP_UPDATE cilium_calls_*", True),
        ("MAP_UPDATE cilium_calls_00101[7]", True),
        ("MAP_UPDATE cilium_calls_00101[8]", False),
        ("MAP_*", True),
        ("RTM_*", False),
    ],
)
def test_a_pattern_fits_a_whole_call(pattern: str, fits: bool) -> None:
    assert Call(1, "MAP_UPDATE", "cilium_calls_00101[7]", "bpf", 1).fits(pattern) is fits


def fork_as(pid: int) -> int:
    """Fork a process with this id, which must be free; return as fork(2) does (clone3(2), Linux 5.5)."""
    wanted = ctypes.c_int(pid)
    arguments = struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    child = int(libc.syscall(ctypes.c_long(435), arguments, ctypes.c_size_t(len(arguments))))
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return child


def once_free(pid: int) -> int:
    """The same, once the kernel has let go of the id of a thread that was joined."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return fork_as(pid)
        except FileExistsError:
            assert time.monotonic() < deadline


def test_a_thread_id_that_another_process_has_later(tmp_path: Path) -> None:
    """The process that is killed at a call is the one that makes it, not the one that had such a thread before."""

    def do() -> int:
        ids: list[int] = []

        def make() -> None:
            ids.append(threading.get_native_id())
            (tmp_path / "by-a-thread").mkdir()

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        child = once_free(ids[0])
        if child == 0:
            (tmp_path / "by-a-process").mkdir()
            os._exit(0)
        assert child == ids[0]
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def decide(call: Call) -> Answer:
        return Kill() if call.subject.endswith("by-a-process") else None

    assert under_gates(decide, do, tmp_path) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["by-a-thread"]
