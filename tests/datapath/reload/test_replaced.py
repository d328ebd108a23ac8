"""replaced.py: what is replaced while many endpoints are reloaded is emptied when that is over, not beside it."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.map import Map, open_pin
from datapath.reload import replaced
from tests.datapath import support
from tests.datapath.support import Rig

pytestmark = pytest.mark.privileged


@pytest.fixture
def rig(templates: Path) -> Iterator[Rig]:
    with support.rig(templates, pods=1) as made:
        made.loader.apply(made.loader.plan(made.endpoint("pod-1"), subject="pod-1"))
        yield made


@pytest.fixture
def reload(rig: Rig) -> Callable[[], int]:
    """Reload the pod; returns the id of the calls map that was replaced."""

    def once() -> int:
        with open_pin(rig.config.globals / "cilium_calls_00101") as array:
            ident = array.info.id
        outcome = rig.loader.apply(rig.loader.plan(rig.endpoint("pod-1"), subject="pod-1"))
        assert not outcome.warnings
        return ident

    return once


def held_here() -> set[int]:
    """Return the ids of the maps of which this process has descriptors."""
    found = set()
    for path in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found |= {int(ident) for ident in re.findall(r"^map_id:\s*(\d+)$", path.read_text(), re.MULTILINE)}
    return found


def wait_until_gone(ident: int) -> None:
    deadline = time.monotonic() + 60
    while bpf.has_map(ident):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_they_are_held_until_the_last_block_ends(rig: Rig, reload: Callable[[], int]) -> None:
    with rig.loader.many():
        with rig.loader.many():
            first, second = reload(), reload()
        assert {first, second} <= held_here()
        with closing(Map.of(bpf.map_fd_by_id(first), "")) as array:
            assert bpf.map_slots(array.fd, array.info.max_entries)
    assert not {first, second} & held_here()
    for ident in (first, second):
        wait_until_gone(ident)


def test_a_single_reload_holds_nothing(reload: Callable[[], int]) -> None:
    ident = reload()
    assert ident not in held_here()
    wait_until_gone(ident)


def test_no_more_than_so_many_are_held(rig: Rig, reload: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced, "MOST", 2)
    with rig.loader.many():
        many = [reload() for _ in range(3)]
        assert set(many) & held_here() == {many[-1]}


def test_one_that_cannot_be_held_is_a_warning(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arrays: replaced.ReplacedArrays, path: Path) -> None:
        raise BpfError("BPF_OBJ_GET", errno.EMFILE, f"{path}: Too many open files")

    monkeypatch.setattr(replaced.ReplacedArrays, "take", fail)
    outcome = rig.loader.apply(rig.loader.plan(rig.endpoint("pod-1"), subject="pod-1"))
    assert [warning.partition(":")[0] for warning in outcome.warnings] == [
        "the reload is done, but holding the old map cilium_calls_00101 is left"
    ]
