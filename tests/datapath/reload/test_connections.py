"""connections.py on real maps: what an endpoint's old programs have noted arrives in the maps of its new ones."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import CONNECTIONS, WRITTEN_BY_PACKETS
from datapath.base.statefile import DamagedFile
from datapath.kernel import bpf
from datapath.kernel.map import Map
from datapath.reload.connections import carry_over, lifetime_of, merged, owner, remember, remembered, seconds
from tests.datapath.values import HOST, NODE, POD
from tests.lab.abi.kernelmaps import create
from tests.lab.abi.recorded import layouts_of

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

NAME = f"{CONNECTIONS}4_global"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def make(
    stack: ExitStack, *, kind: MapType = MapType.LRU_HASH, value: int = 56, entries: int = 64, name: str = NAME
) -> Map:
    return stack.enter_context(Map.of(bpf.map_create(kind, 14, value, entries, name=name), name))


OWN, OTHER = b"\x0a\0\0\1", b"\x0a\0\0\2"
owns = OWN.__eq__


RX_CLOSING, TX_CLOSING, SEEN_NON_SYN = 1, 2, 16
OPEN = SEEN_NON_SYN


def state(lifetime: int, bits: int = OPEN, *, rx: int = 1, tx: int = 0, flags: tuple[int, int] = (0, 0)) -> bytes:
    """Return a struct ct_entry; of each packet 100 bytes."""
    return struct.pack("<4QI3H2B3I", rx, 100 * rx, tx, 100 * tx, lifetime, bits, 0, 0, *flags, 7, 0, 0)


def put(target: Map, entries: dict[int, int], *, packets: int = 1, own: bytes = OWN, incoming: bool = False) -> None:
    """Write connections by a port of their own, each with its lifetime; `own` is whose entry it is."""
    for port, lifetime in entries.items():
        value = state(lifetime, rx=packets).ljust(target.info.value_size, b"\7")
        addresses = OTHER + own if incoming else own + OTHER
        target.update(addresses + struct.pack(">HHBB", port, 80, 17, incoming), value)


def lifetimes(table: Map) -> dict[int, int]:
    return {int.from_bytes(key[8:10], "big"): lifetime_of(value) for key, value in table.items()}


@pytest.mark.parametrize("known", [True, False], ids=["coarse", "exact"])
def test_time_is_that_of_the_clock_that_programs_read(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def now(clock: int) -> int:
        asked.append(clock)
        return 7_999_999_999

    monkeypatch.setattr("datapath.reload.connections.is_known", lambda helper: helper == 160 and known)
    monkeypatch.setattr("time.clock_gettime_ns", now)
    assert seconds() == 7
    assert asked == [6 if known else time.CLOCK_MONOTONIC]  # 6 is CLOCK_MONOTONIC_COARSE


def test_what_is_new_or_later_is_carried_over(stack: ExitStack, tmp_path: Path) -> None:
    """Of an open connection that both maps know the later lifetime, and the packets of the one that has seen more."""
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=128)
    now = seconds()
    remember(tmp_path, [{NAME: old}], {})
    put(old, {1: now + 60, 4: 1})
    put(old, {2: now + 30, 3: now + 90}, packets=5)
    put(new, {2: now + 60, 5: now + 60})
    put(new, {3: now + 30}, packets=6)
    assert carry_over(remembered(tmp_path), {NAME: new}, owns) == {}
    assert lifetimes(new) == {1: now + 60, 2: now + 60, 3: now + 90, 5: now + 60}
    assert {state[0] for state in (struct.unpack_from("<Q", v) for _, v in new.items())} == {1, 5, 6}
    assert lifetimes(old) == {1: now + 60, 2: now + 30, 3: now + 90, 4: 1}
    remember(tmp_path, [{NAME: new}], {})
    put(old, {6: now + 60})
    carry_over(remembered(tmp_path), {NAME: new}, owns)
    assert 6 not in lifetimes(new), "its programs use the new one now"


FIN, SYN, RST, ACK = 1, 2, 4, 16
CLOSED = OPEN | RX_CLOSING | TX_CLOSING


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        # Each end's FIN was seen by another program: the connection is closed, and lives as long as a closed one.
        (
            state(900, OPEN | TX_CLOSING, rx=3, tx=5, flags=(FIN | ACK, ACK)),
            state(900, OPEN | RX_CLOSING, rx=4, tx=4, flags=(ACK, FIN | ACK)),
            state(110, CLOSED, rx=4, tx=5, flags=(FIN | ACK, FIN | ACK)),
        ),
        # One end has closed, and more packets went by in the other map.
        (
            state(800, OPEN | TX_CLOSING, rx=3, tx=5, flags=(FIN | ACK, ACK)),
            state(900, OPEN, rx=9, tx=4, flags=(ACK, ACK)),
            state(900, OPEN | TX_CLOSING, rx=9, tx=5, flags=(FIN | ACK, ACK)),
        ),
        # One map has seen both ends: it knows how long.
        (state(105, CLOSED, rx=3, tx=5), state(900, OPEN, rx=9, tx=4), state(105, CLOSED, rx=9, tx=5)),
        (
            state(105, CLOSED, flags=(RST, 0)),
            state(108, CLOSED, flags=(0, RST)),
            state(108, CLOSED, flags=(RST, RST)),
        ),
        # A handshake of which one map has seen the SYN alone.
        (
            state(160, 0, rx=0, tx=1, flags=(SYN, 0)),
            state(900, OPEN, rx=1, tx=2),
            state(900, OPEN, rx=1, tx=2, flags=(SYN, 0)),
        ),
        # The ports of a closed connection are used again: that is another one, with fewer packets.
        (
            state(110, CLOSED, rx=50, tx=50, flags=(FIN | ACK, FIN | ACK)),
            state(160, 0, rx=0, tx=1, flags=(SYN, 0)),
            state(160, 0, rx=0, tx=1, flags=(SYN, 0)),
        ),
    ],
    ids=["a FIN in each", "a FIN in one", "closed in one", "reset in both", "handshake", "begun anew"],
)
def test_two_states_of_a_connection_are_merged(old: bytes, new: bytes, both: bytes) -> None:
    """Whichever map has which: flags that were seen stay seen."""
    assert merged(old, new, 100) == merged(new, old, 100) == both
    assert merged(both, old, 100) == merged(both, new, 100) == both


def test_a_build_with_a_longer_state_keeps_what_it_appends(stack: ExitStack) -> None:
    one, other = state(900, rx=2) + b"more", state(900, OPEN | TX_CLOSING) + b"less"
    assert merged(one, other, 100) == state(900, OPEN | TX_CLOSING, rx=2) + b"more"


def test_a_fin_that_the_old_programs_have_seen_is_carried_over(stack: ExitStack, tmp_path: Path) -> None:
    """Although more packets went by the new ones."""
    old, new = make(stack), make(stack)
    remember(tmp_path, [{NAME: old}], {})
    key, now = OWN + OTHER + struct.pack(">HHBB", 1, 80, 6, 0), seconds()
    old.update(key, state(now + 900, OPEN | TX_CLOSING, rx=4, tx=4, flags=(FIN | ACK, ACK)))
    new.update(key, state(now + 900, OPEN, rx=9, tx=3, flags=(ACK, ACK)))
    carry_over(remembered(tmp_path), {NAME: new}, owns)
    assert new.lookup(key) == state(now + 900, OPEN | TX_CLOSING, rx=9, tx=4, flags=(FIN | ACK, ACK))


@pytest.mark.parametrize("name", [name for name in WRITTEN_BY_PACKETS if name != CONNECTIONS])
def test_what_packets_note_in_other_maps_is_carried_over(stack: ExitStack, tmp_path: Path, name: str) -> None:
    """What the new map lacks, whosever it is; what the new programs have noted stays. Other maps are left alone."""
    old, new = make(stack, name=name), make(stack, name=name)
    remember(tmp_path, [{name: old, "cilium_lxc": old}], {})
    for number, value in ((1, b"old"), (2, b"old")):
        old.update(bytes([number]) * 14, value.ljust(56, b"\0"))
    new.update(bytes([2]) * 14, b"new".ljust(56, b"\0"))
    assert carry_over(remembered(tmp_path), {name: new, "cilium_lxc": new}, owns) == {}
    assert {key[0]: value[:3] for key, value in new.items()} == {1: b"old", 2: b"new"}


def test_those_of_others_are_left_alone(stack: ExitStack, tmp_path: Path) -> None:
    """Others may have closed theirs since, or be gone: an entry belongs to whose address comes where its kind says."""
    old, new = make(stack), make(stack)
    remember(tmp_path, [{NAME: old}], {})
    for port, own, incoming in ((1, OWN, False), (2, OWN, True), (3, OTHER, False), (4, OTHER, True)):
        put(old, {port: seconds() + 60}, own=own, incoming=incoming)
    carry_over(remembered(tmp_path), {NAME: new}, owns)
    assert lifetimes(new).keys() == {1, 2}


def test_whose_an_address_is() -> None:
    """The host has all that are no pod's, of which there may be many; some are everybody's."""
    addresses = [
        POD.ipv4,
        POD.ipv6,
        NODE.router_ipv4,
        NODE.router_ipv6,
        IPv4Address("172.20.0.1"),
        IPv6Address("fe80::1"),
        IPv6Address("ff02::16"),
    ]
    pod = [*addresses[:2], *addresses[-2:]]
    for endpoint, wanted in ((POD, pod), (HOST, addresses[2:]), (None, addresses[2:])):
        assert [each for each in addresses if each and owner(NODE, endpoint)(each.packed)] == wanted
    neighbour = IPv4Address(int(NODE.router_ipv4) + 77)
    assert not owner(NODE, POD)(neighbour.packed)
    assert not owner(NODE, HOST)(neighbour.packed)


def test_nothing_to_carry_over(stack: ExitStack, tmp_path: Path) -> None:
    """Never loaded; no map of connections; the same map; one of another layout; one that is gone."""
    new = make(stack)
    for maps in ({}, {"cilium_lxc": new}, {NAME: new}):
        carry_over(remembered(tmp_path), maps, owns)
    remember(tmp_path, [{"cilium_lxc": new}], {})
    assert list(tmp_path.iterdir()) == []
    put(new, {1: seconds() + 60})
    remember(tmp_path, [{NAME: new}], {})
    carry_over(remembered(tmp_path), {NAME: new}, owns)
    wide = make(stack, value=64)
    carry_over(remembered(tmp_path), {NAME: wide}, owns)
    assert (len(lifetimes(new)), lifetimes(wide)) == (1, {})
    (tmp_path / "connections").write_text(json.dumps({NAME: (1 << 31) - 1}))
    carry_over(remembered(tmp_path), {NAME: new}, owns)
    assert len(lifetimes(new)) == 1


def test_a_table_without_room_takes_what_it_can(stack: ExitStack, tmp_path: Path) -> None:
    old, new = make(stack), make(stack, kind=MapType.HASH, entries=8)
    remember(tmp_path, [{NAME: old}], {})
    put(old, dict.fromkeys(range(1, 33), seconds() + 60))
    assert carry_over(remembered(tmp_path), {NAME: new}, owns) == {NAME: 24}
    assert len(lifetimes(new)) == 8


@pytest.mark.parametrize(("before", "after"), [(None, "1.16.5"), ("1.16.5", None), ("1.15.12", "1.16.5")])
def test_a_connection_of_another_release_is_carried_over(
    stack: ExitStack, tmp_path: Path, before: str | None, after: str | None
) -> None:
    """Of two that both tables know, what either has seen is seen, and the later lifetime counts."""
    old, new = (stack.enter_context(of_release(release)) for release in (before, after))
    remember(tmp_path, [{NAME: old}], {})
    now = seconds()
    put(old, {1: now + 60, 2: now + 90})
    put(new, {2: now + 60})
    assert carry_over(remembered(tmp_path), {NAME: new}, owns) == {}
    assert lifetimes(new) == {1: now + 60, 2: now + 90}


def of_release(release: str | None) -> Map:
    """Create a table of a release's layout; None: of our own, of which the kernel knows no types."""
    return create(NAME, layouts_of(release or "1.14-4093531")["cilium_ct_tcp4"], told=release is not None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"NAME": "x"}', '{"NAME": -1}', '{"NAME": 4294967296}'])
def test_a_damaged_note_is_an_error_and_is_written_anew(stack: ExitStack, tmp_path: Path, content: str) -> None:
    new = make(stack)
    path = tmp_path / "connections"
    path.write_text(content.replace("NAME", NAME))
    with pytest.raises(DamagedFile, match="connections is damaged"):
        remembered(tmp_path)
    remember(tmp_path, [{NAME: new}], None)
    assert json.loads(path.read_text()) == {NAME: new.info.id}
    carry_over(remembered(tmp_path), {NAME: new}, owns)


def test_objects_of_one_directory_are_noted_together(stack: ExitStack, tmp_path: Path) -> None:
    """The host's objects share one: an object without such maps, or with some of them, hides no other's."""
    first, second = make(stack), make(stack)
    other = f"{NAME}_any"
    remember(tmp_path, [{NAME: first, other: second}, {other: second}, {}], {})
    assert remembered(tmp_path) == {NAME: first.info.id, other: second.info.id}
