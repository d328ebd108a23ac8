"""What a scenario checks: its gates, its traffic, and drops of what a pod's kernel asks by itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import LIBRARY
from datapath.errors import ReloadlabError
from datapath.kernel.hooks import Direction, detach, filters
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach
from datapath.reload.workspace import Workspace
from lab.agent.cluster import cluster_specs
from lab.node.topology import NodeSpec
from lab.scenario.details import details
from lab.scenario.gate import BadGate, Gate, GateNeverFired
from lab.scenario.scenario import ClusterScenario, Scenario
from lab.scenario.verdict import InvariantsViolated
from lab.watch import metrics
from lab.watch.invariants import BadExpectation
from tests.lab.labs import unique_name
from tests.lab.wires import ip

pytestmark = pytest.mark.privileged

LINK_LOCAL, GLOBAL = "fe80::99", "fd00:10:244::99"
DROPPED = (150, metrics.EGRESS)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Our sources, with Cilium's answer to a solicitation for somebody unknown: it is dropped."""
    library = shutil.copytree(LIBRARY, tmp_path / "bpf")
    source = library / "bpf_lxc.c"
    answer = "\tret = nd_write_advert(ctx, &ip, &msg, &mac);\n"
    drop = "\tif (((const __u8 *)msg.target)[15] == 0x99)\n\t\treturn -150;\n"
    assert answer in source.read_text()
    source.write_text(source.read_text().replace(answer, drop + answer))
    return Path(library)


def ask(scenario: Scenario, address: str) -> int:
    """Have a pod's kernel check whether a neighbour is still there, and return how often that was dropped."""
    netns = str(scenario.node.netns("pod-1"))
    before = dropped(scenario)
    ip(netns, "neigh", "replace", address, "dev", "eth0", "lladdr", "02:00:00:00:00:99", "nud", "probe")
    deadline = time.monotonic() + 10
    while dropped(scenario) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The kernel may have dropped it by now.
    ip(netns, "neigh", "flush", "to", address, "dev", "eth0")
    time.sleep(0.2)
    return dropped(scenario) - before


def dropped(scenario: Scenario) -> int:
    return metrics.packets(scenario.node).get(DROPPED, 0)


def test_solicitations_of_the_kernel_for_link_local_addresses_may_be_dropped(library: Path) -> None:
    with Scenario(NodeSpec(unique_name(), pods=1), library=library) as scenario:
        assert ask(scenario, LINK_LOCAL) > 0


def test_all_other_drops_of_unknown_targets_are_violations(library: Path) -> None:
    """Beside those that are excused, and to the packet."""
    with Scenario(NodeSpec(unique_name(), pods=1), library=library) as scenario:
        own, others = ask(scenario, LINK_LOCAL), ask(scenario, GLOBAL)
        with pytest.raises(InvariantsViolated) as caught:
            scenario.finish()
    assert min(own, others) > 0
    (violation,) = caught.value.violations
    words = f"{own + others} packets dropped as Unknown L3 target address (150, egress) instead of 0: "
    assert violation.what.startswith(words)
    assert f"{own} of the kernel's neighbour solicitation of {LINK_LOCAL}" in violation.what
    assert f"{others} of fe80::" in violation.what
    assert len(violation.at) == others


def test_what_the_kernel_says_of_its_own_faults_fails_the_scenario() -> None:
    with Scenario(NodeSpec(unique_name(), pods=1), rate=0) as scenario:
        # What a process writes has a facility of its own, which is read in place of the kernel's.
        scenario.kernel_log.facility = 1
        text = f"WARNING: CPU: 0 PID: 1 at {scenario.node.name}"
        with open("/dev/kmsg", "wb", buffering=0) as log:
            log.write(f"<4>{text}\n".encode())
        with pytest.raises(InvariantsViolated, match=f"invariant 13: the kernel says: {text}"):
            scenario.finish()


class Injected(ReloadlabError):
    """Our own error."""


def inject(step: Step, work: Workspace) -> None:
    raise Injected("injected")


def nothing(step: Step, work: Workspace) -> None:
    """Do nothing at a gate."""


@pytest.fixture(scope="module")
def scenario() -> Iterator[Scenario]:
    with Scenario(NodeSpec(unique_name("gates"), pods=1)) as scenario:
        yield scenario


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (Gate(nothing, before="comit"), "Gate(before='comit')"),
        (Gate(nothing, after="commit", target="eth7"), "Gate(after='commit', target='eth7')"),
        (Gate(nothing, before="commit", nth=7), "Gate(before='commit', nth=7)"),
    ],
    ids=["step", "target", "nth"],
)
def test_a_gate_that_never_fires_is_an_error(scenario: Scenario, gate: Gate, name: str) -> None:
    with pytest.raises(GateNeverFired) as caught:
        scenario.reload("pod-1", gate=gate)
    message = str(caught.value)
    assert message.startswith(f"{name} never fired; the steps of the reload of pod-1 were compile ")
    assert message.endswith(", commit pod-1")
    with pytest.raises(GateNeverFired, match="never fired"):
        scenario.reload_fails("pod-1", Injected, gate=gate)


