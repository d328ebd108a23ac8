from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lab.agent.cluster import cluster_specs
from lab.agent.loading import LoadedOptions
from lab.node.topology import NodeSpec
from lab.scenario.marks import AGENT, CLUSTER, NODE, SCENARIO, BadMark, MarkOptions
from lab.scenario.scenario import ClusterScenario, Scenario


def test_every_option_of_what_is_built_is_known() -> None:
    assert set(NODE) == {field.name for field in fields(NodeSpec)} - {"name"}
    assert set(AGENT) == LoadedOptions.__optional_keys__
    # Which macros are needed is not said beside them: those that a mark defines are.
    others = {"spec", "specs", "options", "needed_macros"}
    for scenario in (Scenario, ClusterScenario):
        assert set(SCENARIO) == set(inspect.signature(scenario).parameters) - others
    own = set(inspect.signature(cluster_specs).parameters) - {"name", "common"}
    assert set(CLUSTER) == own | set(NODE) - {"node_index", "cluster"}


def parse(*args: Any, **options: Any) -> MarkOptions:
    return MarkOptions.parse("node", args, options, nodes=NODE)


def test_options_are_sorted() -> None:
    agent = {"library": "bpf", "defines": (("A", "1"),)}
    options = parse(pods=3, devices=["eth0"], rate=100, agent=agent)
    assert options.nodes == {"pods": 3, "devices": ("eth0",)}
    assert options.scenario == {"rate": 100, "library": Path("bpf").resolve(), "defines": (("A", "1"),)}
    assert agent["library"] == "bpf", "the mark itself was changed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"podz": 1}, "mark node: no option podz; there are agent, bursts, cluster, "),
        ({"pods": "2"}, "mark node: pods is '2', not int or tuple or list"),
        ({"agent": "bpf"}, "mark node: agent is 'bpf', not dict"),
        ({"agent": {"libary": "bpf"}}, "mark node, agent: no option libary; there are all_programs, attach, clang, "),
        ({"agent": {"library": 3}}, "mark node, agent: library is 3, not str or "),
        ({"agent": {"defines": {"A": "1"}}}, "mark node, agent: defines is {'A': '1'}, not tuple or list"),
        ({"agent": {"defines": ("A=1",)}}, "mark node: agent: defines has 'A=1', not (NAME, VALUE)"),
        ({"agent": {"attach": "tcy"}}, "mark node: agent: attach is 'tcy', not tc, tcx or auto"),
        ({"flows": []}, "mark node: flows is [], not Callable"),
        ({"pods": True}, "mark node: pods is True, not int or tuple or list"),
        ({"rate": False}, "mark node: rate is False, not int or float"),
        ({"agent": {"verifiers": True}}, "mark node, agent: verifiers is True, not int or None"),
        ({"pods": ["web"]}, "mark node: pods has 'web', not PodSpec"),
        ({"devices": [1]}, "mark node: devices has 1, not str"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadMark) as caught:
        parse(**options)
    assert str(caught.value).startswith(words)


def test_options_without_a_name_are_refused() -> None:
    with pytest.raises(BadMark, match="mark node: 3 has no name: every option is given as NAME=VALUE"):
        parse(3)


def test_options_of_single_nodes_are_checked() -> None:
    def cluster(each: dict[Any, Any]) -> MarkOptions:
        return MarkOptions.parse("cluster", (), {"each": each}, nodes=CLUSTER)

    assert cluster({2: {"endpoint_routes": True}}).nodes == {"each": {2: {"endpoint_routes": True}}}
    with pytest.raises(BadMark, match="mark cluster, each, 2: no option podz"):
        cluster({2: {"podz": 1}})
    with pytest.raises(BadMark, match="mark cluster: each: 2 has True, not a dictionary of fields"):
        cluster({2: True})
    with pytest.raises(BadMark, match="mark cluster, each, 1: no option nodes; there are "):
        cluster({1: {"nodes": 3}})
    with pytest.raises(BadMark, match="mark cluster: each: '2' is not the number of a node"):
        cluster({"2": {}, 5: {}})
    with pytest.raises(BadMark, match="mark cluster, each, 1: devices has 1, not str"):
        cluster({1: {"devices": [1]}})
    listed = cluster({1: {"devices": ["eth0"]}})
    assert len({*cluster_specs("listed", 2, **listed.nodes)}) == 2, "a spec is hashable"
