"""The control plane: what it writes into maps, what it refuses, and pods that come and go."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from datapath.base.mapnames import POLICY_CALLS
from datapath.build.compile import probe_compiler
from datapath.endpoint import HEALTH_ID, HOST_ID, WORLD_ID
from datapath.errors import CompileError, ToolMissing
from datapath.kernel import progarray
from datapath.kernel.map import open_pin
from datapath.reload.outcome import Outcome
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.abi import layouts
from lab.agent.agent import Agent, Failure
from lab.errors import LabSystemError
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HOST_ENDPOINT, InvalidSpec, NodeSpec, PodSpec, label_identity
from lab.scenario.gate import Gate
from lab.watch import metrics
from lab.watch.invariants import baseline, check
from lab.watch.snapshot import take
from tests.lab.labs import ROOT, cli, unique_name
from tests.lab.nodes import differences

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """The agent of a node that is up and loaded; every test leaves it so."""
    try:
        probe_compiler()
    except ToolMissing as error:
        pytest.skip(str(error))
    with Node(NodeSpec(unique_name(), pods=2)) as node, Agent(node) as agent:
        agent.start(workers=2)
        yield agent


def content(agent: Agent, name: str) -> dict[bytes, bytes]:
    with open_pin(agent.config.globals / name) as pinned:
        return dict(pinned.items())


def identity(agent: Agent, key: bytes) -> int:
    return layouts.RemoteEndpointInfo.unpack(content(agent, "cilium_ipcache")[key]).sec_identity


def test_shared_maps_say_who_is_where(agent: Agent) -> None:
    pod = agent.node.pods[0]
    info = layouts.EndpointInfo.unpack(content(agent, "cilium_lxc")[layouts.endpoint_key(pod.ipv4)])
    assert (info.ifindex, info.lxc_id, info.mac, info.node_mac) == (
        pod.ifindex,
        pod.endpoint_id,
        pod.mac,
        pod.node_mac,
    )
    spec = agent.node.spec
    for address, wanted in (
        (pod.ipv4, pod.identity),
        (pod.ipv6, pod.identity),
        (agent.node.facts.health.ipv4, HEALTH_ID),
        (spec.router4, HOST_ID),
        (spec.node6.ip, HOST_ID),
    ):
        assert identity(agent, layouts.ipcache_key(address, address.max_prefixlen)) == wanted
    assert identity(agent, layouts.ipcache_key(IPv4Address(0), 0)) == WORLD_ID


def test_reload_is_counted_under_its_generation(agent: Agent) -> None:
    first, second = agent.reload("pod-1"), agent.reload("pod-2")
    assert second.generation == first.generation + 1
    command = "import sys; from lab.agent.agent import Agent; from lab.node.node import Node; "
    command += "print(Agent(Node.open(sys.argv[1])).next_generation())"
    done = subprocess.run(
        [sys.executable, "-c", command, agent.node.name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Other processes count on.
    assert int(done.stdout) == second.generation + 1


def test_unknown_subjects(agent: Agent) -> None:
    agent.check(*agent.subjects)
    with pytest.raises(UnknownTarget, match="has no endpoint pod-9; it has host, health, pod-1, pod-2") as unknown:
        agent.check("pod-1", "pod-9")
    assert unknown.value.existing == ("host", "health", "pod-1", "pod-2")
    for subject in ("pod-9", "overlay"):
        with pytest.raises(UnknownTarget):
            agent.check(subject)


def test_one_failure_does_not_spare_the_others(agent: Agent) -> None:
    good, bad, last = agent.reload_many(["pod-1", "pod-9", "pod-2"], workers=1)
    assert isinstance(bad, Failure)
    assert (bad.subject, type(bad.error)) == ("pod-9", UnknownTarget)
    assert not isinstance(good, Failure)
    assert not isinstance(last, Failure)


def test_system_error_names_the_lab(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.touch()
    before = take(agent.node)
    config = agent.config
    try:
        agent.loader.configure(replace(config, state=file))
        # The endpoint's lock is the first thing that is asked for there.
        with pytest.raises(LabSystemError, match=f"^lab {agent.node.name}: {file}/101/lock: Not a directory$"):
            agent.reload("pod-1")
    finally:
        agent.loader.configure(config)
    assert take(agent.node).datapath() == before.datapath()


def test_pod_comes_and_goes(agent: Agent) -> None:
    before = baseline(agent)
    labels = frozenset({"app=web"})
    outcome = agent.add_pod(PodSpec("late", labels=labels))
    assert [item.program for item in outcome.attached] == ["cil_from_container"]
    pod = agent.node.pod("late")
    assert layouts.endpoint_key(pod.ipv4) in content(agent, "cilium_lxc")
    assert "late" in agent.subjects
    assert identity(agent, layouts.ipcache_key(pod.ipv4, 32)) == label_identity(labels)
    agent.remove_pod("late")
    assert layouts.endpoint_key(pod.ipv4) not in content(agent, "cilium_lxc")
    assert check(agent, before) == []
    # Its pins went with it, and so did its slot.
    assert take(agent.node).pins.keys() == before.snapshot.pins.keys()
    assert pod.endpoint_id not in take(agent.node).policy


def test_a_new_pod_is_found_when_it_is_loaded(agent: Agent) -> None:
    """Before, whoever delivers to it would call a policy program that is not there."""
    seen = []

    def look(plan: Plan) -> Plan:
        pod = agent.node.pod("late")
        found = layouts.endpoint_key(pod.ipv4) in content(agent, "cilium_lxc")
        seen.append((found, identity(agent, layouts.ipcache_key(pod.ipv4, 32)) == pod.identity))
        return plan

    agent.change = look
    try:
        agent.add_pod("late")
    finally:
        agent.change = None
    assert seen == [(False, True)]
    assert layouts.endpoint_key(agent.node.pod("late").ipv4) in content(agent, "cilium_lxc")
    agent.remove_pod("late")


def test_removing_a_pod_waits_for_its_reload(agent: Agent) -> None:
    """Which waits for the maps in its turn: whoever has those must not wait for the endpoint."""
    before = baseline(agent)
    agent.add_pod("late")
    inside, go = threading.Event(), threading.Event()

    def stop(step: Step, work: Workspace) -> None:
        inside.set()
        assert go.wait(20)

    with ThreadPoolExecutor(2) as pool:
        reload = pool.submit(agent.reload, "late", observer=Gate(stop, before="repin maps"))
        assert inside.wait(20)
        removal = pool.submit(agent.remove_pod, "late")
        with pytest.raises(TimeoutError):
            removal.result(0.3)
        assert "late" in agent.subjects
        assert layouts.endpoint_key(agent.node.pod("late").ipv4) in content(agent, "cilium_lxc")
        go.set()
        reload.result(20)
        removal.result(20)
    assert check(agent, before) == []


def test_health_endpoint_stays_whole(agent: Agent) -> None:
    before = take(agent.node)
    with pytest.raises(InvalidSpec, match="the health endpoint belongs to every node"):
        agent.remove_pod("health")
    assert take(agent.node).datapath() == before.datapath()


def interrupted(plan: Plan) -> Plan:
    raise KeyboardInterrupt


def test_reload_ends_an_interrupted_switch(agent: Agent) -> None:
    """The first reload of everything brings back the mode that the node was in, and its routes with it."""
    name = agent.node.name
    agent.set_endpoint_routes(True)
    before = baseline(agent)
    assert differences(name) == []
    with Agent(Node.open(name)) as other:
        other.change = interrupted
        with pytest.raises(KeyboardInterrupt):
            other.set_endpoint_routes(False)
    assert differences(name) != []
    agent.reload_many(agent.subjects, workers=2)
    assert differences(name) == []
    assert check(agent, before) == []
    agent.set_endpoint_routes(False)
    assert differences(name) == []


def refused(plan: Plan) -> Plan:
    if plan.subject == "pod-1":
        raise CompileError("bpf_lxc.o", ["clang"], "error: on purpose")
    return plan


def refused_for_the_host(plan: Plan) -> Plan:
    if plan.subject == "host":
        raise CompileError("bpf_host.o", ["clang"], "error: on purpose")
    return plan


def has_policy_of_the_host(agent: Agent) -> bool:
    with open_pin(agent.config.globals / POLICY_CALLS) as slots:
        return progarray.program_at(slots.fd, HOST_ENDPOINT) is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_host_loses_its_policy_program_after_the_pods(agent: Agent, workers: int) -> None:
    """Their programs call it until they are reloaded: what they send to the host would be dropped."""
    name = agent.node.name
    with Agent(Node.open(name), defines=(("ENABLE_HOST_FIREWALL", "1"),)) as with_firewall:
        with_firewall.reload_all(workers=2)
    with Agent(Node.open(name)) as other:
        other.change = refused
        results = other.reload_many(other.subjects, workers=workers)
    failures = {result.subject: str(result.error) for result in results if isinstance(result, Failure)}
    assert failures.keys() == {"pod-1", "host"}
    assert failures["host"] == f"not reloaded: its policy program is still called by pod-1 of {name}"
    assert has_policy_of_the_host(agent)
    assert [result.subject for result in agent.reload_many(agent.subjects, workers=workers)][-1] == "host"
    assert not has_policy_of_the_host(agent)


def test_host_that_loses_its_policy_program_is_reloaded_once(agent: Agent) -> None:
    """In the end, also if others that belong to the node are last."""
    with Agent(Node.open(agent.node.name), defines=(("ENABLE_HOST_FIREWALL", "1"),)) as with_firewall:
        with_firewall.reload_all(workers=2)
    done = [outcome.subject for outcome in agent.reload_all(last=tuple(reversed(agent.node_subjects)))]
    assert sorted(done) == sorted(agent.subjects)
    assert done[-1] == "host"


@pytest.mark.parametrize("workers", [1, 2])
def test_host_has_its_policy_program_before_the_pods(agent: Agent, workers: int) -> None:
    """Whatever the order that is asked for, and not at all if there is none."""
    agent.reload_all(workers=2)
    with Agent(Node.open(agent.node.name), defines=(("ENABLE_HOST_FIREWALL", "1"),)) as other:
        other.change = refused_for_the_host
        failed = other.reload_many(("pod-1", "host"), workers=workers)
        assert [(result.subject, type(result)) for result in failed] == [("host", Failure), ("pod-1", Failure)]
        assert isinstance(failed[1], Failure)
        assert str(failed[1].error).startswith("not reloaded: it would call the host's policy program")
        other.change = None
        done = other.reload_many(("pod-1", "host"), workers=workers)
        assert [result.subject for result in done if isinstance(result, Outcome)] == ["host", "pod-1"]
    assert has_policy_of_the_host(agent)


def test_counters_of_a_node(agent: Agent) -> None:
    """Packets of the pod's neighbour discovery and so on may be counted; a drop is none of them."""
    now = metrics.read(agent.node)
    assert now.drops_since(metrics.Counters()) == {}
    assert all(generation > 0 for generation, _, _ in now.hits)


def test_too_few_descriptors_are_one_line() -> None:
    name = unique_name()
    argv = ["prlimit", "--nofile=110:110", *cli("up", "--name", name, "--pods", "2")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"lab {name} with 2 pods needs 130 file descriptors, the hard limit is 110; raise it" in done.stderr
