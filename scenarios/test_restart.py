"""The agent ends, or is killed in the middle of a reload, and another takes over: what runs goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from reloadlab import Agent, Failure, Outcome, Plan, Scenario, Step, Workspace, take_snapshot
from scenarios.pinned import pinned

WARNINGS = frozenset({"left by a reload that did not end", "a reload died between two attaches"})
"""What a reload says about what a killed one has left."""
OWN_STEPS = pytest.mark.own_loader("deaths between two steps of our own pipeline")
IPCACHE, POLICY = "cilium_ipcache", "cilium_policy_00101"
BURST = 3
"""Packets of each flow after each kill."""


@dataclass(frozen=True)
class Killed(Step):
    """The end of the process that reloads."""

    name = "killed"

    def describe(self) -> str:
        return "kill the process that reloads"

    def apply(self, work: Workspace) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def also(agent: Agent, change: Callable[[Plan], Plan]) -> Iterator[None]:
    """Change the plans of a block by one thing more."""
    before = agent.change
    agent.change = lambda plan: change(before(plan) if before is not None else plan)
    try:
        yield
    finally:
        agent.change = before


def kill(scenario: Scenario, subject: str, number: int) -> None:
    """Have a worker reload, and kill it before the step of this number."""

    def doomed(plan: Plan) -> Plan:
        if plan.subject != subject:
            return plan
        return replace(plan, steps=(*plan.steps[:number], Killed(subject), *plan.steps[number:]))

    # One process is no worker: the other subject is reloaded by another one.
    other = "health" if subject != "health" else "host"
    with also(scenario.agent, doomed):
        died, survived = scenario.agent.reload_many([subject, other], workers=2)
    assert isinstance(died, Failure), died
    assert "SIGKILL" in str(died.error)
    assert isinstance(survived, Outcome), survived


def answered(scenario: Scenario) -> None:
    silent = [str(burst) for burst in scenario.traffic.burst_all(BURST) if not burst.complete]
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize(
    ("subject", "network"),
    [
        pytest.param("pod-1", "node", marks=pytest.mark.node(pods=2)),
        pytest.param("pod-1", "endpoint-routes", marks=pytest.mark.node(pods=2, endpoint_routes=True)),
        pytest.param("host", "node", marks=pytest.mark.node(pods=2)),
        pytest.param("overlay", "node", marks=pytest.mark.node(pods=2, tunnel=True)),
    ],
)
def test_killed_before_each_step(scenario: Scenario, subject: str, network: str) -> None:
    """The next reload puts right what the killed one has left."""
    scenario.expect(warnings=WARNINGS)
    for number, _ in enumerate(scenario.agent.plan(subject).steps):
        kill(scenario, subject, number)
        answered(scenario)
        scenario.reload(subject)


@OWN_STEPS
@pytest.mark.parametrize("later", ["new", "former"])
@pytest.mark.node(pods=2)
def test_killed_while_maps_are_replaced(scenario: Scenario, later: str) -> None:
    """One that all share and one of the pod; the next reload is one of the new build, or of the former."""
    # The other reload, of health, is one of the new build too.
    ipcache, policy, of_health = (pinned(scenario.agent, name) for name in (IPCACHE, POLICY, "cilium_policy_00002"))
    # The control plane fills the policy map anew: its counters begin at 0.
    scenario.expect(warnings=WARNINGS, migrated=frozenset({ipcache, policy, of_health}), changed={policy: ()})
    names = [step.name for step in scenario.agent.plan("pod-1").steps]
    for number in range(names.index("open maps"), len(names)):
        scenario.define(IPCACHE_MAP_SIZE="4096", POLICY_MAP_SIZE="4096")
        kill(scenario, "pod-1", number)
        answered(scenario)
        if later == "former":
            scenario.define()
        scenario.reload("pod-1")
        scenario.define()
        scenario.reload("pod-1")
    scenario.restart()


@OWN_STEPS
@pytest.mark.node(pods=2)
def test_killed_while_lost_maps_are_made(scenario: Scenario) -> None:
    """Whatever it has come to: what the next one finds under a map's name has the map's whole content."""
    maps = frozenset({pinned(scenario.agent, IPCACHE), pinned(scenario.agent, POLICY)})
    # The control plane fills the policy map anew: its counters begin at 0.
    scenario.expect(warnings=WARNINGS, migrated=maps, changed={pinned(scenario.agent, POLICY): ()})
    names = [step.name for step in scenario.agent.plan("pod-1").steps]
    for number in range(names.index("open maps"), len(names)):
        for name in maps:
            (scenario.agent.config.globals / name).unlink()
        kill(scenario, "pod-1", number)
        answered(scenario)
        scenario.reload("pod-1")
    scenario.restart()


@OWN_STEPS
@pytest.mark.parametrize("step", ["open maps", "insert policy", "attach ingress", "remove routes", "commit"])
@pytest.mark.node(pods=2)
def test_killed_and_started_again(scenario: Scenario, step: str) -> None:
    """Another agent starts on what a killed one has left of a pod's reload and of the host's."""
    scenario.expect(warnings=WARNINGS)
    for subject in ("pod-1", "host"):
        names = [each.name for each in scenario.agent.plan(subject).steps]
        if step in names:
            kill(scenario, subject, names.index(step))
    answered(scenario)
    scenario.restart()
    assert [name for name in take_snapshot(scenario.node).pins if ":" in name] == []


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("node", marks=pytest.mark.node(pods=3)),
        pytest.param("endpoint-routes", marks=pytest.mark.node(pods=3, endpoint_routes=True)),
    ],
)
def test_started_again(scenario: Scenario, network: str) -> None:
    """Twice: an upgrade and its downgrade. Maps, connections and filters are taken over."""
    for _ in range(2):
        outcomes = scenario.restart()
        assert {outcome.subject for outcome in outcomes} == set(scenario.agent.subjects)


@pytest.mark.node(pods=2, agent={"templates": None})
def test_templates_are_lost(scenario: Scenario) -> None:
    """Somebody has cleaned up on the disk: what is not there is compiled again, by this agent or by the next."""
    templates = scenario.agent.config.templates
    shutil.rmtree(templates)
    (outcome,) = scenario.reload("pod-1")
    assert outcome.attached
    shutil.rmtree(templates, ignore_errors=True)
    scenario.restart()
