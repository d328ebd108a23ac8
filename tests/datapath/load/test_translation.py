"""Connections of recorded releases in the layout of others: what both know stays, the rest begins at 0."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from datapath.kernel.map import Map
from datapath.load.content import can_copy, copy
from datapath.load.translation import translation
from lab.abi import tables
from lab.abi.conntrack import CtEntry, CtTuple
from tests.lab.abi.kernelmaps import create
from tests.lab.abi.recorded import layouts_of, releases

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

CT, OURS = "cilium_ct4_global", "1.14-4093531"
KEY = CtTuple(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 4000, 80, 6)
ENTRY = CtEntry(
    rx_packets=3, rx_length=300, tx_packets=4, tx_length=400, lifetime=900, flags=1 | 16 | 1024, tx_flags_seen=0x12,
    rx_flags_seen=0x11, src_sec_id=0x01020304, last_tx_report=7, last_rx_report=8,
)  # fmt: skip
COUNTERS = ("rx_packets", "rx_length", "tx_packets", "tx_length", "packets", "length")


def made(release: str | None) -> Map:
    """Create a table of a release, or one of our own sources, of which the kernel knows no types."""
    return create(CT, layouts_of(release or OURS)["cilium_ct_tcp4"], told=release is not None)


def with_entry(table: Map) -> None:
    layout = tables.CONNECTIONS.of(table)
    table.update(layout.key.pack(KEY), layout.value.pack(ENTRY))


def read(table: Map) -> dict[CtTuple, CtEntry]:
    return dict(tables.CONNECTIONS.of(table).items(table))


def without_counters(entry: CtEntry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in CtEntry.__slots__ if name not in COUNTERS}


@pytest.mark.parametrize("new", [None, *releases()])
@pytest.mark.parametrize("old", [None, *releases()])
def test_a_connection_stays_the_same(old: str | None, new: str | None) -> None:
    """Whoever made it, and whoever is to know it: until when, which flags, whose. Counters stay where they are known.

    Those of 1.14 and 1.15 are by direction, those from 1.16 on are not.
    """
    with made(old) as source, made(new) as target:
        with_entry(source)
        assert can_copy(source, target)
        assert copy(source, target) == 0
        before, after = read(source), read(target)
        assert before.keys() == after.keys() == {KEY}
        assert without_counters(after[KEY]) == without_counters(before[KEY]) == without_counters(ENTRY)
        if (before[KEY].packets is None) == (after[KEY].packets is None):
            assert after[KEY].tx_packets == before[KEY].tx_packets
        else:
            assert not any(getattr(after[KEY], name) for name in COUNTERS)


@pytest.mark.parametrize(("old", "new"), [("1.15.12", "1.16.5"), ("1.16.5", "1.15.12")])
def test_what_shares_its_place_is_left_out(old: str, new: str) -> None:
    """Received bytes are no backend, nor the other way round: the same 8 bytes may be either in 1.15."""
    with made(old) as source, made(new) as target:
        source.update(tables.CONNECTIONS.of(source).key.pack(KEY), struct.pack("<QQ40x", 1, 2))
        copy(source, target)
        assert [value[:16] for _, value in target.items()] == [bytes(16)]


def test_other_maps_and_other_keys_are_not_translated() -> None:
    with made("1.15.12") as v4, create("cilium_ct6_global", layouts_of("1.16.5")["cilium_ct_tcp6"]) as v6:
        assert translation("cilium_ct4_global", v4.info, v6.info) is None
        assert translation("cilium_policy_00101", v4.info, v4.info) is None
        assert not can_copy(v4, v6)
        with pytest.raises(ValueError, match="cilium_ct6_global"):
            copy(v4, v6)


@pytest.mark.parametrize("choose", [lambda old, new: (old, new), lambda old, new: (new, old)], ids=["there", "back"])
def test_a_longer_entry_takes_what_it_knows(choose: Callable[[Map, Map], tuple[Map, Map]]) -> None:
    """A table of our own sources may have entries with words appended."""
    key, value = layouts_of(OURS)["cilium_ct_tcp4"]
    longer = (key, type(value)(value.struct, value.size + 8, value.fields))
    with create(CT, longer, told=False) as wide, made("1.16.5") as other:
        source, target = choose(wide, other)
        with_entry(source)
        assert copy(source, target) == 0
        assert without_counters(read(target)[KEY]) == without_counters(ENTRY)
