"""An upgrade and its downgrade: an agent ends, another one with other programs takes over the node, and goes again.

The other release of the first scenarios is our own C with other macros: other numbers of tail calls, entries of
policies that are wider, so that the control plane has to write them anew, and another size of a map that all share.
Releases of Cilium are those of the file that RELOADLAB_RELEASES names, the oldest first (docs/releases.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reloadlab import (
    CT_MAPS,
    ClusterScenario,
    Flow,
    Node,
    Release,
    ReloadlabError,
    Scenario,
    default_flows,
    read_releases,
)

OTHER = [("RENUMBERED_SLOTS", "1"), ("POLICY_VALUE_PAD", "1"), ("IPCACHE_MAP_SIZE", "4096")]
OTHER_CONNECTIONS = [("CT_MAP_SIZE_TCP", "4096"), ("CT_MAP_SIZE_ANY", "4096")]
REPLACED = {"cilium_ipcache", "cilium_policy_00101", "cilium_policy_00102"}

OUR_OWN = pytest.mark.own_sources("macros of our own C make another release of it")
BY_US = pytest.mark.own_loader("a release of its own has a loader of its own")
"""The loader of each release is the one that the file names, and so is its C."""


def open_connections(node: Node) -> list[Flow]:
    """Return the usual flows without those that begin new connections.

    While a pod's programs are exchanged, a connection that begins is in one of two tables only (docs/pipeline.md).
    """
    return [flow for flow in default_flows(node) if not flow.fresh or flow.denied]


def last_of(scenario: Scenario, order: str) -> tuple[str, ...]:
    """Return what is loaded last."""
    return scenario.agent.node_subjects if order == "pods first" else ()


@OUR_OWN
@BY_US
@pytest.mark.parametrize("order", ["host first", "pods first"])
@pytest.mark.node(pods=2, tunnel=True)
def test_there_and_back(scenario: Scenario, order: str) -> None:
    """No packet is lost by either, whichever programs come first, and no denied one passes."""
    for defines in (OTHER, []):
        outcomes = scenario.upgrade(defines=defines, last=last_of(scenario, order))
        subjects = [outcome.subject for outcome in outcomes]
        assert subjects.index("host") == (0 if order == "host first" else len(subjects) - 2)
        assert {name for outcome in outcomes for name in outcome.migrated} >= REPLACED


@OUR_OWN
@BY_US
@pytest.mark.node(pods=2, endpoint_routes=True, flows=open_connections)
def test_connections_live_on(scenario: Scenario) -> None:
    """Their tables are replaced on the way there and on the way back."""
    for defines in (OTHER_CONNECTIONS, []):
        outcomes = scenario.upgrade(defines=defines)
        assert {name for outcome in outcomes for name in outcome.migrated} == set(CT_MAPS)


@OUR_OWN
@BY_US
@pytest.mark.cluster(nodes=2, pods=1, tunnel=True)
def test_one_of_two_nodes(cluster: ClusterScenario) -> None:
    """Nodes of two releases talk to each other."""
    for defines in (OTHER, []):
        assert cluster.upgrade(2, defines=defines)
        assert cluster.silence() == []


def releases() -> list[Release]:
    """Return the releases that are named, none if there is no variable; a file that cannot be used is told."""
    path = os.environ.get("RELOADLAB_RELEASES")
    try:
        return read_releases(Path(path)) if path else []
    except ReloadlabError as error:
        raise pytest.Collector.CollectError(f"RELOADLAB_RELEASES: {error}") from error


def ways() -> Iterator[tuple[Release, Release]]:
    """Yield the releases that follow each other, and the first with the last."""
    found = releases()
    yield from pairwise(found)
    if len(found) > 2:
        yield found[0], found[-1]


def params(mark: pytest.MarkDecorator) -> list[Any]:
    """Return the ways as parameters of a test whose nodes begin with the older release."""
    found = [pytest.param(new, id=f"{old.name}-{new.name}", marks=mark(agent=old.options)) for old, new in ways()]
    missing = pytest.mark.skip(reason="RELOADLAB_RELEASES names no two releases")
    return found or [pytest.param(None, id="releases", marks=missing)]


NETWORKS = [
    pytest.param("node", marks=pytest.mark.node(pods=2)),
    pytest.param("endpoint-routes", marks=pytest.mark.node(pods=2, endpoint_routes=True)),
    pytest.param("tunnel", marks=pytest.mark.node(pods=2, tunnel=True, devices=("eth0",))),
]


@pytest.mark.parametrize("order", ["host first", "pods first"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("new", params(pytest.mark.node))
@pytest.mark.own_sources("the releases that RELOADLAB_RELEASES names have C of their own")
@BY_US
def test_releases(scenario: Scenario, new: Release, network: str, order: str) -> None:
    """Connections live on, others begin, and the policy holds, there and back."""
    old = {name: scenario.options.get(name) for name in new.options}
    for options in (new.options, old):
        scenario.upgrade(last=last_of(scenario, order), **options)


@pytest.mark.parametrize("new", params(pytest.mark.cluster))
@pytest.mark.own_sources("the releases that RELOADLAB_RELEASES names have C of their own")
@BY_US
@pytest.mark.cluster(nodes=2, pods=1, tunnel=True)
def test_releases_of_two_nodes(cluster: ClusterScenario, new: Release) -> None:
    """One node goes there and back, the other keeps the older release."""
    for options in (new.options, {}):
        cluster.upgrade(2, **options)
        assert cluster.silence() == []
