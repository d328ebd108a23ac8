"""pins.py and inventory.py on real program arrays: what the kernel empties, and what must not let it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, inventory
from datapath.kernel.pins import Pin, left_behind, map_id
from datapath.mapnames import is_calls_map
from tests.datapath import support

NAME = "cilium_calls_00101"


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cilium_calls_00123", True),
        ("cilium_calls_hostns_00001", True),
        ("cilium_calls_netdev_00002", True),
        ("cilium_calls_overlay_2", True),
        ("cilium_calls_xdp_2", False),
        ("cilium_call_policy", False),
        ("cilium_policy_00123", False),
    ],
)
def test_calls_maps_belong_to_one_object(name: str, own: bool) -> None:
    assert is_calls_map(name) is own


class Array:
    """A program array that a loaded program uses, as an attached entry program does: no descriptor of it is open."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        fd = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 8, name="calls")
        try:
            self.id = bpf.map_info(fd).id
            self.user = support.load_using(fd)
            stack.callback(os.close, self.user)
            bpf.map_update(fd, struct.pack("=I", 7), struct.pack("=I", self.user))
            bpf.obj_pin(fd, path)
        finally:
            os.close(fd)

    @property
    def filled(self) -> bool:
        return inventory.slots(self.id) == {7: support.program_id(self.user)}

    def wait_until_emptied(self) -> None:
        support.until(lambda: inventory.slots(self.id) == {}, f"map {self.id} emptied")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture
def pins(bpffs: Path) -> Path:
    """Return a directory in which nothing is pinned yet; the kernel puts files of its own into the root."""
    (bpffs / "globals").mkdir()
    return bpffs / "globals"


@pytest.fixture
def pin(pins: Path) -> Pin:
    return Pin(pins / NAME)


def names(pin: Pin) -> list[str]:
    return sorted(name.removeprefix(NAME) for name in os.listdir(pin.path.parent))


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


P, S, SS = ":pending", ":stale", ":stale:stale"


@pytest.mark.parametrize(
    ("there", "used", "after", "said"),
    [
        ([""], [""], {"": ""}, None),
        ([], [], {}, None),
        # Killed after the old map was moved aside, before a new one was pinned.
        ([P], [P], {"": P}, "restored"),
        # Nothing is attached: but this is the only map that there is.
        ([P], [], {"": P}, "restored"),
        # Killed before the first attach.
        (["", P], [P], {"": P}, "restored"),
        # Killed after the last attach: during the commit.
        (["", P], [""], {"": ""}, "removed"),
        (["", P], [], {"": ""}, "removed"),
        # Killed between two attaches: both are needed.
        (["", P], ["", P], {"": "", P: P}, "kept"),
        # A second kill while the reload that was to clean up did the same.
        (["", P, S], ["", S], {"": "", S: S}, "kept"),
        (["", P, S], ["", P], {"": "", P: P}, "kept"),
        (["", P, S], ["", P, S], {"": "", P: P, S: S}, "kept"),
        (["", P, S], [P, S], {"": P, S: S}, "restored"),
        (["", P, S], [P], {"": P}, "restored"),
        (["", P, S], [S], {"": S}, "restored"),
        (["", P, S], [""], {"": ""}, "removed"),
        # Killed between two renames of a repin or of a revert.
        (["", S], ["", S], {"": "", S: S}, "kept"),
        (["", S], [S], {"": S}, "restored"),
        (["", S], [""], {"": ""}, "removed"),
        ([P, S], [P, S], {"": P, S: S}, "restored"),
        (["", P, S, SS], ["", SS], {"": "", SS: SS}, "kept"),
        (["", P, S, SS], ["", P, S, SS], {"": "", P: P, S: S, SS: SS}, "kept"),
    ],
    ids=lambda value: "+".join(part or "pin" for part in value) or "none" if isinstance(value, list) else " ",
)
def test_recover(
    pin: Pin, stack: ExitStack, there: list[str], used: list[str], after: dict[str, str], said: str | None
) -> None:
    """`after` says which map is pinned where. None that is in use is ever emptied, all others are."""
    arrays = {suffix: Array(stack, pin.path.with_name(NAME + suffix)) for suffix in there}
    in_use = {arrays[suffix].id for suffix in used}
    done = pin.recover(in_use.__contains__)
    assert (done or "").startswith(said or ""), done
    assert (done is None) == (said is None)
    pinned = {suffix: map_id(pin.path.with_name(NAME + suffix)) for suffix in names(pin)}
    assert pinned == {suffix: arrays[origin].id for suffix, origin in after.items()}
    for suffix, array in arrays.items():
        if suffix not in after.values():
            array.wait_until_emptied()
    assert [suffix for suffix in used if not arrays[suffix].filled] == []
    again = pin.recover(in_use.__contains__)
    assert (again is None) == (said != "kept" and len(after) <= 1), f"a second look found: {again}"


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


def test_a_map_that_is_no_program_array_is_not_kept(pin: Pin, stack: ExitStack) -> None:
    """Its users hold all they need: after a kill between two attaches it is let go, as by the commit."""
    old, new = (bpf.map_create(MapType.HASH, 4, 4, 8) for _ in range(2))
    for fd, path in ((old, pin.pending), (new, pin.path)):
        stack.callback(os.close, fd)
        bpf.obj_pin(fd, path)
    wanted = bpf.map_info(new).id
    done = pin.recover(lambda _: True)
    assert (done or "").startswith("removed")
    assert names(pin) == [""]
    assert map_id(pin.path) == wanted


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


@pytest.mark.parametrize(("there", "after"), [(["", P], {"": ""}), ([P], {"": P}), (["", P, S], {"": ""})])
def test_recovery_keeps_every_policy_array(
    pins: Path, stack: ExitStack, there: list[str], after: dict[str, str]
) -> None:
    """Whether or not a program uses it: that takes more than a look at what is attached."""
    pin = Pin(pins / "cilium_call_policy")
    arrays = {suffix: Array(stack, Path(f"{pin.path}{suffix}")) for suffix in there}
    assert pin.recover(lambda _: False) is not None
    assert pin.leftovers() == []
    assert map_id(pin.path) == arrays[after[""]].id
    assert {map_id(path) for path in (pin.path, *pin.retired())} == {array.id for array in arrays.values()}
    assert all(array.filled for array in arrays.values())
    assert pin.recover(lambda _: False) is None


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
