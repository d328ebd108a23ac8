"""Pinned maps of recorded releases under objects of others: what is of equal size is no equal map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datapath.errors import MapIncompatible
from datapath.kernel.map import Map
from datapath.load.content import can_copy
from datapath.load.layout import is_compared, layout_differences
from datapath.load.maps import MapSet, differences, open_maps
from datapath.load.types import TypeStore
from datapath.object.spec import CollectionSpec
from tests.lab.abi import kernelmaps
from tests.lab.abi.kernelmaps import create
from tests.lab.abi.recorded import Layout, layouts_of, releases

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

POLICY, CT = "cilium_policy_00101", "cilium_ct4_global"
RECORDED = {POLICY: "cilium_policy", CT: "cilium_ct_tcp4"}
OURS = "1.14-4093531"


def layout_of(release: str, name: str) -> Layout:
    return layouts_of(release)[RECORDED.get(name, name)]


def object_of(release: str, name: str) -> CollectionSpec:
    """Return an object that defines one map as that release does."""
    return kernelmaps.object_of(release, name, RECORDED.get(name, name))


def untold(release: str, name: str) -> CollectionSpec:
    """Return an object that says nothing of the types."""
    spec = object_of(release, name)
    return replace(spec, maps={name: replace(spec.maps[name], key_type=0, value_type=0)}, btf=b"")


def opened(spec: CollectionSpec, pins: Path, *, tell: bool) -> MapSet:
    """Open or make the maps of an object, of which the kernel is told all types or none, and pin them."""
    with TypeStore(all_maps=tell) as types:
        maps = open_maps(spec, pins, types=types)
        try:
            maps.pin_created()
        except BaseException:
            maps.close()
            raise
        return maps


def fields_refused(pins: Path, spec: CollectionSpec, *, tell: bool) -> dict[str, tuple[int | str, int | str]]:
    """Open the pinned maps, which must be refused; return the differences by field."""
    with pytest.raises(MapIncompatible) as caught:
        opened(spec, pins, tell=tell).close()
    return {each.field: (each.pinned, each.wanted) for each in caught.value.differences}


@pytest.mark.parametrize(
    ("before", "after", "name", "field", "places"),
    [
        (OURS, "1.16.5", POLICY, "value.lpm_prefix_length", ("nowhere", "at bit 19 (5 bits)")),
        ("1.15.12", "1.16.5", POLICY, "value.lpm_prefix_length", ("nowhere", "at bit 19 (5 bits)")),
        ("1.16.5", OURS, POLICY, "value.lpm_prefix_length", ("at bit 19 (5 bits)", "nowhere")),
        (OURS, "1.15.12", "cilium_lxc", "value.sec_id", ("nowhere", "at bit 256 (32 bits)")),
    ],
)
@pytest.mark.parametrize("tell", [True, False], ids=["told", "of our own sources"])
def test_other_fields_of_equal_size_are_refused(
    before: str, after: str, name: str, field: str, places: tuple[str, str], tell: bool, pins: Path
) -> None:
    with create(name, layout_of(before, name)) as pinned:
        pinned.pin(pins / name)
        spec = object_of(after, name)
        assert differences(spec.maps[name], pinned.info) == []
        assert fields_refused(pins, spec, tell=tell)[field] == places


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("tell", [True, False], ids=["told", "of our own sources"])
def test_a_map_of_the_same_fields_is_reused(name: str, tell: bool, pins: Path) -> None:
    with create(name, layout_of("1.16.5", name)) as pinned:
        pinned.pin(pins / name)
        maps = opened(object_of("1.16.5", name), pins, tell=tell)
        assert (maps.created, maps.maps[name].info.id) == (set(), pinned.info.id)
        maps.close()


@pytest.mark.parametrize("after", releases())
@pytest.mark.parametrize("before", [None, *releases()])
def test_connections_of_all_releases_lie_at_the_same_places(before: str | None, after: str, pins: Path) -> None:
    """So their tables are reused, those of our own sources as well, and no connection is forgotten."""
    with made(CT, before) as pinned, made(CT, after) as other:
        pinned.pin(pins / CT)
        maps = opened(object_of(after, CT), pins, tell=True)
        assert (maps.created, maps.maps[CT].info.id) == (set(), pinned.info.id)
        maps.close()
        assert can_copy(pinned, other)
        assert can_copy(other, pinned)


@pytest.mark.parametrize("field", ["lifetime", "rx_closing"])
def test_a_connection_with_a_field_elsewhere_is_another_one(field: str, pins: Path) -> None:
    key, value = layout_of("1.16.5", CT)
    offset, bits = value.fields[field]
    moved = key, replace(value, fields={**value.fields, field: (offset + bits, bits)})
    with create(CT, moved) as pinned, made(CT, "1.16.5") as other:
        pinned.pin(pins / CT)
        places = fields_refused(pins, object_of("1.16.5", CT), tell=True)
        assert places == {f"value.{field}": (f"at bit {offset + bits} ({bits} bits)", f"at bit {offset} ({bits} bits)")}
        assert not can_copy(pinned, other)


def test_a_map_without_types_is_not_taken_for_one_of_others(pins: Path) -> None:
    opened(object_of(OURS, POLICY), pins, tell=False).close()
    spec = object_of("1.16.5", POLICY)
    assert fields_refused(pins, spec, tell=True) == {"layout": ("not told", "that of the object's types")}
    opened(object_of(OURS, POLICY), pins, tell=False).close()


def test_an_object_without_types_says_nothing_of_the_fields(pins: Path) -> None:
    opened(object_of("1.16.5", POLICY), pins, tell=True).close()
    opened(untold(OURS, POLICY), pins, tell=True).close()


def test_whoever_pins_first_is_compared_as_well(pins: Path) -> None:
    with TypeStore(all_maps=True) as types:
        maps = open_maps(object_of("1.16.5", POLICY), pins, types=types)
        with create(POLICY, layout_of("1.15.12", POLICY)) as winner:
            winner.pin(pins / POLICY)
            with pytest.raises(MapIncompatible, match=r"value\.lpm_prefix_length is nowhere, wanted at bit 19"):
                maps.pin_created()
        maps.close()


def test_only_what_outlives_a_load_is_compared() -> None:
    compared = ("cilium_lxc", "cilium_ipcache", "cilium_ipcache_v2", "cilium_tunnel_map", POLICY, CT)
    assert all(map(is_compared, (*compared, "cilium_policy_v2_00101", "cilium_ct_any6_global")))
    assert not any(map(is_compared, ("cilium_calls_00101", "cilium_call_policy", "cilium_metrics", "cilium_events")))
    with create("cilium_metrics", layout_of(OURS, "cilium_metrics")) as metrics:
        spec = object_of("1.16.5", "cilium_metrics")
        assert layout_differences(spec, spec.maps["cilium_metrics"], metrics.info, told=True) == []


def test_maps_of_our_own_sources_are_not_read(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(object_of(OURS, POLICY), pins, tell=False).close()
    monkeypatch.setattr("datapath.kernel.bpf.btf_of_id", lambda _: pytest.fail("BTF was read"))
    monkeypatch.setattr("datapath.load.layout.parse", lambda _: pytest.fail("BTF was parsed"))
    opened(object_of(OURS, POLICY), pins, tell=False).close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1.16.5", "1.16.5", True), ("1.15.12", "1.16.5", False), (None, "1.16.5", False), (None, None, True)],
)
def test_entries_are_copied_between_the_same_fields_alone(one: str | None, other: str | None, same: bool) -> None:
    with made(POLICY, one) as old, made(POLICY, other) as new:
        assert (can_copy(old, new), can_copy(new, old)) == (same, same)


def made(name: str, release: str | None) -> Map:
    """Create a map of a release's layout, or one without types."""
    return create(name, layout_of(release or OURS, name), told=release is not None)
