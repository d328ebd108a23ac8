"""recovery.py on real program arrays: what killed reloads have left is put right, and no array in use is emptied."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.pins import Pin, map_id
from datapath.reload.recovery import put_right
from tests.datapath.pinned import NAME, SS, P, S, names
from tests.datapath.support import Array

pytestmark = pytest.mark.privileged


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
    done = put_right(pin, in_use.__contains__)
    assert (done or "").startswith(said or ""), done
    assert (done is None) == (said is None)
    pinned = {suffix: map_id(pin.path.with_name(NAME + suffix)) for suffix in names(pin)}
    assert pinned == {suffix: arrays[origin].id for suffix, origin in after.items()}
    for suffix, array in arrays.items():
        if suffix not in after.values():
            array.wait_until_emptied()
    assert [suffix for suffix in used if not arrays[suffix].filled] == []
    again = put_right(pin, in_use.__contains__)
    assert (again is None) == (said != "kept" and len(after) <= 1), f"a second look found: {again}"


@pytest.mark.parametrize(("there", "after"), [(["", P], {"": ""}), ([P], {"": P}), (["", P, S], {"": ""})])
def test_recovery_keeps_every_policy_array(
    pins: Path, stack: ExitStack, there: list[str], after: dict[str, str]
) -> None:
    """Whether or not a program uses it: that takes more than a look at what is attached."""
    pin = Pin(pins / "cilium_call_policy")
    arrays = {suffix: Array(stack, Path(f"{pin.path}{suffix}")) for suffix in there}
    assert put_right(pin, lambda _: False) is not None
    assert pin.leftovers() == []
    assert map_id(pin.path) == arrays[after[""]].id
    assert {map_id(path) for path in (pin.path, *pin.retired())} == {array.id for array in arrays.values()}
    assert all(array.filled for array in arrays.values())
    assert put_right(pin, lambda _: False) is None


def test_a_map_that_is_no_program_array_is_not_kept(pin: Pin, stack: ExitStack) -> None:
    """Its users hold all they need: after a kill between two attaches it is let go, as by the commit."""
    old, new = (bpf.map_create(MapType.HASH, 4, 4, 8) for _ in range(2))
    for fd, path in ((old, pin.pending), (new, pin.path)):
        stack.callback(os.close, fd)
        bpf.obj_pin(fd, path)
    wanted = bpf.map_info(new).id
    done = put_right(pin, lambda _: True)
    assert (done or "").startswith("removed")
    assert names(pin) == [""]
    assert map_id(pin.path) == wanted


@pytest.mark.parametrize("name", ["cilium_policy_00101", "cilium_policy_v2_00101", "cilium_cidr_v4_dyn"])
def test_a_map_that_is_written_for_the_programs_that_use_it_is_kept(pins: Path, stack: ExitStack, name: str) -> None:
    """By its pin alone the control plane finds it."""
    pin = Pin(pins / name)
    for path in (pin.pending, pin.path):
        fd = bpf.map_create(MapType.HASH, 4, 4, 8)
        stack.callback(os.close, fd)
        bpf.obj_pin(fd, path)
    there = {path: map_id(path) for path in (pin.pending, pin.path)}
    assert (put_right(pin, lambda _: True) or "").startswith(f"kept {pin.pending.name}")
    assert {path: map_id(path) for path in there} == there
    assert (put_right(pin, {there[pin.path]}.__contains__) or "").startswith("removed")
