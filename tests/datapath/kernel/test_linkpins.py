"""linkpins.py: pins of links, whose directories come with the first pin and go with the last."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.base.bpftypes import ProgType
from datapath.endpoint import LINKS
from datapath.errors import BpfError
from datapath.kernel import linkpins, links
from datapath.kernel.links import AttachType
from datapath.kernel.netns import enter
from datapath.kernel.xdp import Mode
from tests.datapath.support import XDP_PASS, program
from tests.lab.wires import ip, namespace

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]


@pytest.fixture
def link() -> Iterator[int]:
    """Hold the link of a program, as any reload attaches one."""
    with ExitStack() as stack:
        path = stack.enter_context(namespace())
        ip(path, "link", "add", "eth0", "index", "2", "type", "bridge")
        fd = stack.enter_context(program(XDP_PASS, ProgType.XDP))
        with enter(Path(path)):
            made = links.create(fd, 2, AttachType.XDP, flags=Mode.GENERIC)
        stack.callback(os.close, made)
        yield made


@pytest.fixture
def owners(bpffs: Path) -> Path:
    return bpffs / "cilium/devices"


def test_directories_come_with_the_first_pin_and_go_with_the_last(link: int, owners: Path) -> None:
    directory = owners / "eth0" / LINKS
    assert (linkpins.directories(owners), linkpins.pins(directory), linkpins.ids(directory)) == ([], [], set())
    for name in ("b", "a"):
        linkpins.pin(link, directory / name)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert linkpins.pins(directory) == [directory / "a", directory / "b"]
    assert [(found, linkpins.owner(found)) for found in linkpins.directories(owners)] == [(directory, "eth0")]
    assert linkpins.ids(directory) == {links.info(link).id}
    linkpins.unpin(directory / "a")
    assert linkpins.pins(directory) == [directory / "b"]
    for _ in range(2):
        linkpins.unpin(directory / "b")
        assert os.listdir(owners) == []


def test_a_directory_goes_with_all_its_pins(link: int, owners: Path) -> None:
    """Not that of its owner, as long as something else is in it."""
    directory = owners / "eth0" / LINKS
    for name in ("a", "b"):
        linkpins.pin(link, directory / name)
    (owners / "eth0/other").mkdir()
    linkpins.remove(directory)
    assert os.listdir(owners / "eth0") == ["other"]


def test_a_pin_is_put_where_none_is(link: int, owners: Path) -> None:
    path = owners / "eth0" / LINKS / "a"
    for _ in range(2):
        linkpins.pin_again(link, path)
    with pytest.raises(BpfError) as caught:
        linkpins.pin(link, path)
    assert caught.value.errno == errno.EEXIST
    linkpins.replace(link, path)
    assert linkpins.ids(path.parent) == {links.info(link).id}


def test_a_pin_moves_and_leaves_no_directory(link: int, owners: Path) -> None:
    old, new = (owners / name / LINKS / "a" for name in ("old0", "new0"))
    with pytest.raises(FileNotFoundError):
        linkpins.move(old, new)
    assert not owners.exists()
    linkpins.pin(link, old)
    linkpins.move(old, new)
    assert linkpins.directories(owners) == [new.parent]
    assert linkpins.ids(new.parent) == {links.info(link).id}


@pytest.mark.parametrize("exchange", [linkpins.exchange, linkpins.exchange_in_turn], ids=["at-once", "in-turn"])
def test_two_pins_change_their_names(link: int, owners: Path, exchange: Callable[..., None]) -> None:
    """The kernel does it at once since Linux 5.16."""
    one, two = (owners / name / LINKS / "a" for name in ("one0", "two0"))
    with namespace() as path, program(XDP_PASS, ProgType.XDP) as fd:
        ip(path, "link", "add", "eth0", "index", "2", "type", "bridge")
        with enter(Path(path)):
            other = links.create(fd, 2, AttachType.XDP, flags=Mode.GENERIC)
        try:
            linkpins.pin(link, one)
            linkpins.pin(other, two)
            exchange(link, one, other, two)
            assert linkpins.ids(one.parent) == {links.info(other).id}
            assert linkpins.ids(two.parent) == {links.info(link).id}
            for _ in range(2):
                for each, place in ((link, one), (other, two)):
                    linkpins.ensure(each, place)
                    assert linkpins.ids(place.parent) == {links.info(each).id}
        finally:
            os.close(other)


def test_reloads_that_pin_and_unpin_in_one_directory_do_not_fail(link: int, owners: Path) -> None:
    """XDP and tcx of a device: the directory may go between its making and the pin in it."""
    failed: list[BaseException] = []

    def again_and_again(path: Path) -> None:
        try:
            for _ in range(2000):
                linkpins.pin(link, path)
                linkpins.unpin(path)
        except (OSError, BpfError) as error:
            failed.append(error)

    threads = [threading.Thread(target=again_and_again, args=(owners / "eth0" / LINKS / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(owners) == []
