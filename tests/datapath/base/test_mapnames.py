"""mapnames.py: what a name says about a map."""

from __future__ import annotations

import pytest

from datapath.base.mapnames import POLICY_ARRAYS, WRITTEN_BY_PACKETS, endpoint_maps, is_calls_map


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
    assert endpoint_maps(101) == ("cilium_calls_00101", "cilium_calls_custom_00101", "cilium_policy_00101")
