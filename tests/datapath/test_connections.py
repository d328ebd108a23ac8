"""connections.py on real maps: what an endpoint's old programs have noted arrives in the maps of its new ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datapath import syscall
from datapath.connections import CONNECTIONS, carry_over, lifetime_of, remember, seconds
from datapath.maps import Map
from datapath.syscall import MapType

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

NAME = f"{CONNECTIONS}4_global"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def make(stack: ExitStack, *, kind: MapType = MapType.LRU_HASH, value: int = 56, entries: int = 64) -> Map:
    fd = syscall.map_create(kind, 14, value, entries, name=NAME)
    return stack.enter_context(Map(fd, NAME, syscall.map_info(fd)))


def put(target: Map, entries: dict[int, int]) -> None:
    """Write connections by a number of their own, each with its lifetime."""
    for number, lifetime in entries.items():
        value = struct.pack("<32xI", lifetime).ljust(target.info.value_size, b"\7")
        target.update(number.to_bytes(14, "big"), value)


def lifetimes(table: Map) -> dict[int, int]:
    return {int.from_bytes(key, "big"): lifetime_of(value) for key, value in table.items()}


def test_what_is_new_or_newer_is_carried_over(stack: ExitStack, tmp_path: Path) -> None:
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=128)
    now = seconds()
    remember(tmp_path, {NAME: old})
    put(old, {1: now + 60, 2: now + 90, 3: now + 30, 4: 1})
    put(new, {2: now + 60, 3: now + 60, 5: now + 60})
    carry_over(tmp_path, {NAME: new})
    assert lifetimes(new) == {1: now + 60, 2: now + 90, 3: now + 60, 5: now + 60}
    assert lifetimes(old) == {1: now + 60, 2: now + 90, 3: now + 30, 4: 1}
    remember(tmp_path, {NAME: new})
    put(old, {6: now + 60})
    carry_over(tmp_path, {NAME: new})
    assert 6 not in lifetimes(new), "its programs use the new one now"


def test_nothing_to_carry_over(stack: ExitStack, tmp_path: Path) -> None:
    """Never loaded; no map of connections; the same map; one of another layout; one that is gone."""
    new = make(stack)
    for maps in ({}, {"cilium_lxc": new}, {NAME: new}):
        carry_over(tmp_path, maps)
    remember(tmp_path, {"cilium_lxc": new})
    assert list(tmp_path.iterdir()) == []
    put(new, {1: seconds() + 60})
    remember(tmp_path, {NAME: new})
    carry_over(tmp_path, {NAME: new})
    wide = make(stack, value=64)
    carry_over(tmp_path, {NAME: wide})
    assert (len(lifetimes(new)), lifetimes(wide)) == (1, {})
    (tmp_path / "connections").write_text(json.dumps({NAME: (1 << 31) - 1}))
    carry_over(tmp_path, {NAME: new})
    assert len(lifetimes(new)) == 1


def test_a_table_without_room_takes_what_it_can(stack: ExitStack, tmp_path: Path) -> None:
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=8)
    remember(tmp_path, {NAME: old})
    put(old, dict.fromkeys(range(1, 33), seconds() + 60))
    carry_over(tmp_path, {NAME: new})
    assert len(lifetimes(new)) == 8
