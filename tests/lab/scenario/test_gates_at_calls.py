"""Gates at system calls: what a scenario does before a call of a reload happens, and what that means for the reload."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from datapath.errors import ReloadlabError
from lab.agent.cluster import cluster_specs
from lab.agent.exclusion import NestedReload
from lab.gates.call import Call
from lab.node.topology import NodeSpec
from lab.scenario.details import details
from lab.scenario.gate import MOST_CALLS, BadGate, Gate, GateNeverFired
from lab.scenario.scenario import ClusterScenario, Scenario
from lab.watch.snapshot import take
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


class Injected(ReloadlabError):
    """What a test's gate raises."""


def inject(call: Call) -> None:
    raise Injected(f"before {call.text}")


def nothing(call: Call) -> None:
    """Do nothing at a gate."""


@pytest.fixture(scope="module")
def scenario() -> Iterator[Scenario]:
    with Scenario(NodeSpec(unique_name("gates"), pods=1), bursts="none", all_programs=True) as scenario:
        yield scenario


def test_it_fires_before_the_call_happens(scenario: Scenario) -> None:
    before = take(scenario.node)
    found = []

    def look(call: Call) -> None:
        found.append((call.text, take(scenario.node).filters == before.filters))
        assert all(burst.complete for burst in scenario.traffic.burst_all(1))

    scenario.reload("pod-1", gate=Gate(look, call="RTM_NEWTFILTER *"))
    ((text, unchanged),) = found
    assert re.fullmatch(r"RTM_NEWTFILTER lxc\w+ ingress", text)
    assert unchanged
    assert take(scenario.node).filters != before.filters


def test_nth_chooses_one_of_many_calls(scenario: Scenario) -> None:
    """Two threads load, in an order that the times of the last load decide: each reload has its own."""
    every: list[Call] = []
    scenario.reload("pod-1", gate=Gate(every.append, call="PROG_LOAD *"))
    for nth in (1, 2):
        found: list[Call] = []
        gate = Gate(found.append, call="PROG_LOAD *", nth=nth)
        scenario.reload("pod-1", gate=gate)
        assert gate.passed == len(every) > 2
        # Of calls with the same text, such as names of 15 characters, the gate keeps the first.
        loads = [text for text in gate.calls if text.startswith("PROG_LOAD ")]
        assert len(found) == 1
        assert found[0].text in loads[:nth]
    with pytest.raises(BadGate, match="nth counts from 1"):
        Gate(nothing, call="*", nth=0)


def test_what_it_raises_fails_the_reload_which_is_rolled_back(scenario: Scenario) -> None:
    gate = Gate(inject, call="RTM_NEWTFILTER *")
    error = scenario.reload_fails("pod-1", Injected, gate=gate)
    assert re.fullmatch(r"before RTM_NEWTFILTER lxc\w+ ingress", str(error))
    assert [stop.where for stop in gate.stops] == [str(error)]
    assert [each["what"] for each in details([scenario])["gates"]][-1] == str(error)
    assert scenario.violations == []
    scenario.reload("pod-1")


def test_what_is_raised_behind_the_commit_undoes_nothing(scenario: Scenario) -> None:
    """The calls map of before is let go: that the call fails is a warning of the reload."""
    scenario.expect(warnings=frozenset({"the old map cilium_calls_00101 is left", "left by a reload that did not end"}))
    with pytest.raises(Injected):
        scenario.reload("pod-1", gate=Gate(inject, call="unlink *cilium_calls_*"))
    assert "is left" in scenario.outcomes[-1].warnings[0]
    scenario.reload("pod-1")


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ({"call": "RTM_NEWTFILTER lxc* sideways"}, r"RTM_NEWTFILTER lxc\w+ ingress"),
        ({"call": "RTM_NEWTFILTER *", "nth": 7}, r"RTM_NEWTFILTER lxc\w+ ingress"),
        ({"call": "PROG_LOAD nothing"}, rf"(PROG_LOAD \w+, ){{{MOST_CALLS}}}and \d+ more"),
        ({"call": "LINK_CREATE"}, rf"(.+, ){{{MOST_CALLS}}}and \d+ more"),
    ],
    ids=["subject", "nth", "many", "name"],
)
def test_one_that_never_fires_is_an_error(scenario: Scenario, options: dict[str, Any], passed: str) -> None:
    """The message has the calls of that name, and all if there is none; not more than a few."""
    gate = Gate(nothing, **options)
    with pytest.raises(GateNeverFired) as caught:
        scenario.reload("pod-1", gate=gate)
    start = re.escape(f"{gate} never fired; the calls of the reload of pod-1 were ")
    assert re.fullmatch(start + passed, str(caught.value))
    assert len(caught.value.calls) > MOST_CALLS


def test_an_optional_one_may_not_fire(scenario: Scenario) -> None:
    scenario.reload("pod-1", gate=Gate(nothing, call="LINK_CREATE", optional=True))


def test_nothing_is_reloaded_at_it(scenario: Scenario) -> None:
    """The one that is stopped has locks that the other would wait for."""
    gate = Gate(lambda call: scenario.agent.reload("health"), call="RTM_NEWTFILTER *")
    with pytest.raises(NestedReload, match="health cannot be reloaded at a gate of pod-1's reload"):
        scenario.reload("pod-1", gate=gate)


def test_the_maps_can_be_updated_at_it(scenario: Scenario) -> None:
    scenario.reload("pod-1", gate=Gate(lambda call: scenario.agent.sync(), call="RTM_NEWTFILTER *"))


@pytest.mark.parametrize(
    "options", [{"call": "*", "before": "commit"}, {"call": "*", "after": "*"}, {"call": "*", "target": "pod-1"}]
)
def test_calls_and_steps_do_not_mix(options: dict[str, Any]) -> None:
    with pytest.raises(BadGate, match="no step and no target"):
        Gate(nothing, **options)


def test_on_one_of_several_nodes() -> None:
    with ClusterScenario(cluster_specs(unique_name("gates")[:28], 2, pods=1), bursts="none") as cluster:
        found: list[Call] = []
        cluster.reload("2/pod-1", gate=Gate(found.append, call="RTM_NEWTFILTER *"))
        assert len(found) == 1
        cluster.reload_fails("1/pod-1", Injected, gate=Gate(inject, call="RTM_NEWTFILTER *"))
