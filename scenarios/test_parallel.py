"""Many pods reloaded at once, by 1, 2, 4 and 8 workers, while all pods are talked to."""

from __future__ import annotations

import pytest

from reloadlab import Flow, Node, Scenario, calls_maps, default_flows, flows_of_each, take_snapshot

PODS = 50


def with_those_of_each(node: Node) -> list[Flow]:
    """Return the usual flows, and some of each pod's own."""
    return [*default_flows(node), *flows_of_each(node)]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.node(pods=PODS + 2, flows=with_those_of_each)
def test_workers(scenario: Scenario, workers: int) -> None:
    """Nothing is lost, no two reloads meet at a pin, and every shared map is still one map."""
    pods = [pod.name for pod in scenario.node.pods[1:-1]]
    assert len(pods) == PODS
    outcomes = scenario.reload_parallel(pods, workers=workers)
    assert len({o.generation for o in outcomes}) == PODS
    assert not any(o.warnings or o.migrated for o in outcomes)
    assert len(set(calls_maps(take_snapshot(scenario.node)).values())) == len(scenario.node.pods) + 3
