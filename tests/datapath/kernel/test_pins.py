"""pins.py and inventory.py on real program arrays: what the kernel empties, and what must not let it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, inventory
from datapath.kernel.pins import Pin, left_behind, map_id
from tests.datapath import support
from tests.datapath.pinned import NAME, SS, P, S, names
from tests.datapath.support import Array

pytestmark = pytest.mark.privileged


def test_repin_and_finalize(pin: Pin, stack: ExitStack) -> None:
    old = Array(stack, pin.path)
    assert pin.repin()
    assert names(pin) == [":pending"]
    assert map_id(pin.pending) == old.id
    new = Array(stack, pin.path)
    assert old.filled, "a map that was moved aside lost its programs"
    pin.finalize()
    old.wait_until_emptied()
    assert names(pin) == [""]
    assert new.filled


def test_repin_and_revert(pin: Pin, stack: ExitStack) -> None:
    old = Array(stack, pin.path)
    pin.repin()
    new = Array(stack, pin.path)
    pin.revert()
    assert names(pin) == [""]
    assert map_id(pin.path) == old.id
    new.wait_until_emptied()
    assert old.filled


def test_nothing_pinned_is_nothing_to_move(pin: Pin) -> None:
    assert pin.repin() is False
    assert names(pin) == []


def test_revert_of_a_load_that_pinned_nothing(pin: Pin, stack: ExitStack) -> None:
    old = Array(stack, pin.path)
    pin.repin()
    pin.revert()
    assert names(pin) == [""]
    assert old.filled


@pytest.mark.parametrize("there", [[""], ["", P], ["", P, S], ["", S], [P]])
@pytest.mark.parametrize("renames", range(3))
def test_repin_is_undone_wherever_it_was_interrupted(
    pin: Pin, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, there: list[str], renames: int
) -> None:
    """Before its first rename, between the two, or after them: each map is where it was."""
    arrays = {suffix: Array(stack, pin.path.with_name(NAME + suffix)).id for suffix in there}
    undo: list[Callable[[], object]] = []
    genuine, done = Path.rename, list[Path]()

    def rename(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(genuine(path, target))
        return done[-1]

    monkeypatch.setattr(Path, "rename", rename)
    with suppress(KeyboardInterrupt):
        pin.repin(undo.append)
    monkeypatch.undo()
    for action in reversed(undo):
        action()
    assert {suffix: map_id(pin.path.with_name(NAME + suffix)) for suffix in names(pin)} == arrays


def test_a_descriptor_hides_that_the_pin_is_gone(pin: Pin, stack: ExitStack) -> None:
    """Why nothing of a reload may keep a calls map open: the array stays filled, and the fault is not seen."""
    old = Array(stack, pin.path)
    fd = bpf.obj_get(pin.path)
    pin.path.unlink()
    assert old.filled
    os.close(fd)
    old.wait_until_emptied()


def test_left_behind_names_the_pins_of_reloads_that_did_not_end(pins: Path, stack: ExitStack) -> None:
    assert left_behind(pins / "nope") == frozenset()
    for name in ("cilium_metrics", "cilium_lxc:pending", f"{NAME}:stale", NAME, f"{NAME}:pending"):
        Array(stack, pins / name)
    assert left_behind(pins) == {"cilium_lxc", NAME}


@pytest.mark.parametrize("there", [["", P], ["", P, S], ["", S], ["", P, S, SS], ["", P, SS]])
def test_repin_over_maps_that_are_still_needed(pin: Pin, stack: ExitStack, there: list[str]) -> None:
    """The reload after a kill between two attaches: whatever is kept stays pinned until that reload has ended."""
    arrays = {suffix: Array(stack, pin.path.with_name(NAME + suffix)) for suffix in there}
    assert pin.repin()
    assert "" not in names(pin)
    assert {map_id(path) for path in pin.leftovers()} == {array.id for array in arrays.values()}
    assert map_id(pin.pending) == arrays[""].id
    new = Array(stack, pin.path)
    assert all(array.filled for array in arrays.values())
    pin.revert()
    assert map_id(pin.path) == arrays[""].id
    new.wait_until_emptied()
    assert all(array.filled for array in arrays.values())
    assert len(names(pin)) == len(there)
    pin.repin()
    Array(stack, pin.path)
    pin.finalize()
    assert names(pin) == [""]
    for array in arrays.values():
        array.wait_until_emptied()


def test_retired_arrays_are_no_leftovers(pins: Path, stack: ExitStack) -> None:
    """An array of policy programs outlives the reload that has replaced it; the next one has nothing to recover."""
    pin = Pin(pins / "cilium_call_policy")
    old = Array(stack, pin.path)
    assert pin.repin()
    new = Array(stack, pin.path)
    pin.retire()
    assert [path.name for path in pin.retired()] == [f"cilium_call_policy:retired-{old.id}"]
    assert (pin.leftovers(), left_behind(pins)) == ([], frozenset())
    assert pin.repin()
    pin.revert()
    assert (map_id(pin.path), map_id(pin.retired()[0])) == (new.id, old.id)
    assert old.filled
    assert new.filled


def test_map_id_closes_what_it_opens(pin: Pin, stack: ExitStack) -> None:
    array = Array(stack, pin.path)
    before = support.descriptors()
    assert map_id(pin.path) == array.id
    assert support.descriptors() == before


def test_map_id_of_nothing(pin: Pin) -> None:
    with pytest.raises(BpfError) as info:
        map_id(pin.path)
    assert info.value.errno == errno.ENOENT


class TestReach:
    def test_follows_the_slots_of_calls_maps(self, bpffs: Path, stack: ExitStack) -> None:
        """entry -> first array -> program -> second array -> program."""
        first, second = Array(stack, bpffs / "first"), Array(stack, bpffs / "second")
        fd = bpf.obj_get(bpffs / "first")
        stack.callback(os.close, fd)
        bpf.map_update(fd, struct.pack("=I", 1), struct.pack("=I", second.user))
        found = inventory.reach([support.program_id(first.user)])
        assert found.programs == {support.program_id(first.user), support.program_id(second.user)}
        assert found.maps == found.calls == {first.id, second.id}
        assert inventory.reach([support.program_id(second.user)]).calls == {second.id}
        assert inventory.reach([]).maps == frozenset()

    def test_what_is_known_follows_slots_that_change(self, bpffs: Path, stack: ExitStack) -> None:
        """Only what never changes is kept: which maps a program uses, and which are no calls maps."""
        first, second = Array(stack, bpffs / "first"), Array(stack, bpffs / "second")
        fd, entry, known = bpf.obj_get(bpffs / "first"), [support.program_id(first.user)], inventory.Known()
        stack.callback(os.close, fd)
        assert known.reach(entry).calls == {first.id}
        bpf.map_update(fd, struct.pack("=I", 1), struct.pack("=I", second.user))
        assert known.reach(entry) == inventory.reach(entry)
        assert known.reach(entry).calls == {first.id, second.id}
        bpf.map_delete(fd, struct.pack("=I", 1))
        assert known.reach(entry) == inventory.reach(entry)

    def test_maps_that_are_no_calls_maps(self, bpffs: Path, stack: ExitStack) -> None:
        """Neither a hash, nor the array of the whole node, whose programs are other endpoints'."""
        hash_fd = bpf.map_create(MapType.HASH, 4, 4, 8)
        large = bpf.map_create(MapType.PROG_ARRAY, 4, 4, inventory.LARGEST_CALLS_MAP + 1)
        for fd in (hash_fd, large):
            stack.callback(os.close, fd)
        other = support.load_returning(0)
        stack.callback(os.close, other)
        bpf.map_update(large, struct.pack("=I", 3), struct.pack("=I", other))
        for fd in (hash_fd, large):
            user = support.load_using(fd)
            stack.callback(os.close, user)
            found = inventory.reach([support.program_id(user)])
            assert found.maps == {bpf.map_info(fd).id}
            assert found.calls == frozenset()
            assert found.programs == {support.program_id(user)}
            assert inventory.slots(bpf.map_info(fd).id) is None

    def test_what_is_gone_is_passed_over(self) -> None:
        fd = support.load_returning(0)
        ident = support.program_id(fd)
        os.close(fd)
        support.until(lambda: not inventory.reach([ident]).programs, "the program unloaded")
        assert inventory.slots((1 << 31) - 1) is None

    def test_nothing_stays_open(self, bpffs: Path, stack: ExitStack) -> None:
        array = Array(stack, bpffs / "first")
        before = support.descriptors()
        inventory.reach([support.program_id(array.user)])
        assert support.descriptors() == before
