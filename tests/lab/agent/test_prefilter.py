"""prefilter.py: which prefixes a node denies, on its disk and in real maps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import CIDR4_DYN, CIDR4_FIX, CIDR6_DYN, CIDR6_FIX, CIDR_MAPS
from datapath.base.statefile import DamagedFile
from datapath.errors import BpfError
from datapath.kernel import bpf
from datapath.kernel.map import open_pin
from lab.abi.layouts import LPM_V4_KEY, LPM_V6_KEY, LPM_VAL, cidr_key
from lab.agent import prefilter
from lab.agent.prefilter import BadPrefix, parse
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from tests.lab.labs import unique_name

BPF_F_NO_PREALLOC = 1
ROOM = 3
"""Entries of each map."""
OF_EACH = {
    "192.0.2.0/24": CIDR4_DYN,
    "192.0.2.7": CIDR4_FIX,
    "0.0.0.0/0": CIDR4_DYN,
    "2001:db8::/32": CIDR6_DYN,
    "2001:db8::7/128": CIDR6_FIX,
}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(NodeSpec(unique_name("deny"), pods=0)) as made:
        yield made


@pytest.fixture
def pins(node: Node) -> Iterator[Path]:
    """Pin the four maps, empty, as an object of XDP declares them."""
    directory = node.datapath_config().globals
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name in CIDR_MAPS:
            key = LPM_V4_KEY if name in (CIDR4_DYN, CIDR4_FIX) else LPM_V6_KEY
            kind = MapType.LPM_TRIE if name in (CIDR4_DYN, CIDR6_DYN) else MapType.HASH
            fd = bpf.map_create(kind, key.size, LPM_VAL.size, ROOM, flags=BPF_F_NO_PREALLOC)
            stack.callback((directory / name).unlink)
            bpf.obj_pin(fd, directory / name)
            os.close(fd)
        yield directory
    prefilter.store(node, ())


def denied(pins: Path) -> dict[str, set[bytes]]:
    """Return the keys of each map that has any."""
    found = {}
    for name in CIDR_MAPS:
        with open_pin(pins / name) as opened:
            found[name] = set(opened.keys())
    return {name: keys for name, keys in found.items() if keys}


def set_denied(node: Node, pins: Path, *texts: str) -> None:
    prefilter.store(node, parse(texts))
    prefilter.sync(node, pins)


@pytest.mark.parametrize("text", ["", "192.0.2.1/24", "192.0.2.0/33", "example.org", "2001:db8::1/32"])
def test_what_is_no_prefix_is_one_line(text: str) -> None:
    with pytest.raises(BadPrefix) as caught:
        parse(["192.0.2.0/24", text])
    assert str(caught.value).startswith(f"{text!r} is not a prefix such as 192.0.2.0/24: ")
    assert "\n" not in str(caught.value)


def test_a_prefix_is_denied_once() -> None:
    first, second = parse(["192.0.2.0/24", "2001:db8::/32"])
    assert prefilter.add((first,), (second, first, second)) == (first, second)


def test_a_prefix_that_is_not_denied_cannot_be_allowed() -> None:
    first, second = parse(["192.0.2.0/24", "192.0.2.0/25"])
    assert prefilter.remove((first, second), (first,)) == (second,)
    with pytest.raises(BadPrefix, match=r"^192\.0\.2\.0/25 is not denied$"):
        prefilter.remove((first,), (second,))


def test_one_change_denies_and_allows() -> None:
    """In this order: a prefix in the place of a wider one leaves no room between them; the same in both is refused."""
    wide, narrow, other = parse(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"])
    assert prefilter.changed((wide,), (narrow,), (wide,)) == (narrow,)
    with pytest.raises(BadPrefix, match=r"^10\.1\.0\.0/16 is to be denied and to be allowed: name it once$"):
        prefilter.changed((wide,), (narrow,), (narrow,))
    with pytest.raises(BadPrefix, match=r"^192\.0\.2\.0/24 is not denied$"):
        prefilter.changed((wide,), (narrow,), (other,))


def test_more_prefixes_than_a_map_has_room_for_are_refused() -> None:
    """Of each kind by itself: those of another family or length are in other maps."""
    whole = tuple(ip_network(0x0A000000 + number) for number in range(prefilter.MOST))
    others = parse(["192.0.2.0/24", "2001:db8::7"])
    assert len(prefilter.add(whole, others)) == prefilter.MOST + 2
    with pytest.raises(BadPrefix, match=rf"^{prefilter.MOST + 1} prefixes do not fit into {CIDR4_FIX}, which has room"):
        prefilter.add(whole, parse(["192.0.2.7"]))


@pytest.mark.privileged
def test_a_prefix_is_in_the_map_of_its_family_and_length(node: Node, pins: Path) -> None:
    for text, name in OF_EACH.items():
        set_denied(node, pins, text)
        assert denied(pins) == {name: {cidr_key(ip_network(text))}}


@pytest.mark.privileged
def test_the_maps_are_brought_in_line_with_what_is_stored(node: Node, pins: Path) -> None:
    """What is new comes, what is stale goes, whoever has put it there; what stays is not touched meanwhile."""
    set_denied(node, pins, *OF_EACH)
    assert {name for name, keys in denied(pins).items() for _ in keys} == set(CIDR_MAPS)
    kept, new = ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")
    with open_pin(pins / CIDR4_DYN) as opened:
        opened.update(cidr_key(kept), b"\1")
        opened.update(cidr_key(ip_network("203.0.113.0/24")), bytes(1))
        opened.delete(cidr_key(ip_network("0.0.0.0/0")))
        set_denied(node, pins, str(kept), str(new))
        assert opened.lookup(cidr_key(kept)) == b"\1"
    assert denied(pins) == {CIDR4_DYN: {cidr_key(kept), cidr_key(new)}}
    set_denied(node, pins)
    assert denied(pins) == {}


@pytest.mark.privileged
def test_what_does_not_fit_allows_nothing_that_was_denied(node: Node, pins: Path) -> None:
    """A map that is smaller than ours is full: what was denied before is so still."""
    before = [f"192.0.2.{number}" for number in range(ROOM)]
    set_denied(node, pins, *before)
    with pytest.raises(BpfError):
        set_denied(node, pins, "192.0.2.200")
    assert denied(pins) == {CIDR4_FIX: {cidr_key(ip_network(text)) for text in before}}


@pytest.mark.privileged
def test_nothing_is_allowed_before_all_is_denied(node: Node, pins: Path) -> None:
    """Also if they are in different maps: where the new ones do not fit, the old one is still there."""
    set_denied(node, pins, "192.0.2.0/24")
    with pytest.raises(BpfError):
        set_denied(node, pins, *(f"192.0.2.{number}" for number in range(ROOM + 1)))
    assert denied(pins)[CIDR4_DYN] == {cidr_key(ip_network("192.0.2.0/24"))}


@pytest.mark.privileged
def test_a_map_that_a_killed_reload_has_moved_aside_is_written_as_well(node: Node, pins: Path) -> None:
    """Programs may use it; what does not fit there does not fail what fits elsewhere."""
    aside = pins / f"{CIDR4_FIX}:pending"
    (pins / CIDR4_FIX).rename(aside)
    fd = bpf.map_create(MapType.HASH, LPM_V4_KEY.size, LPM_VAL.size, ROOM + 1, flags=BPF_F_NO_PREALLOC)
    bpf.obj_pin(fd, pins / CIDR4_FIX)
    os.close(fd)
    try:
        for number in (1, 2, ROOM + 1):
            texts = [f"192.0.2.{last}" for last in range(number)]
            set_denied(node, pins, *texts)
            with open_pin(aside) as opened:
                assert len(set(opened.keys())) == min(number, ROOM)
            assert len(denied(pins)[CIDR4_FIX]) == number
    finally:
        aside.unlink()


@pytest.mark.privileged
def test_a_node_without_the_maps_keeps_what_it_denies(node: Node, pins: Path) -> None:
    set_denied(node, pins.with_name("elsewhere"), *OF_EACH)
    assert denied(pins) == {}
    assert prefilter.stored(Node.open(node.name)) == parse(OF_EACH)
    assert dict(prefilter.entries(CIDR6_FIX, node)) == {cidr_key(ip_network("2001:db8::7")): bytes(1)}


@pytest.mark.privileged
@pytest.mark.parametrize("content", ['["192.0.2.1/24"]', "[7]", "{", '"192.0.2.0/24"'])
def test_a_damaged_file_is_named(node: Node, content: str) -> None:
    path = node.root / registry.STATE / "prefilter.json"
    path.write_text(content)
    try:
        with pytest.raises(DamagedFile, match=str(path)):
            prefilter.stored(node)
    finally:
        path.unlink()
    assert prefilter.stored(node) == ()
