"""While a map of the node is replaced, reload by reload, the programs that still use the old one miss nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.kernel import hooks
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload import retired
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from lab.abi import layouts
from lab.agent.agent import Agent
from lab.agent.reloads import do_in_worker
from lab.node.node import Node
from lab.node.topology import PodSpec
from lab.system.forkpool import WorkerDied
from lab.traffic.flows import Flow
from lab.traffic.traffic import Traffic
from lab.watch.checks.pins import check_pins
from lab.watch.snapshot import take
from tests.lab.labs import loaded_node

pytestmark = [pytest.mark.privileged]

NEW = "late"
MAPS = {"cilium_lxc": "ENDPOINTS_MAP_SIZE", "cilium_ipcache": "IPCACHE_MAP_SIZE"}
POLICY = [
    {
        "name": "only the new one",
        "endpoint": "pod-2",
        "egress": [{"toEndpoints": [{"matchLabels": {"app": "new"}}]}],
    }
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Path]]:
    templates = tmp_path_factory.mktemp("templates")
    with loaded_node("retired", templates, pods=2, policies=POLICY) as node:
        yield node, templates


@pytest.fixture
def agent(lab: tuple[Node, Path]) -> Iterator[Agent]:
    node, templates = lab
    with Agent(node, templates=templates) as made:
        yield made
        made.change = None
        made.configure(defines=())
        made.reload_all()
        assert not retired.pin_names(made.config.globals)
        assert pins_wrong(made) == []


def pins_wrong(agent: Agent) -> list[str]:
    return [str(violation) for violation in check_pins(agent, take(agent.node))]


def silent(node: Node) -> list[str]:
    """Return what is not answered of packets from the pod whose programs are the old ones to the new one."""
    sender, target = node.pod("pod-2"), node.pod(NEW)
    here, there = str(node.netns("pod-2")), str(node.netns(NEW))
    pairs = ((sender.ipv4, target.ipv4), (sender.ipv6, target.ipv6))
    flows = [Flow(f"udp v{a.version}", here, str(a), there, str(b), port=7031) for a, b in pairs]
    with Traffic(flows, rate=0) as traffic:
        return [str(burst) for burst in traffic.burst_all(3) if not burst.complete]


def contents_of(agent: Agent, name: str) -> list[dict[bytes, bytes]]:
    """Return the content of all maps that are pinned under a name."""
    found = []
    for path in retired.pinned(agent.config.globals)[name]:
        with open_pin(path) as pinned:
            found.append(dict(pinned.items()))
    return found


@pytest.mark.parametrize("name", MAPS)
def test_a_pod_that_comes_meanwhile_is_found(agent: Agent, name: str) -> None:
    """By its address and by its identity; and when it goes, it is gone from both."""
    agent.configure(defines=((MAPS[name], "4096"),))
    assert agent.reload("pod-1").migrated == (name,)
    agent.add_pod(PodSpec(NEW, labels=frozenset({"app=new"})))
    pod = agent.node.pod(NEW)
    assert silent(agent.node) == []
    assert pins_wrong(agent) == []
    agent.remove_pod(NEW)
    key = layouts.endpoint_key(pod.ipv4) if name == "cilium_lxc" else layouts.ipcache_key(pod.ipv4, 32)
    first, second = contents_of(agent, name)
    assert first == second
    assert key not in first
    (former,) = retired.others(agent.config.globals, name)
    with open_pin(former) as old:
        old.delete(next(iter(old.keys())))
    (wrong,) = pins_wrong(agent)
    assert f"pin {former.name}: content differs from that of the new map" in wrong
    agent.sync()
    assert pins_wrong(agent) == []
    for subject in ("host", "health"):
        agent.reload(subject)
        assert retired.pin_names(agent.config.globals)
    agent.reload("pod-2")
    assert not retired.pin_names(agent.config.globals)


def test_the_hooks_of_the_other_pods_are_not_read_each_time(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the newest pod uses the old map: on a node of many pods that took longer than the reload."""
    read = []

    def filters(netlink: NetlinkSocket, ifindex: int, direction: hooks.Direction) -> tuple[hooks.Filter, ...]:
        read.append(ifindex)
        return there(netlink, ifindex, direction)

    there = hooks.filters
    monkeypatch.setattr(hooks, "filters", filters)
    agent.configure(defines=((MAPS["cilium_lxc"], "4096"),))
    assert agent.reload("pod-1").migrated == ("cilium_lxc",)
    assert set(read) == {agent.node.pod(name).ifindex for name in ("pod-1", "pod-2")}
    assert retired.pin_names(agent.config.globals)


def test_a_map_that_was_too_small_does_not_limit_the_new_one(agent: Agent) -> None:
    """It was replaced because it was too small: the new one takes what comes."""
    with open_pin(agent.config.globals / "cilium_lxc") as pinned:
        present = len(dict(pinned.items()))
    for size, subject in ((str(present), "pod-2"), ("4096", "pod-1")):
        agent.configure(defines=(("ENDPOINTS_MAP_SIZE", size),))
        agent.reload(subject)
    agent.add_pod(NEW)
    assert sorted(map(len, contents_of(agent, "cilium_lxc"))) == [present, present + 2, present + 2]
    agent.remove_pod(NEW)


@dataclass(frozen=True)
class Killed(Step):
    """The end of the process that reloads."""

    name = "killed"

    def describe(self) -> str:
        return "kill the process that reloads"

    def apply(self, work: Workspace) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("moment", "done"), [("attach egress", "restored"), ("commit", "retired")])
def test_a_killed_reload_leaves_both_maps_in_line(agent: Agent, moment: str, done: str) -> None:
    """No program of the host uses the new map yet, or some do, and all others the old one, which lies aside."""

    def doomed(plan: Plan) -> Plan:
        at = [step.name for step in plan.steps].index(moment)
        return replace(plan, steps=(*plan.steps[:at], Killed("host"), *plan.steps[at:]))

    agent.configure(defines=(("ENDPOINTS_MAP_SIZE", "4096"),))
    agent.change = doomed
    with pytest.raises(WorkerDied):
        do_in_worker(agent, lambda _: agent.reload("host"), on_worker=lambda: None)
    agent.change = None
    outcome = agent.add_pod(PodSpec(NEW, labels=frozenset({"app=new"})))
    (warning,) = outcome.warnings
    assert warning.startswith(f"{done} cilium_lxc")
    assert silent(agent.node) == []
    agent.reload("host")
    assert silent(agent.node) == []
    assert pins_wrong(agent) == []
    agent.remove_pod(NEW)
