"""connections.py on real maps: what an endpoint's old programs have noted arrives in the maps of its new ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.bpftypes import MapType
from datapath.kernel import bpf
from datapath.load.maps import Map
from datapath.reload.connections import CONNECTIONS, carry_over, lifetime_of, owner, remember, seconds
from tests.datapath.build.test_headers import HOST, NODE, POD

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

NAME = f"{CONNECTIONS}4_global"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def make(stack: ExitStack, *, kind: MapType = MapType.LRU_HASH, value: int = 56, entries: int = 64) -> Map:
    fd = bpf.map_create(kind, 14, value, entries, name=NAME)
    return stack.enter_context(Map(fd, NAME, bpf.map_info(fd)))


OWN, OTHER = b"\x0a\0\0\1", b"\x0a\0\0\2"
owns = OWN.__eq__


def put(target: Map, entries: dict[int, int], *, packets: int = 1, own: bytes = OWN, incoming: bool = False) -> None:
    """Write connections by a port of their own, each with its lifetime; `own` is whose entry it is."""
    for port, lifetime in entries.items():
        value = struct.pack("<Q8xQ8xI", packets, 0, lifetime).ljust(target.info.value_size, b"\7")
        addresses = OTHER + own if incoming else own + OTHER
        target.update(addresses + struct.pack(">HHBB", port, 80, 17, incoming), value)


def lifetimes(table: Map) -> dict[int, int]:
    return {int.from_bytes(key[8:10], "big"): lifetime_of(value) for key, value in table.items()}


def test_what_is_new_or_later_is_carried_over(stack: ExitStack, tmp_path: Path) -> None:
    """What has closed may live shorter than the state before: the one that has seen more packets is the later."""
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=128)
    now = seconds()
    remember(tmp_path, {NAME: old})
    put(old, {1: now + 60, 4: 1})
    put(old, {2: now + 30, 3: now + 90}, packets=5)
    put(new, {2: now + 60, 5: now + 60})
    put(new, {3: now + 30}, packets=6)
    assert carry_over(tmp_path, {NAME: new}, owns) == {}
    assert lifetimes(new) == {1: now + 60, 2: now + 30, 3: now + 30, 5: now + 60}
    assert lifetimes(old) == {1: now + 60, 2: now + 30, 3: now + 90, 4: 1}
    remember(tmp_path, {NAME: new})
    put(old, {6: now + 60})
    carry_over(tmp_path, {NAME: new}, owns)
    assert 6 not in lifetimes(new), "its programs use the new one now"


def test_those_of_others_are_left_alone(stack: ExitStack, tmp_path: Path) -> None:
    """Others may have closed theirs since, or be gone: an entry belongs to whose address comes where its kind says."""
    old, new = make(stack), make(stack)
    remember(tmp_path, {NAME: old})
    for port, own, incoming in ((1, OWN, False), (2, OWN, True), (3, OTHER, False), (4, OTHER, True)):
        put(old, {port: seconds() + 60}, own=own, incoming=incoming)
    carry_over(tmp_path, {NAME: new}, owns)
    assert lifetimes(new).keys() == {1, 2}


def test_whose_an_address_is() -> None:
    """The host has all that are no pod's, of which there may be many."""
    addresses = [
        POD.ipv4,
        POD.ipv6,
        NODE.router_ipv4,
        NODE.router_ipv6,
        IPv4Address("172.20.0.1"),
        IPv6Address("fe80::1"),
    ]
    for endpoint, wanted in ((POD, addresses[:2]), (HOST, addresses[2:]), (None, addresses[2:])):
        assert [each for each in addresses if each and owner(NODE, endpoint)(each.packed)] == wanted
    neighbour = IPv4Address(int(NODE.router_ipv4) + 77)
    assert not owner(NODE, POD)(neighbour.packed)
    assert not owner(NODE, HOST)(neighbour.packed)


def test_nothing_to_carry_over(stack: ExitStack, tmp_path: Path) -> None:
    """Never loaded; no map of connections; the same map; one of another layout; one that is gone."""
    new = make(stack)
    for maps in ({}, {"cilium_lxc": new}, {NAME: new}):
        carry_over(tmp_path, maps, owns)
    remember(tmp_path, {"cilium_lxc": new})
    assert list(tmp_path.iterdir()) == []
    put(new, {1: seconds() + 60})
    remember(tmp_path, {NAME: new})
    carry_over(tmp_path, {NAME: new}, owns)
    wide = make(stack, value=64)
    carry_over(tmp_path, {NAME: wide}, owns)
    assert (len(lifetimes(new)), lifetimes(wide)) == (1, {})
    (tmp_path / "connections").write_text(json.dumps({NAME: (1 << 31) - 1}))
    carry_over(tmp_path, {NAME: new}, owns)
    assert len(lifetimes(new)) == 1


def test_a_table_without_room_takes_what_it_can(stack: ExitStack, tmp_path: Path) -> None:
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=8)
    remember(tmp_path, {NAME: old})
    put(old, dict.fromkeys(range(1, 33), seconds() + 60))
    assert carry_over(tmp_path, {NAME: new}, owns) == {NAME: 24}
    assert len(lifetimes(new)) == 8