def test_a_gate_behind_the_expected_failure_is_an_error(scenario: Scenario) -> None:
    """It would test nothing; the error that came first is told as well."""

    class Early(Gate):
        def before(self, step: Step, work: Workspace) -> None:
            super().before(step, work)
            if step.name == "load programs":
                inject(step, work)

    early = Early(nothing, before="commit")
    with pytest.raises(GateNeverFired, match=r"load programs bpf_lxc\.o, then it failed: injected") as caught:
        scenario.reload_fails("pod-1", Injected, gate=early)
    assert isinstance(caught.value.__cause__, Injected)
    scenario.reload_fails("pod-1", Injected, gate=Gate(inject, before="commit"))


def test_an_object_that_a_failed_reload_has_published_is_found(scenario: Scenario) -> None:
    """The old programs run on. The next reload would publish its own, and hide it."""

    def publish(step: Step, work: Workspace) -> None:
        directory = work.config.state / str(scenario.node.pod("pod-1").endpoint_id)
        shutil.copy(directory / "bpf_lxc.o.new", directory / "bpf_lxc.o")
        inject(step, work)

    known = len(scenario.violations)
    scenario.reload_fails("pod-1", Injected, gate=Gate(publish, before="commit"))
    endpoint = scenario.node.pod("pod-1").endpoint_id
    found = [str(violation) for violation in scenario.violations[known:]]
    assert found == [f"invariant 8: file {endpoint}/bpf_lxc.o is another"]
    del scenario.violations[known:]
    scenario.reload("pod-1")


def test_a_note_of_maps_that_a_failed_reload_has_changed_is_found(scenario: Scenario) -> None:
    """The next reload would look elsewhere for the connections of the endpoint."""
    endpoint = scenario.node.pod("pod-1").endpoint_id

    def change(step: Step, work: Workspace) -> None:
        file = work.config.state / str(endpoint) / "connections"
        file.write_text(f" {file.read_text()}")
        inject(step, work)

    known = len(scenario.violations)
    scenario.reload_fails("pod-1", Injected, gate=Gate(change, before="commit"))
    assert [str(violation) for violation in scenario.violations[known:]] == [
        f"invariant 8: file {endpoint}/connections is another"
    ]
    del scenario.violations[known:]
    scenario.reload("pod-1")


def test_an_optional_gate_may_not_fire(scenario: Scenario) -> None:
    scenario.reload("pod-1", gate=Gate(nothing, before="install tunnel", optional=True))


def test_the_load_of_a_reload_that_fails_after_its_commit_is_the_last_one() -> None:
    with Scenario(NodeSpec(unique_name("late"), pods=1)) as scenario:
        with pytest.raises(Injected):
            scenario.reload("pod-1", gate=Gate(inject, after="commit"))
        assert scenario.outcomes == ()
        scenario.finish()


def test_a_gate_without_a_step_is_refused() -> None:
    with pytest.raises(BadGate, match="a gate names a step"):
        Gate(nothing)


@pytest.mark.parametrize("what", [{"findings": {"lost"}}, {"kernel_drops": {"NO_SOCKET"}}, {"other_path": True}])
def test_what_flows_may_show_is_not_expected_on_one_node(what: dict[str, Any]) -> None:
    scenario = ClusterScenario(cluster_specs(unique_name("flows")[:28], 2, pods=1))
    (name,) = what
    with pytest.raises(BadExpectation, match=f"{name} is expected of flows, which are of no single node"):
        scenario.expect_on(1, **what)


def test_a_gate_of_several_nodes_must_fire() -> None:
    with ClusterScenario(cluster_specs(unique_name("gates")[:28], 2, pods=1)) as cluster:
        gate = Gate(nothing, before="attach ingress")
        cluster.reload("1/pod-1", "2/pod-1", gate=gate)
        assert gate.passed == 2
        with pytest.raises(GateNeverFired, match="reload of 1/pod-1, 2/pod-1 were"):
            cluster.reload("1/pod-1", "2/pod-1", gate=Gate(nothing, before="comit"))


def test_a_scenario_that_sends_nothing_is_a_violation() -> None:
    quiet = Scenario(NodeSpec(unique_name("quiet"), pods=0), flows=lambda _: [])
    with pytest.raises(InvariantsViolated) as caught, quiet:
        quiet.finish()
    assert [str(each) for each in caught.value.violations] == [
        "invariant 7: no packet was sent; a scenario without traffic has rate=0"
    ]
    with Scenario(NodeSpec(unique_name("quiet"), pods=0), flows=lambda _: [], rate=0) as scenario:
        scenario.finish()


def leave_cilium_net_alone(plan: Plan) -> Plan:
    return plan.change(lambda step: None if isinstance(step, Attach) and step.target == "cilium_net" else step)


