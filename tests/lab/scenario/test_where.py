"""Findings name the step of the reload during which the packets were sent, here by loaders that break something."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from datapath.errors import ReloadlabError
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach
from datapath.reload.workspace import Workspace
from lab.agent.cluster import cluster_specs
from lab.node.topology import NODE, NodeSpec
from lab.scenario.gate import Gate
from lab.scenario.scenario import ClusterScenario, Scenario
from lab.scenario.verdict import InvariantsViolated
from tests.lab.emptied import EmptySlot, before
from tests.lab.labs import unique_name
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged


@dataclass(frozen=True)
class Fail(Step):
    """Fail."""

    name = "fail"

    def describe(self) -> str:
        return "fail"

    def apply(self, work: Workspace) -> None:
        raise ReloadlabError("injected")


def violations(scenario: Scenario | ClusterScenario) -> list[str]:
    """End a scenario and return what it finds."""
    with pytest.raises(InvariantsViolated) as caught:
        scenario.finish()
    return [violation.what for violation in caught.value.violations]


def losses(found: list[str]) -> list[str]:
    return [line for line in found if " udp v" in line and " lost" in line]


PLACE = r"\+([\d.]+)(?: to \+([\d.]+))? ms\)"
CAUSE = r"; dropped by generation ([\d or]+), Missed tail call, [a-z_]+\.[ch]:\d+(?: \(\d+\))?"


@pytest.mark.parametrize("subject", ["pod-2", "host"])
def test_a_loss_inside_a_step_is_told_with_the_step(subject: str) -> None:
    """Whoever is reloaded: what is lost belongs to another endpoint than that of the reload."""
    with Scenario(NodeSpec(unique_name("where"), pods=2)) as scenario:
        scenario.reload(subject)
        scenario.agent.change = before("attach ingress", EmptySlot("slot"))
        (outcome,) = scenario.reload(subject)
        scenario.agent.change = None
        scenario.reload(subject)
        found = losses(violations(scenario))
    (span,) = [span for span in outcome.spans if span.step == EmptySlot.name]
    assert found
    place = rf'sent during "empty slot slot" of {subject} \(generation {outcome.generation}, '
    for line in found:
        match = re.search(f"{place}{PLACE}{CAUSE}", line)
        assert match is not None, line
        assert all(0 <= float(offset) <= span.duration_ns / 1e6 for offset in match.groups()[:2] if offset)


def test_a_loss_is_told_with_the_load_that_dropped_it() -> None:
    """Replies: programs of pod-2 look for the policy program of pod-1, while the host is reloaded."""
    name = "pod-1 -> pod-2 udp v4"
    with Scenario(NodeSpec(unique_name("where"), pods=2)) as scenario:
        (outcome,) = scenario.reload("pod-2")
        fault = EmptySlot("slot", meanwhile=lambda: scenario.traffic.burst(name, 1, timeout=0.2))
        scenario.agent.change = before("attach ingress", fault)
        scenario.reload("host")
        scenario.agent.change = None
        found = [line for line in losses(violations(scenario)) if line.startswith(f"{name}: ")]
    (line,) = found
    assert re.search(rf"; dropped by generation {outcome.generation}, Missed tail call, delivery\.h:\d+$", line), line


def test_a_loss_in_the_kernel_is_told_with_its_reason() -> None:
    with Scenario(NodeSpec(unique_name("where"), pods=1)) as scenario:
        target = next(flow.target_ip for flow in scenario.traffic.flows if flow.name == "pod-1 -> outside udp v4")
        netns = str(scenario.node.netns(NODE))
        ip(netns, "route", "add", "blackhole", target)
        burst = scenario.traffic.burst("pod-1 -> outside udp v4", 3, timeout=0.2)
        ip(netns, "route", "delete", "blackhole", target)
        assert burst.answered == 0
        found = [line for line in losses(violations(scenario)) if line.startswith("pod-1 -> outside udp v4: ")]
    (line,) = found
    assert re.search(r"; dropped by the kernel, [A-Z_]+ at \w+\+0x[0-9a-f]+(?: \(\d+\))?$", line), line


def test_a_burst_between_two_steps_that_stays_silent_is_told_with_them() -> None:
    """The first reload of its kind is stepped through: nothing else would see a gap that is as short as that."""
    fault = before("attach ingress", EmptySlot("slot", gap=0, missed=0))
    with Scenario(NodeSpec(unique_name("where"), pods=2), rate=20) as scenario:
        scenario.agent.change = fault
        (outcome,) = scenario.reload("pod-1")
        scenario.agent.change = None
        scenario.reload("pod-1")
        found = [line for line in violations(scenario) if "between two steps" in line]
    target = outcome.attached[-1].ifname
    steps = f'"empty slot slot" and "attach ingress {target}"'
    wanted = f"sent between {steps} of pod-1 (generation {outcome.generation}, "
    assert found
    assert [line for line in found if wanted not in line] == []


def test_losses_of_a_failed_reload_are_told_as_well() -> None:
    with Scenario(NodeSpec(unique_name("where"), pods=2)) as scenario:
        scenario.agent.change = before("attach ingress", EmptySlot("slot"), Fail("it"))
        scenario.reload_fails("pod-2", ReloadlabError)
        scenario.agent.change = None
        found = losses(violations(scenario))
    assert found
    assert all('sent during "empty slot slot" of pod-2 (generation ' in line for line in found)


def test_losses_during_reloads_by_workers_are_told_as_well() -> None:
    fault = before("attach ingress", EmptySlot("slot"))
    with Scenario(NodeSpec(unique_name("where"), pods=3)) as scenario:
        scenario.agent.change = lambda plan: fault(plan) if plan.subject == "pod-2" else plan
        scenario.reload_parallel(["pod-2", "pod-3"], workers=2)
        scenario.agent.change = None
        found = losses(violations(scenario))
    assert found
    assert all('during "empty slot slot" of pod-2 (generation ' in line for line in found)


def test_several_nodes_are_told_apart() -> None:
    with ClusterScenario(cluster_specs(unique_name("where")[:28], 2, pods=1, tunnel=True)) as scenario:
        scenario.cluster.agent(2).change = before("attach ingress", EmptySlot("slot"))
        scenario.reload("1/host", "2/host")
        scenario.cluster.agent(2).change = None
        found = losses(violations(scenario))
    assert found
    assert all('sent during "empty slot slot" of 2/host (generation ' in line for line in found)


def test_a_clean_reload_is_stepped_through_without_a_finding() -> None:
    """Together with a gate of the test's own, which sends bursts as well."""
    with Scenario(NodeSpec(unique_name("where"), pods=2)) as scenario:

        def push(step: Step, work: Workspace) -> None:
            assert all(burst.complete for burst in scenario.traffic.burst_all(2))

        scenario.reload("pod-1", gate=Gate(push, before="*", after="*"))
        scenario.set_endpoint_routes(True)
        scenario.finish()
    assert scenario.findings == []


def leave_the_hook_of_pod_2_alone(plan: Plan) -> Plan:
    return plan.change(lambda step: None if isinstance(step, Attach) and plan.subject == "pod-2" else step)


def test_packets_that_meet_a_replaced_load_are_told_with_it() -> None:
    """After all reloads, by the counters of the programs themselves."""
    with Scenario(NodeSpec(unique_name("where"), pods=2)) as scenario:
        _, second = scenario.reload("pod-1", "pod-2")
        scenario.agent.change = leave_the_hook_of_pod_2_alone
        scenario.reload("pod-1", "pod-2")
        scenario.agent.change = None
        found = [line for line in violations(scenario) if " met generation " in line]
    (line,) = found
    assert line.endswith(f" met generation {second.generation} of pod-2, which another has replaced")
