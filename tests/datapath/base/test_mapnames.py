"""mapnames.py: what a name says about a map."""

from __future__ import annotations

import pytest

from datapath.base.mapnames import (
    POLICY_ARRAYS,
    WRITTEN_BY_PACKETS,
    endpoint_maps,
    endpoint_of,
    is_calls_map,
    is_policy_map,
    map_names,
    policy_maps,
)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cilium_calls_00123", True),
        ("cilium_calls_hostns_00001", True),
        ("cilium_calls_netdev_00002", True),
        ("cilium_calls_overlay_2", True),
        ("cilium_calls_xdp_00002", True),
        ("cilium_calls_xdp", False),
        ("cilium_call_policy", False),
        ("cilium_policy_00123", False),
    ],
)
def test_calls_maps_belong_to_one_object(name: str, own: bool) -> None:
    assert is_calls_map(name) is own


def test_arrays_of_policy_programs_are_no_calls_maps_and_not_written_by_packets() -> None:
    assert [name for name in POLICY_ARRAYS if is_calls_map(name) or name.startswith(WRITTEN_BY_PACKETS)] == []


def test_a_pod_has_calls_maps_and_a_policy_map_of_its_own() -> None:
    calls, policies = ("cilium_calls_00101", "cilium_calls_custom_00101"), policy_maps(101)
    assert endpoint_maps(101) == (*calls, *policies)
    assert policies == ("cilium_policy_v2_00101", "cilium_policy_00101")


@pytest.mark.parametrize("name", policy_maps(101))
def test_both_names_of_a_policy_map_tell_its_endpoint(name: str) -> None:
    for pin in (name, f"{name}:pending"):
        assert endpoint_of(pin) == 101
        assert is_policy_map(pin)
    assert name in endpoint_maps(101)


@pytest.mark.parametrize("name", ["cilium_policystats", "cilium_policy_acme", "cilium_policy_v2", "cilium_calls_00101"])
def test_other_maps_are_no_policy_maps(name: str) -> None:
    assert not is_policy_map(name)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cilium_ipcache", ("cilium_ipcache_v2", "cilium_ipcache")),
        ("cilium_policy_00101", ("cilium_policy_v2_00101", "cilium_policy_00101")),
        ("cilium_lxc", ("cilium_lxc",)),
    ],
)
def test_names_of_later_releases_come_first(name: str, names: tuple[str, ...]) -> None:
    assert map_names(name) == names
