"""A checkout of Cilium takes the place of our own programs, unchanged: its bpf/ is named by RELOADLAB_CILIUM_BPF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.scenario import Scenario
from lab.topology import NodeSpec
from tests.lab.labs import unique_name

TREE = os.environ.get("RELOADLAB_CILIUM_BPF")

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(TREE is None, reason="RELOADLAB_CILIUM_BPF does not name the bpf/ of a Cilium checkout"),
]


@pytest.mark.parametrize("endpoint_routes", [False, True], ids=["routes-off", "routes-on"])
def test_reloads_lose_nothing(endpoint_routes: bool) -> None:
    """Pods talk through Cilium's own programs, its conntrack and its policy included, while they are reloaded."""
    spec = NodeSpec(unique_name("cilium"), pods=2, endpoint_routes=endpoint_routes)
    with Scenario(spec, library=Path(TREE or "")) as scenario:
        for _ in range(3):
            scenario.reload()
    assert scenario.report is not None
    assert scenario.report.sent > scenario.report.lost == 0


def test_switched_on_and_off() -> None:
    """The routing mode changes under way."""
    with Scenario(NodeSpec(unique_name("cilium"), pods=2), library=Path(TREE or "")) as scenario:
        scenario.set_endpoint_routes(True)
        scenario.set_endpoint_routes(False)
