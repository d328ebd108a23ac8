from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.system import mounts, netns
from tests.lab.labs import sysctl

pytestmark = pytest.mark.privileged


def in_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread of its own and raise what it raised."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            function()
        except (OSError, AssertionError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_new_namespace_lives_on_without_its_thread(tmp_path: Path) -> None:
    path = tmp_path / "new"
    seen: list[int] = []

    def make() -> None:
        os.close(netns.new_netns(path))
        seen.append(netns.inode(Path("/proc/thread-self/ns/net")))

    in_thread(make)
    try:
        assert netns.inode(path) == seen[0]
        assert netns.inode(path) != netns.inode(Path("/proc/self/ns/net"))
        with netns.enter(path):
            assert os.stat("/proc/thread-self/ns/net").st_ino == seen[0]
    finally:
        mounts.umount(path)


def test_sysctl_is_of_the_threads_namespace(tmp_path: Path) -> None:
    path = tmp_path / "new"
    here = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    other = "0" if here.strip() == "1" else "1"

    def make() -> None:
        os.close(netns.new_netns(path))
        netns.sysctl([("no/such/setting", "1"), ("ipv4/ip_forward", other)])

    in_thread(make)
    try:
        assert sysctl(path, "ipv4/ip_forward") == other
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == here
    finally:
        mounts.umount(path)


def test_path_that_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")

    def make() -> None:
        netns.new_netns(taken)

    with pytest.raises(FileExistsError):
        in_thread(make)
    assert taken.read_text() == "precious"
    assert not taken.is_mount()


def test_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent") as mount:
        mounts.bind_mount("/proc/self/ns/net", tmp_path / "absent")
    assert mount.value.errno == errno.ENOENT
    with pytest.raises(OSError, match=tmp_path.name) as umount:
        mounts.umount(tmp_path)
    assert umount.value.errno == errno.EINVAL
    with pytest.raises(netns.NamespaceNotFound, match="absent"), netns.enter(tmp_path / "absent"):
        pass
