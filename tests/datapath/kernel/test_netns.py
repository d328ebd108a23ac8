from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import OWN, NamespaceNotFound, enter
from tests.datapath import support
from tests.lab.wires import namespace


@pytest.fixture
def netns() -> Iterator[Path]:
    with namespace() as path:
        yield Path(path)


def own() -> int:
    """Return the inode of the calling thread's namespace."""
    return os.stat(OWN).st_ino


def test_missing_namespace(tmp_path: Path) -> None:
    with pytest.raises(NamespaceNotFound, match="does not exist") as info:
        NetlinkSocket(tmp_path / "nope")
    assert info.value.path == tmp_path / "nope"


@pytest.mark.privileged
def test_a_file_without_its_mount_is_no_namespace(tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    with pytest.raises(NamespaceNotFound), enter(tmp_path / "left"):
        pass


@pytest.mark.privileged
def test_a_full_descriptor_table_is_not_a_missing_namespace(netns: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as info, enter(netns):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert info.value.errno == errno.EMFILE


@pytest.mark.privileged
def test_enter_comes_back_after_an_exception(netns: Path) -> None:
    before = own()

    def fail_inside() -> None:
        with enter(netns):
            assert own() == os.stat(netns).st_ino != before
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert own() == before


@pytest.mark.privileged
def test_enter_moves_the_calling_thread_only(netns: Path) -> None:
    here, inside, go = own(), threading.Event(), threading.Event()

    def stay() -> int:
        with enter(netns):
            inside.set()
            assert go.wait(10)
        return own()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(stay)
        assert inside.wait(10)
        assert own() == here
        go.set()
        assert other.result() == here


@pytest.mark.privileged
def test_a_thread_comes_back_to_its_own_namespace(netns: Path) -> None:
    """Which need not be the main thread's: a worker may be at home in another one."""
    with namespace() as home, ThreadPoolExecutor(1) as pool:

        def visit() -> tuple[int, int, int]:
            with enter(Path(home)):
                before = own()
                with enter(netns):
                    away = own()
                return before, away, own()

        before, away, after = pool.submit(visit).result()
        assert (before, away) == (os.stat(home).st_ino, os.stat(netns).st_ino)
        assert after == before


@pytest.mark.privileged
def test_no_descriptor_stays_open(netns: Path, tmp_path: Path) -> None:
    before = support.descriptors()
    with enter(netns):
        pass
    with pytest.raises(NamespaceNotFound), enter(tmp_path / "nope"):
        pass
    assert support.descriptors() == before