def test_an_agent_that_was_started_again_is_watched_as_the_first() -> None:
    """Its options and its faulty loader are the same, its reloads are noted and the node is checked."""
    with Scenario(NodeSpec(unique_name(), pods=1), filter_priority=3) as scenario:
        former, scenario.agent.change = scenario.agent, leave_cilium_net_alone
        scenario.define(POLICY_MAP_SIZE="4096")
        done = scenario.restart()
        assert scenario.agents == (scenario.agent,)
        assert scenario.agent is not former
        assert (scenario.agent.config.filter_priority, scenario.agent.config.defines) == (3, ())
        assert scenario.outcomes == tuple(done)
        with pytest.raises(InvariantsViolated, match="cilium_net ingress: program"):
            scenario.finish()


def test_the_packets_that_entered_a_load_are_told_when_a_scenario_has_finished() -> None:
    """Before its end they are not known."""
    with Scenario(NodeSpec(unique_name(), pods=1)) as scenario:
        outcome = scenario.agent.reload("pod-1")
        sent = scenario.traffic.burst_all(3, timeout=5.0)
        assert details([scenario])["reloads"][0]["packets"] is None
        scenario.finish()
        (reload,) = details([scenario])["reloads"]
        assert (reload["generation"], set(reload["packets"])) == (outcome.generation, {"cil_from_container"})
        assert reload["packets"]["cil_from_container"] >= 3 * len([burst for burst in sent if burst.complete]) > 0


def test_the_nodes_of_a_scenario_are_told_as_they_were_when_it_finished() -> None:
    with Scenario(NodeSpec(unique_name(), pods=1)) as scenario:
        scenario.set_endpoint_routes(True)
        pod = scenario.node.pods[0]
        scenario.finish()
    (node,) = details([scenario])["nodes"]
    shape = node["shape"]
    assert (node["number"], node["names"]) == (1, {"pod-1": pod.ifname})
    assert (shape["endpoint_routes"], shape["attach"]) == (True, "tc")
    routes = [route["destination"] for route in shape["routes"] if route["dev"] == "{pod-1}"]
    assert routes == [str(pod.ipv4), str(pod.ipv6)]
    hooks = {each["name"]: (each["ingress"], each["egress"]) for each in shape["interfaces"]}
    assert hooks["{pod-1}"] == (["cil_from_container-{pod-1}"], ["cil_to_container-{pod-1}"])


def test_the_nodes_of_a_scenario_that_failed_are_told_as_long_as_they_are_there() -> None:
    with ClusterScenario(cluster_specs(unique_name("gone")[:28], 2, pods=0)) as cluster:
        assert [node["number"] for node in details([cluster])["nodes"]] == [1, 2]
        cluster.abandon()
    assert details([cluster])["nodes"] == []


def test_the_packets_of_loads_of_other_sources_are_not_known(tmp_path: Path) -> None:
    """The counters of the loads before are there still."""
    other = Path(shutil.copytree(LIBRARY, tmp_path / "bpf"))
    with Scenario(NodeSpec(unique_name(), pods=1)) as scenario:
        ours = scenario.agent.reload("pod-1")
        theirs = [outcome.generation for outcome in scenario.upgrade(library=other)]
        scenario.finish()
        packets = {reload["generation"]: reload["packets"] for reload in details([scenario])["reloads"]}
    assert packets == {ours.generation: packets[ours.generation], **dict.fromkeys(theirs)}
    assert packets[ours.generation]["cil_from_container"] > 0


def test_a_reload_that_fails_is_held_to_it_on_all_nodes() -> None:
    """A fault on one node that shows on the other: both are compared."""
    with ClusterScenario(cluster_specs(unique_name("fails")[:28], 2, pods=1)) as cluster:
        error = cluster.reload_fails("1/pod-1", Injected, gate=Gate(inject, before="commit"))
        assert str(error) == "injected"
        assert cluster.violations == []
        (failed,) = details([cluster])["failed_reloads"]
        assert (failed["node"], failed["subject"], failed["error"]) == (1, "pod-1", "injected")
        assert failed["spans"][-1]["step"] == "detach egress"
        assert failed["rollback"]["start_ns"] >= failed["spans"][-1]["work"]["end_ns"]
        (stop,) = details([cluster])["gates"]
        assert stop["what"] == "before commit pod-1"
        assert stop["tid"] == failed["spans"][-1]["work"]["tid"]
        assert failed["spans"][-1]["work"]["end_ns"] <= stop["start_ns"] <= stop["end_ns"]
        assert stop["end_ns"] <= failed["rollback"]["start_ns"]

        def spoil(step: Step, work: Workspace) -> None:
            with NetlinkSocket(cluster.cluster.node(2).netns("node")) as netlink:
                (ours,) = filters(netlink, cluster.cluster.node(2).pods[0].ifindex, Direction.INGRESS)
                detach(netlink, ours)
            inject(step, work)

        cluster.reload_fails("1/pod-1", Injected, gate=Gate(spoil, before="commit"))
        assert [str(violation) for violation in cluster.violations] != []
        assert all(v.what.startswith(f"{cluster.cluster.node(2).name}: ") for v in cluster.violations)
        assert {violation.invariant for violation in cluster.violations} == {8}
        with pytest.raises(AssertionError, match="reload of 2/pod-1 succeeded, Injected expected"):
            cluster.reload_fails("2/pod-1", Injected)
        cluster.abandon()
